"""Encoders: text → vector of unit length. A small interface, and two encoders that a bundle can hold.

`SentenceEncoder` is a transformer with the mean of its last states (MiniLM). `LsaEncoder` multiplies TF-IDF weights of
words with the singular vectors of the texts that it was made from; it needs no pretrained weights. Texts without a
known word get the zero vector. Encoders are immutable; `SentenceEncoder` is not thread-safe.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, Self

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from scipy import sparse
from transformers import AutoModel, AutoTokenizer

from model_store.errors import BundleCorrupt
from model_store.words.texts import words_of
from model_store.words.vectors import Vectors, unit

_ABOUT, _WEIGHTS = "encoder.json", "lsa.safetensors"
_BATCH = 64
_MAX_TOKENS = 64


class TextEncoder(Protocol):
    """`encode` gives (n, dimension) float32; each row has length one, or is zero."""

    @property
    def dimension(self) -> int: ...

    def encode(self, texts: Sequence[str]) -> Vectors: ...

    def save(self, directory: Path) -> None: ...


class SentenceEncoder:
    """A checkpoint folder of a transformer. Reads safetensors only."""

    def __init__(self, directory: Path) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(directory)
        self._model = AutoModel.from_pretrained(directory, use_safetensors=True, dtype=torch.float32).eval()

    @property
    def dimension(self) -> int:
        return int(self._model.config.hidden_size)

    @torch.inference_mode()
    def encode(self, texts: Sequence[str]) -> Vectors:
        """Texts of similar length share a batch; longer ones than 64 tokens are cut."""
        vectors = np.zeros((len(texts), self.dimension), dtype=np.float32)
        order = np.argsort([len(text) for text in texts], kind="stable")
        for start in range(0, len(order), _BATCH):
            places = order[start : start + _BATCH]
            vectors[places] = self._encode([texts[place] for place in places])
        return vectors

    def _encode(self, texts: Sequence[str]) -> Vectors:
        tokens = self._tokenizer(
            list(texts), padding=True, truncation=True, max_length=_MAX_TOKENS, return_tensors="pt"
        )
        states = self._model(**tokens).last_hidden_state
        mask = tokens["attention_mask"].unsqueeze(-1).to(states.dtype)
        mean = (states * mask).sum(dim=1) / mask.sum(dim=1)
        found: Vectors = torch.nn.functional.normalize(mean).numpy()
        return found

    def save(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._model.save_pretrained(directory, safe_serialization=True)
        self._tokenizer.save_pretrained(directory)
        (directory / _ABOUT).write_text(json.dumps({"kind": "sentence"}))


class LsaEncoder:
    """`terms`: the V words; `weights` (V,): their inverse frequencies; `directions` (V, D): right singular vectors."""

    def __init__(self, terms: Sequence[str], weights: Vectors, directions: Vectors) -> None:
        self.terms, self.weights, self.directions = list(terms), weights, directions
        self._number = {term: number for number, term in enumerate(self.terms)}

    @property
    def dimension(self) -> int:
        return int(self.directions.shape[1])

    def encode(self, texts: Sequence[str]) -> Vectors:
        projected = np.asarray(self.frequencies(texts) @ self.directions, dtype=np.float32)
        return unit(projected)

    def frequencies(self, texts: Sequence[str]) -> sparse.csr_matrix:
        """(n, V) TF-IDF with the square root of the counts."""
        found = [[self._number[word] for word in words_of(text) if word in self._number] for text in texts]
        starts = np.cumsum([0, *(len(numbers) for numbers in found)])
        columns = np.array([number for numbers in found for number in numbers], dtype=np.int64)
        counts = sparse.csr_matrix((np.ones(len(columns), np.float32), columns, starts), (len(texts), len(self.terms)))
        counts.sum_duplicates()
        counts.data = np.sqrt(counts.data) * self.weights[counts.indices]
        return counts

    def save(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        save_file({"weights": self.weights, "directions": self.directions}, directory / _WEIGHTS)
        (directory / _ABOUT).write_text(json.dumps({"kind": "lsa", "terms": self.terms}, ensure_ascii=False))

    @classmethod
    def load(cls, directory: Path, terms: Sequence[str]) -> Self:
        arrays = load_file(directory / _WEIGHTS)
        return cls(terms, arrays["weights"], arrays["directions"])


def load_encoder(directory: Path) -> TextEncoder:
    """The encoder in `directory`, as one of the classes above saved it. Raises BundleCorrupt."""
    try:
        about = json.loads((directory / _ABOUT).read_text())
        return LsaEncoder.load(directory, about["terms"]) if about["kind"] == "lsa" else SentenceEncoder(directory)
    except (OSError, ValueError, KeyError) as error:
        raise BundleCorrupt(
            f"{directory}: not a text encoder ({type(error).__name__}); build the bundle again"
        ) from error
