"""A checkpoint directory, opened as a split model and the prompt that it reads.

`titles`  a Hugging Face checkpoint and its tokenizer
`items`   the same with one embedding row per title, and two more files: `titles.json` (the title of each row) and
          `pieces.safetensors` (embeddings of text pieces, for titles added later: `input`, and `output` if the head is
          not tied to the embedding)

Code that comes with a checkpoint is never run, and nothing is unpickled.
"""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from model_store.errors import BundleCorrupt, UnsupportedBackbone
from model_store.lm.item_embedding import ItemEmbedding, ItemHead, embedding_scale, use_item_tokens
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
    """The model, cut as `backbone` says, and the prompt of its vocabulary.

    Raises BundleCorrupt if files are missing or belong to the other vocabulary, and UnsupportedBackbone if the library
    does not know the architecture or the halves do not reproduce the model.
    """
    model, tokenizer = _load_pretrained(directory, getattr(torch, backbone.dtype))
    if vocabulary == "titles":
        if (directory / TITLES_FILE).exists():  # its tokens are items, not those of the tokenizer
            raise BundleCorrupt(
                f"{directory}: the model reads item tokens, not the text of titles; build the bundle again"
            )
        return SplitLM(_frozen(model, device), backbone.split_layer), Prompt(tokenizer, prompt)
    items = ItemVocabulary.load(directory, tokenizer)
    _attach_items(model, items, directory / PIECES_FILE)
    return SplitLM(_frozen(model, device), backbone.split_layer), ItemPrompt(items, prompt)


def save_pieces(directory: Path, inputs: Tensor, outputs: Tensor | None) -> None:
    """Write `pieces.safetensors`: piece embeddings (P, D) of the input and, unless tied (None), of the head."""
    tables = {"input": inputs} if outputs is None else {"input": inputs, "output": outputs}
    save_file({name: table.detach().contiguous().cpu() for name, table in tables.items()}, directory / PIECES_FILE)


def _load_pretrained(directory: Path, dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
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


def _frozen(model: PreTrainedModel, device: torch.device | str) -> PreTrainedModel:
    model.requires_grad_(False)
    nn.Module.to(model, device)
    return model


def _attach_items(model: PreTrainedModel, items: ItemVocabulary, file: Path) -> None:
    rows = _weight(model.get_input_embeddings())
    if len(rows) != len(items):
        raise BundleCorrupt(f"{file.parent}: {len(rows)} embeddings for {len(items)} items; build the bundle again")
    try:
        pieces = load_file(file)
        inputs = ItemEmbedding(
            rows, _piece_embeddings(pieces["input"], rows, items), items, scale=embedding_scale(model)
        )
        outputs = inputs
        if not model.config.tie_word_embeddings:
            head = _weight(model.get_output_embeddings())
            outputs = ItemEmbedding(head, _piece_embeddings(pieces["output"], head, items), items)
    except (OSError, KeyError, ValueError, SafetensorError) as error:
        raise BundleCorrupt(f"{file}: missing, incomplete or of another model; build the bundle again") from error
    use_item_tokens(model, inputs, ItemHead(outputs))


def _piece_embeddings(text: Tensor, rows: Tensor, items: ItemVocabulary) -> Tensor:
    """`text` (P, D) in the dtype of `rows` (V, D). Raises ValueError if P or D does not fit tokenizer and model."""
    if text.dim() != 2 or len(text) < items.tokenizer.vocab_size or text.shape[1] != rows.shape[1]:
        raise ValueError(f"pieces {tuple(text.shape)}: needed {items.tokenizer.vocab_size} × {rows.shape[1]}")
    return text.to(rows.dtype)


def _weight(module: nn.Module) -> Tensor:
    weight: Tensor = module.get_parameter("weight")
    return weight
