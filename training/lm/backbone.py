"""The backbone: a language model made from scratch, or a Hugging Face checkpoint to be adapted with LoRA.

A backbone directory is an ordinary checkpoint (safetensors, tokenizer) plus a certificate with its split layer and the
format of its prompts. Knows no training loop.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from model_store.files import describe_files, weights_sha256
from model_store.lm.checkpoint import load_lm
from model_store.lm.split_lm import SplitLM
from model_store.manifest import BackboneSpec, PromptSpec, Vocabulary
from model_store.text.prompt import Prompt
from training.lm.gguf import checkpoint_folder, gguf_file, gguf_identity
from training.lm.item_tokens import LearnedItemEmbedding, save_item_model
from training.run.recipes import BackboneShape, Recipe
from training.run.stage import StageError, digest, read_certificate

_BOS = "<s>"
_DTYPES: dict[torch.dtype, Literal["float32", "bfloat16", "float16"]] = {
    torch.float32: "float32",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
}


class Backbone(NamedTuple):
    """A finished backbone directory, loaded."""

    spec: BackboneSpec
    vocabulary: Vocabulary
    lm: SplitLM
    prompt: Prompt


def new_tokenizer(titles: Sequence[str], popularity: Sequence[int], vocab_size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE of the catalogue, with titles weighted by popularity (the number of events).

    Merges may cross spaces, so popular titles become one or two tokens and histories become short. Any other title can
    still be written, also one that is added later. A number begins a new token: the volumes of a series then share
    their first tokens, which the model can copy from the history.
    """
    tokenizer = Tokenizer(models.BPE())
    before_number = pre_tokenizers.Split(Regex(r" (?=\d)"), behavior="merged_with_next")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [before_number, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[_BOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    weighted = (title for title, count in zip(titles, popularity, strict=True) for _ in range(1 + count))
    tokenizer.train_from_iterator(weighted, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=_BOS)


def new_model(shape: BackboneShape, vocab_size: int) -> PreTrainedModel:
    """A Llama of the recipe's shape with random weights, drawn from torch's global generator."""
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=2 * shape.hidden_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_heads,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        initializer_range=shape.hidden_size
        ** -0.5,  # the default, 0.02, suits wide models; narrow ones learn slowly from it
        bos_token_id=0,
        eos_token_id=None,
        pad_token_id=None,
    )
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    return model


def pretrained(
    name: str, device: torch.device, *, in_float32: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Loads a checkpoint by folder, GGUF file or hub name, in bf16 on a GPU unless `in_float32`.

    Reads safetensors and GGUF only and never runs code of a checkpoint. Raises StageError.
    """
    folder = checkpoint_folder(name)
    dtype = torch.bfloat16 if device.type == "cuda" and not in_float32 else torch.float32
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False, use_safetensors=True, dtype=dtype)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise StageError(f"--model {name}: not a checkpoint that can be loaded ({reason})") from error
    return model, tokenizer


def with_adapters(model: nn.Module, recipe: Recipe) -> Any:
    """A peft model around `model`, with LoRA on query and value as in BIGRec, or on every linear layer but the head.

    On every linear layer also for architectures whose layer names peft does not know (phi3 has query, key and value in
    one layer).
    """
    from peft import LoraConfig, get_peft_model  # two seconds of import, only paid here
    from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as KNOWN

    has_known_layers = getattr(model.config, "model_type", "") in KNOWN
    config = LoraConfig(
        r=recipe.lora_rank,
        lora_alpha=2 * recipe.lora_rank,
        lora_dropout=0.05,
        task_type="CAUSAL_LM",
        target_modules=None if recipe.lora_layers == "query_value" and has_known_layers else "all-linear",
    )
    whole: Any = model
    return get_peft_model(whole, config)


def checkpoint_identity(name: str) -> str:
    """For a GGUF file a digest of its content, for a folder a digest of its files' names, sizes and times.

    For a hub name the name itself. Raises StageError.
    """
    if file := gguf_file(name):
        return gguf_identity(file)
    if not Path(name).is_dir():
        return name
    files = sorted(path for path in Path(name).iterdir() if path.is_file())
    return digest([(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files])


def prompt_spec(recipe: Recipe, *, is_pretrained: bool) -> PromptSpec:
    """Prompts have an instruction (`head`) only if a pretrained checkpoint reads titles in its own tokens."""
    reads_text = is_pretrained and recipe.vocabulary == "titles" and not recipe.catalogue_tokens
    text = {} if reads_text else {"head": ""}
    return PromptSpec(recent_length=recipe.recent_length, max_title_tokens=recipe.max_title_tokens, **text)


def split_layer(recipe: Recipe, model: PreTrainedModel) -> int:
    """L: the recipe's, or half of the layers."""
    return recipe.split_layer or model.config.num_hidden_layers // 2


def save_backbone(
    directory: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    base_model: str,
    adapter: str | None,
    split_layer: int,
) -> BackboneSpec:
    """Writes the checkpoint and returns its entry for a manifest. The adapters of `model` must be merged."""
    if isinstance(model.get_input_embeddings(), LearnedItemEmbedding):
        save_item_model(model, directory / "lm")
    else:
        model.save_pretrained(directory / "lm", safe_serialization=True)
    tokenizer.save_pretrained(directory / "lm")
    return BackboneSpec(
        base_model=base_model,
        adapter=adapter,
        weights_sha256=weights_sha256(describe_files(directory / "lm")),
        split_layer=split_layer,
        num_layers=model.config.num_hidden_layers,
        hidden_size=model.config.hidden_size,
        dtype=_DTYPES[model.dtype],
    )


def open_backbone(directory: Path, device: torch.device) -> Backbone:
    """Loads a backbone directory. Raises StageError when the stage that makes it has not finished."""
    facts = read_certificate(directory)
    spec = BackboneSpec.model_validate(facts["backbone"])
    vocabulary: Vocabulary = facts["vocabulary"]
    lm, prompt = load_lm(directory / "lm", spec, PromptSpec.model_validate(facts["prompt"]), vocabulary, device=device)
    return Backbone(spec, vocabulary, lm, prompt)
