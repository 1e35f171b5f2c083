"""A checkpoint directory, opened as a split model and the prompts it reads.

`titles`  a Hugging Face checkpoint and its tokenizer, as they are
`items`   the same with one row of embedding per title, plus `titles.json` (which row is whose) and `pieces.safetensors`
          (what spells later titles: `input`, and `output` where the head is a matrix of its own)

Never runs code that comes with a checkpoint, never unpickles.
"""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from model_store.errors import BundleCorrupt, UnsupportedBackbone
from model_store.lm.item_embedding import ItemEmbedding, ItemHead, attach, embedding_scale
from model_store.lm.split_lm import SplitLM
from model_store.manifest import BackboneSpec, PromptSpec, Vocabulary
from model_store.text.prompt import ItemPrompt, Prompt
from model_store.text.vocabulary import TITLES_FILE, ItemVocabulary

PIECES_FILE = "pieces.safetensors"


def load_lm(
    directory: Path,
    backbone: BackboneSpec,
    prompt: PromptSpec,
    vocabulary: Vocabulary = "titles",
    *,
    device: torch.device | str = "cpu",
) -> tuple[SplitLM, Prompt]:
    """Raises BundleCorrupt when files are missing or of another vocabulary, UnsupportedBackbone for an architecture
    unknown to the library."""
    model, tokenizer = _read(directory, getattr(torch, backbone.dtype))
    if vocabulary == "titles":
        if (directory / TITLES_FILE).exists():  # its tokens are items: what the tokenizer says means nothing to it
            raise BundleCorrupt(f"{directory}: reads items, not the text of titles; build the bundle again")
        return SplitLM(_placed(model, device), backbone.split_layer), Prompt(tokenizer, prompt)
    items = ItemVocabulary.load(directory, tokenizer)
    _attach_items(model, items, directory / PIECES_FILE)
    return SplitLM(_placed(model, device), backbone.split_layer), ItemPrompt(items, prompt)


def save_pieces(directory: Path, inputs: Tensor, outputs: Tensor | None) -> None:
    tables = {"input": inputs} if outputs is None else {"input": inputs, "output": outputs}
    save_file({name: table.detach().contiguous().cpu() for name, table in tables.items()}, directory / PIECES_FILE)


def _read(directory: Path, dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    try:
        model = AutoModelForCausalLM.from_pretrained(
            directory, dtype=dtype, use_safetensors=True, trust_remote_code=False
        )
        tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    except OSError as error:
        raise BundleCorrupt(
            f"{directory}: not a checkpoint with safetensors weights and a tokenizer: {error}"
        ) from error
    except ValueError as error:
        raise UnsupportedBackbone(f"{directory}: {error}") from error
    return model, tokenizer


def _placed(model: PreTrainedModel, device: torch.device | str) -> PreTrainedModel:
    model.requires_grad_(False)
    nn.Module.to(model, device)
    return model


def _attach_items(model: PreTrainedModel, items: ItemVocabulary, file: Path) -> None:
    rows = _weight(model.get_input_embeddings())
    if len(rows) != len(items):
        raise BundleCorrupt(f"{file.parent}: {len(rows)} embeddings for {len(items)} items; build the bundle again")
    try:
        pieces = load_file(file)
        inputs = ItemEmbedding(rows, _spelling(pieces["input"], rows, items), items, scale=embedding_scale(model))
        outputs = inputs
        if not model.config.tie_word_embeddings:
            head = _weight(model.get_output_embeddings())
            outputs = ItemEmbedding(head, _spelling(pieces["output"], head, items), items)
    except (OSError, KeyError, ValueError, SafetensorError) as error:
        raise BundleCorrupt(f"{file}: missing, incomplete or of another model; build the bundle again") from error
    attach(model, inputs, ItemHead(outputs))


def _spelling(text: Tensor, rows: Tensor, items: ItemVocabulary) -> Tensor:
    """`text` (P, D) as `rows` (V, D) are kept. Raises ValueError when some title could not be spelled with it."""
    if text.dim() != 2 or len(text) < items.tokenizer.vocab_size or text.shape[1] != rows.shape[1]:
        raise ValueError(f"pieces {tuple(text.shape)}: {items.tokenizer.vocab_size} × {rows.shape[1]} are needed")
    return text.to(rows.dtype)


def _weight(module: nn.Module) -> Tensor:
    weight: Tensor = module.get_parameter("weight")
    return weight
