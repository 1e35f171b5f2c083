"""The selector: which memories of a pool help to answer a query, or none.

A small network gives each entry of the pool, and the null choice, a logit from features that compare it with query,
aspects and user. Entries are chosen in the order of their logits, at most `MAX_CHOSEN`, until null is the next: the
most probable draw of the Plackett–Luce model that training samples from. NumPy only; training has the same network in
torch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from model_store.words.events import DAY_S
from model_store.words.evidence import LocalMemory
from model_store.words.index import Found, Values
from model_store.words.texts import words_of
from model_store.words.vectors import Vectors

MAX_CHOSEN = 3
SELECTOR_FEATURES = (
    "is_null", "query_cosine", "aspect_cosine", "own_words", "is_scenario", "lexical", "asked",
    "cosine_below_best", "words_below_best", "lexical_below_best",
    "age", "count", "share", "utility", "is_record", "is_pattern", "history",
)  # fmt: skip


class Question(NamedTuple):
    """A query as the steps after the search see it. `aspects` (a, D): vectors of the chosen aspects; `now` in s."""

    text: str
    vector: Vectors
    aspects: Vectors
    found: Found
    now: int


def entry_features(question: Question, memory: LocalMemory, places: Sequence[int]) -> Values:
    """(1 + n, S) features of the null choice, then of the entries at `places`."""
    chosen = list(places)
    table = np.zeros((1 + len(chosen), len(SELECTOR_FEATURES)), dtype=np.float32)
    columns: dict[str, Any] = {"is_null": [1.0] + [0.0] * len(chosen)}
    for name, values in _compared(question, memory, chosen).items():
        columns[name] = np.concatenate([[0.0], values])
    columns["history"] = np.log1p(memory.num_events) / 6
    for name, values in columns.items():
        table[:, SELECTOR_FEATURES.index(name)] = values
    return table


def _compared(question: Question, memory: LocalMemory, places: list[int]) -> dict[str, Any]:
    entries, vectors = [memory.entries[place] for place in places], memory.embeddings[places]
    name, days = " ".join(words_of(question.text)), [max(question.now - e.t_last, 0) / DAY_S for e in entries]
    lexical, asked = np.log1p(question.found.lexical), np.log1p(question.found.asked)
    counts = np.array([entry.count for entry in entries], dtype=np.float32)
    cosine, words = vectors @ question.vector, memory.own_words(question.text)[places]
    relevance = np.array([lexical[list(entry.rows)].mean() / 3 for entry in entries], dtype=np.float32)
    return {
        "query_cosine": cosine,
        "aspect_cosine": (vectors @ question.aspects.T).max(axis=1) if len(question.aspects) else np.zeros(len(places)),
        "own_words": words,
        "is_scenario": [float(entry.scenario == name) for entry in entries],
        "lexical": relevance,
        "cosine_below_best": cosine - cosine.max(initial=-1),
        "words_below_best": words - words.max(initial=0),
        "lexical_below_best": relevance - relevance.max(initial=0),
        "asked": [asked[list(entry.rows)].mean() / 3 for entry in entries],
        "age": np.log1p(days) / 6,
        "count": np.log1p(counts) / 4,
        "share": counts / max(memory.num_events, 1),
        "utility": [entry.utility / 4 for entry in entries],
        "is_record": [float(entry.level == "record") for entry in entries],
        "is_pattern": [float(entry.level == "pattern") for entry in entries],
    }


@dataclass(frozen=True)
class Selector:
    """`layers`: weight (out, in) and bias (out,) of each layer; tanh between them."""

    layers: tuple[tuple[Values, Values], ...]

    def logits(self, features: Values) -> Values:
        """(n,) of features (n, S)."""
        states = features
        for number, (weight, bias) in enumerate(self.layers):
            states = states @ weight.T + bias
            states = np.tanh(states) if number < len(self.layers) - 1 else states
        return states[:, 0]

    def choose(self, features: Values) -> list[int]:
        """Places in the pool, most useful first, of features whose first row is the null choice."""
        logits = self.logits(features)
        order = np.argsort(-logits, kind="stable").tolist()
        return [place - 1 for place in order[: order.index(0)]][:MAX_CHOSEN]

    def order(self, features: Values) -> list[int]:
        """All places in the pool, most useful first, whether they are better than the null choice or not."""
        order: list[int] = np.argsort(-self.logits(features)[1:], kind="stable").tolist()
        return order

    def arrays(self) -> dict[str, NDArray[Any]]:
        parts = enumerate(self.layers)
        return {
            f"selector.{n}.{part}": array
            for n, pair in parts
            for part, array in zip(("weight", "bias"), pair, strict=True)
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Self:
        """Raises KeyError or ValueError where arrays are missing or have other shapes."""
        count = sum(name.startswith("selector.") and name.endswith(".weight") for name in arrays)
        layers = tuple((arrays[f"selector.{n}.weight"], arrays[f"selector.{n}.bias"]) for n in range(count))
        if not layers or layers[0][0].shape[1] != len(SELECTOR_FEATURES):
            raise ValueError("the selector has other features")
        return cls(layers)
