"""Reasoning about a query: which global aspects matter, which memories these fetch, and the ideal item.

    query → nearest global aspects → aspects that matter → entries of local memory for each → ideal profile

`Reasoner` is the interface of a policy. `ChainReasoner` is deterministic: it takes the nearest aspects that many people
share, and describes the ideal item by the chosen memories. `model_store.reasoner` has one with a language model.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from model_store.words.aspects import Aspect, GlobalMemory
from model_store.words.evidence import LocalMemory
from model_store.words.index import Values
from model_store.words.memory import Entry
from model_store.words.ranker import Ranker
from model_store.words.selector import Question
from model_store.words.vectors import Vectors

NUM_SHOWN, NUM_CHOSEN = 8, 3  # global aspects that a policy reads, and at most names
ENTRIES_PER_PROBE = 4
_COUNT_WEIGHT, _LEVEL_WEIGHT = 0.02, {"record": 0.0, "pattern": 0.05, "profile": 0.0}


class Profile(NamedTuple):
    """The ideal item in words. `is_free`: its text is embedded; otherwise the mean of the chosen memories is used.

    `used`: places in the pool of the memories that count, in place of those that the selector chose.
    """

    text: str
    is_free: bool = False
    used: tuple[int, ...] | None = None


class Reasoner(Protocol):
    """A policy. Must not change its arguments; may be slow."""

    @property
    def ranker(self) -> Ranker | None:
        """The weights of the ranking that were learned with its profiles; None: those of the words."""
        ...

    def aspects(self, query: str, shown: Sequence[tuple[Aspect, float]]) -> list[Aspect]:
        """At most `NUM_CHOSEN` of the shown aspects, each with its cosine to the query, that matter for it."""
        ...

    def profile(self, query: str, aspects: Sequence[Aspect], pool: Sequence[Entry], chosen: Sequence[int]) -> Profile:
        """The ideal item for the query. `pool`: the entries that were fetched, most useful first by the selector.

        `chosen`: places in the pool of those that the selector chose. Comes after `aspects` of the same query.
        """
        ...


class ChainReasoner:
    """Deterministic; takes microseconds."""

    ranker: Ranker | None = None

    def aspects(self, query: str, shown: Sequence[tuple[Aspect, float]]) -> list[Aspect]:
        ranked = sorted(shown, key=lambda pair: -pair[1] - _COUNT_WEIGHT * np.log(pair[0].num_users))
        return [aspect for aspect, _ in ranked[:NUM_CHOSEN]]

    def profile(self, query: str, aspects: Sequence[Aspect], pool: Sequence[Entry], chosen: Sequence[int]) -> Profile:
        wishes = ", ".join(dict.fromkeys(aspect.name for aspect in aspects))
        memories = "; ".join(pool[place].text for place in chosen)
        return Profile(f"{query}{f', {wishes}' if wishes else ''}{f'; like {memories}' if memories else ''}")


def fetch(question: Question, memory: LocalMemory, per_probe: int = ENTRIES_PER_PROBE) -> list[int]:
    """Places of entries that the query and each of its aspects fetch from memory; the pool of the selector.

    Probes: the words of the query, its vector, and each aspect beside the query. Ascending, without repeats.
    """
    if not len(memory):
        return []
    probes = [memory.own_words(question.text), _likeness(question, memory)]
    best = [_best(scores, per_probe) for scores in probes]
    best += fetch_for_aspects(question, memory, per_probe)
    return sorted({place for places in best for place in places})


def fetch_for_aspects(question: Question, memory: LocalMemory, per_probe: int = ENTRIES_PER_PROBE) -> list[list[int]]:
    """For each aspect the places of the entries that it fetches beside the query, best first."""
    likeness = _likeness(question, memory)
    return [_best(likeness + memory.embeddings @ aspect, per_probe) for aspect in question.aspects]


def _likeness(question: Question, memory: LocalMemory) -> Values:
    """(n,) cosine of each entry to the query, and a little for many events and for patterns."""
    prior = [_COUNT_WEIGHT * np.log1p(entry.count) + _LEVEL_WEIGHT[entry.level] for entry in memory.entries]
    likeness: Values = memory.embeddings @ question.vector + np.array(prior, dtype=np.float32)
    return likeness


def _best(scores: Values, count: int) -> list[int]:
    best: list[int] = np.argsort(-scores, kind="stable")[:count].tolist()
    return best


def nearest_aspects(query: str, vector: Vectors, known: GlobalMemory, reasoner: Reasoner) -> list[Aspect]:
    """The aspects that the policy names among those nearest to the query."""
    return reasoner.aspects(query, known.nearest(vector, NUM_SHOWN)) if len(known) else []
