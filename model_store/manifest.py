"""The manifest of a bundle: every setting that training fixes and serving obeys, and the id of its hidden states.

It is the only source of the split layer, the recent length K, the memory size M, the prompt and the dtypes. Immutable.
Reads and writes no files; `bundle.py` does that.
"""

import hashlib
import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from model_store.memory.codec import StateDtype

FORMAT_VERSION = 4
_OLDER_FIELDS = {"grounding_popularity_gamma", "neighbor_share", "neighbor_half_life"}
Vocabulary = Literal["titles", "items"]  # a title is several text tokens, or one token (see text/vocabulary.py)


class _FrozenModel(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class PromptSpec(_FrozenModel):
    """The text around the titles; see text/prompt.py for how it becomes tokens."""

    head: str = "A user chose these items, oldest first. Predict the next one.\n"
    terminator: str = Field(default="\n", pattern="\n", description="contains a newline, which no title contains")
    max_title_tokens: int = Field(default=24, ge=1)
    recent_length: int = Field(default=10, ge=1, description="K of the paper")


class BackboneSpec(_FrozenModel):
    """The language model, and the layer where it is cut."""

    base_model: str
    adapter: str | None = None
    weights_sha256: str = Field(description="of the weights, configurations and tokenizer in lm/")
    split_layer: int = Field(ge=1, description="L: the bottom half is the embeddings and layers[:L]")
    num_layers: int
    hidden_size: int = Field(description="D")
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"


class MemorySpec(_FrozenModel):
    """How much memory the retriever sees, and how a state is stored."""

    max_elements: int = Field(default=90, ge=0, description="M of the paper")
    state_dtype: StateDtype = Field(default="float16", description="of a stored state, see memory/codec.py")


class RetrieverSpec(_FrozenModel):
    """The retriever network. At most `top_k` states enter the top half, placed by `combine` (see memory/combine.py)."""

    width: int = 256
    top_k: int = Field(default=1, ge=1)
    has_null: bool = True
    combine: Literal["prepend", "insert"] = "insert"
    always_abstains: bool = Field(default=False, description="it never picks a state, so none needs to be read")


class VoicesSpec(_FrozenModel):
    """The voices beside the language model (see voices/)."""

    tables: tuple[str, ...] = Field(description="the channels that have a table of near items")
    recent_length: int = Field(ge=1, description="events of the window, K")
    past_length: int = Field(ge=1, description="newest events that are read, window included")
    has_returns: bool = Field(description="whether users of the data come back to items")


class WordsSpec(_FrozenModel):
    """What answers queries in words (see words/)."""

    dimension: int = Field(ge=1, description="of the vectors of texts")
    num_aspects: int = Field(ge=0, description="of global memory")
    memory_scale: float = Field(ge=0, le=1, description="how far memory is used; 0 where it did not help")
    has_reasoner: bool = Field(default=False, description="whether a language model reasons (see reasoner/)")


class GenerationSpec(_FrozenModel):
    """The beam search."""

    num_beams: int = Field(default=20, ge=1)

    @model_validator(mode="before")
    @classmethod
    def _without_fields_of_older_formats(cls, facts: Any) -> Any:
        """Accept fields of older formats at the values at which they have no effect."""
        if isinstance(facts, dict) and not (facts.get("grounding_popularity_gamma") or facts.get("neighbor_share")):
            return {name: value for name, value in facts.items() if name not in _OLDER_FIELDS}
        return facts


class FileEntry(_FrozenModel):
    """Size and SHA-256 (lower-case hex) of one file of the bundle."""

    num_bytes: int
    sha256: str


class Manifest(_FrozenModel):
    """The contents of `manifest.json`; README.md describes each field."""

    format_version: int = FORMAT_VERSION
    name: str
    created_at: str
    vocabulary: Vocabulary = "titles"
    backbone: BackboneSpec
    prompt: PromptSpec = PromptSpec()
    memory: MemorySpec = MemorySpec()
    retriever: RetrieverSpec = RetrieverSpec()
    generation: GenerationSpec = GenerationSpec()
    voices: VoicesSpec | None = Field(default=None, description="item vocabulary only")
    words: WordsSpec | None = Field(default=None, description="where the data had queries")
    num_items: int
    space: str
    provenance: dict[str, Any] = Field(default_factory=dict, description="how the bundle was made: data, recipe, seeds")
    files: dict[str, FileEntry] = Field(default_factory=dict)


def space_id(backbone: BackboneSpec, prompt: PromptSpec, memory: MemorySpec) -> str:
    """12 hex characters that identify a space of hidden states.

    Two states are comparable only if the same weights, cut at the same layer, computed them from the same kind of
    prompt and they are stored in the same dtype. The retriever and the index are not part of the space: they may change
    while stored states stay valid.
    """
    facts = {
        "backbone": backbone.model_dump(),
        "prompt": prompt.model_dump(),
        "state_dtype": memory.state_dtype,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]


def in_precision(manifest: Manifest, precision: str) -> Manifest:
    """`manifest` with the space of states that are computed in `precision` instead of that of the bundle."""
    space = hashlib.sha256(f"{manifest.space} {precision}".encode()).hexdigest()[:12]
    return manifest.model_copy(update={"space": space})
