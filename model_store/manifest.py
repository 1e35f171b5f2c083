"""The manifest of a bundle: every number that training dictates to serving, and the identity of its hidden states.

Frozen; the one source for split layer, recent length K, memory size M, prompt and dtype. Knows no files but its own.
"""

import hashlib
import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from model_store.memory.codec import StateDtype

FORMAT_VERSION = 2
Vocabulary = Literal["titles", "items"]  # a title is a text, or one token (see `vocabulary.py`)


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class PromptSpec(_Frozen):
    """The text around the titles; see `prompt.py` for how it becomes tokens."""

    head: str = "A user chose these items, oldest first. Predict the next one.\n"
    terminator: str = Field(default="\n", pattern="\n", description="has a newline, which no title contains")
    max_title_tokens: int = Field(default=24, ge=1)
    recent_length: int = Field(default=10, ge=1, description="K of the paper")


class BackboneSpec(_Frozen):
    """Which language model, and where it is cut."""

    base_model: str
    adapter: str | None = None
    weights_sha256: str = Field(description="of all weights and tokenizer files: names the function, not the file")
    split_layer: int = Field(ge=1, description="L: the bottom half is embeddings + layers[:L]")
    num_layers: int
    hidden_size: int = Field(description="D")
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"


class MemorySpec(_Frozen):
    max_elements: int = Field(default=90, ge=0, description="M of the paper")
    state_dtype: StateDtype = Field(default="float16", description="of a stored state, see `codec.py`")


class RetrieverSpec(_Frozen):
    """`top_k` chosen states reach the top half; `combine` says where they stand (see `combine.py`)."""

    width: int = 256
    top_k: int = Field(default=1, ge=1)
    has_null: bool = True
    combine: Literal["prepend", "insert"] = "insert"


class GenerationSpec(_Frozen):
    num_beams: int = Field(default=20, ge=1)
    grounding_popularity_gamma: float = Field(default=0.0, ge=0.0)
    neighbor_share: float = Field(default=0.0, ge=0.0, lt=1.0, description="λ of `neighbors.py`; 0 asks no neighbours")
    neighbor_half_life: float = Field(default=1.0, gt=0.0, description="in events")


class FileEntry(_Frozen):
    num_bytes: int
    sha256: str


class Manifest(_Frozen):
    format_version: int = FORMAT_VERSION
    name: str
    created_at: str
    vocabulary: Vocabulary = "titles"
    backbone: BackboneSpec
    prompt: PromptSpec = PromptSpec()
    memory: MemorySpec = MemorySpec()
    retriever: RetrieverSpec = RetrieverSpec()
    generation: GenerationSpec = GenerationSpec()
    num_items: int
    space: str
    provenance: dict[str, Any] = Field(default_factory=dict, description="how it was made: data, recipe, seeds")
    files: dict[str, FileEntry] = Field(default_factory=dict)


def space_id(backbone: BackboneSpec, prompt: PromptSpec, memory: MemorySpec) -> str:
    """12 hex characters that name a space of hidden states.

    Two states are comparable only if the same weights, cut at the same layer, read the same text at the same precision.
    The retriever and the index are not part of it: they may change while the memory of users stays.
    """
    facts = {
        "backbone": backbone.model_dump(),
        "prompt": prompt.model_dump(),
        "state_dtype": memory.state_dtype,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]
