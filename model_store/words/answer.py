"""One function that answers queries in words with the memory of their users.

    search ─► aspects ─► fetch from memory ─► select ─► ideal profile ─► rank

In: `Words`, the part of a bundle for this, and queries. Out: ranked rows, with what was used. `reasoning` says how far
to go: `off` ranks by the words alone, `retrieve` chooses memories, `full` lets the reasoner write the ideal profile
too. Not thread-safe, as the index is not.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from model_store.words.aspects import Aspect, GlobalMemory
from model_store.words.events import WordEvent
from model_store.words.evidence import FEATURES, Evidence, LocalMemory, gather
from model_store.words.index import Rows, Values, WordsIndex
from model_store.words.memory import Entry, write_memory
from model_store.words.ranker import Ranker
from model_store.words.reasoning import ChainReasoner, Profile, Reasoner, fetch, fetch_for_aspects, nearest_aspects
from model_store.words.selector import Question, Selector, entry_features
from model_store.words.vectors import Vectors

Reasoning = Literal["off", "retrieve", "full"]
MAX_ALLOWED = 1000  # if no more items are allowed, all of them are candidates, whatever the words find


class WordsQuery(NamedTuple):
    """`memory`: what is remembered of the user, if anything. `now`: the time of the query in s. `allowed` (N,) bool."""

    text: str
    now: int
    memory: LocalMemory | None = None
    allowed: NDArray[np.bool_] | None = None


class WordsAnswer(NamedTuple):
    """`rows`: catalogue rows, best first, and their scores. `memories`: the chosen entries. `profile` with `full`.

    `for_aspects`: the entries that each aspect fetched. `timings_s`: seconds of each stage; `embed` is of the batch.
    """

    rows: Rows
    scores: Values
    aspects: list[Aspect]
    fetched: list[Entry]
    memories: list[Entry]
    profile: Profile | None
    for_aspects: list[list[Entry]]
    timings_s: dict[str, float]


@dataclass(frozen=True)
class Words:
    """Everything in a bundle that answers queries in words. See `files.py` for saving and opening."""

    index: WordsIndex
    aspects: GlobalMemory
    selector: Selector
    ranker: Ranker

    def remember(self, events: Sequence[WordEvent]) -> LocalMemory:
        """The local memory of one user, from all events that may be known."""
        return self.read(write_memory(events, self.index, self.index.encoder.encode))

    def read(self, entries: Sequence[Entry]) -> LocalMemory:
        """Local memory of entries that were written earlier by the same bundle."""
        return LocalMemory(entries, self.index.encoder.dimension)

    def answer(
        self,
        queries: Sequence[WordsQuery],
        k: int,
        *,
        reasoning: Reasoning = "retrieve",
        reasoner: Reasoner | None = None,
    ) -> list[WordsAnswer]:
        """At most `k` items for each query. The texts of all queries are embedded in one batch."""
        watch = _Watch()
        vectors = self.index.encoder.encode([query.text for query in queries])
        watch.lap("embed")
        # With less than full reasoning nothing slow is asked, so the deterministic policy names the aspects.
        policy = reasoner if reasoner is not None and reasoning == "full" else ChainReasoner()
        pairs = zip(queries, vectors, strict=True)
        return [self._answer(query, vector, k, reasoning, policy, watch=_Watch(watch.laps)) for query, vector in pairs]

    def _answer(
        self, query: WordsQuery, vector: Vectors, k: int, reasoning: Reasoning, policy: Reasoner, *, watch: "_Watch"
    ) -> WordsAnswer:
        memory = query.memory if query.memory is not None and reasoning != "off" else self.read([])
        aspects = nearest_aspects(query.text, vector, self.aspects, policy) if reasoning != "off" else []
        watch.lap("reason")
        question, pool, evidence = self.consider(query, vector, memory, aspects)
        watch.lap("search")
        entries = [memory.entries[place] for place in pool]
        inputs = entry_features(question, memory, pool) if pool else None
        places = self.selector.choose(inputs) if inputs is not None else []
        profile = None
        if reasoning == "full":
            order = self.selector.order(inputs) if inputs is not None else []
            chosen = [order.index(place) for place in places]
            profile = policy.profile(query.text, aspects, [entries[place] for place in order], chosen)
            places = places if profile.used is None else [order[place] for place in profile.used]
        features = evidence.with_chosen(places)
        if profile is not None and profile.is_free:
            ideal = self.index.encoder.encode([profile.text])[0]
            features[FEATURES.index("profile")] = self.index.vectors[evidence.rows] @ ideal
        watch.lap("reason")
        ranker = policy.ranker or self.ranker
        rows, scores = _best(evidence.rows, ranker.scores(features, evidence.context), query.allowed, k)
        watch.lap("rank")
        return WordsAnswer(
            rows=rows,
            scores=scores,
            aspects=aspects,
            fetched=entries,
            memories=[entries[place] for place in places],
            profile=profile,
            for_aspects=[[memory.entries[place] for place in each] for each in fetch_for_aspects(question, memory)],
            timings_s=watch.laps,
        )

    def consider(
        self, query: WordsQuery, vector: Vectors, memory: LocalMemory, aspects: Sequence[Aspect]
    ) -> tuple[Question, list[int], Evidence]:
        """The question, the places of the entries that it fetches, and the evidence on all candidates."""
        found = self.index.find(query.text, vector)
        if query.allowed is not None and np.count_nonzero(query.allowed) <= MAX_ALLOWED:
            found = found._replace(rows=np.union1d(found.rows, np.flatnonzero(query.allowed)))
        named = np.array([aspect.embedding for aspect in aspects], dtype=np.float32).reshape(len(aspects), len(vector))
        question = Question(query.text, vector, named, found, query.now)
        pool = fetch(question, memory)
        entries = [memory.entries[place] for place in pool]
        evidence = gather(self.index, query.text, vector, found=found, memory=memory, pool=entries, aspects=named)
        return question, pool, evidence


def _best(rows: Rows, scores: Values, allowed: NDArray[np.bool_] | None, k: int) -> tuple[Rows, Values]:
    """The `k` largest scores; of equal ones the first row."""
    if allowed is not None:
        rows, scores = rows[allowed[rows]], scores[allowed[rows]]
    order = np.argsort(-scores, kind="stable")[:k]
    return rows[order], scores[order]


class _Watch:
    """Seconds of stages, from the start or the last mark. `laps`: those of earlier stages."""

    def __init__(self, laps: dict[str, float] | None = None) -> None:
        self.laps = dict(laps or {})
        self._last = perf_counter()

    def lap(self, name: str) -> None:
        now = perf_counter()
        self.laps[name] = self.laps.get(name, 0.0) + now - self._last
        self._last = now
