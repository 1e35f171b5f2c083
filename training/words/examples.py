"""Examples: for each target the evidence on all candidates, and the pools of memories that rows choose from.

In: a split, an index, global memory, targets. Out: `Example`s. All pools of a target share one evidence, so every row
ranks the same candidates. The memory of a target is made of its user's history before the day of the target.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from model_store.words.aspects import Aspect, GlobalMemory
from model_store.words.evidence import Evidence, LocalMemory, gather
from model_store.words.index import Rows, Values, WordsIndex
from model_store.words.memory import Entry, write_memory
from model_store.words.reasoning import ChainReasoner, fetch, nearest_aspects
from model_store.words.selector import SELECTOR_FEATURES, Question, entry_features
from model_store.words.vectors import Vectors, unit
from training.run.stage import progress
from training.words.split import QueryTarget, WordsSplit

LAST = 10
PLAIN_POOL = 12  # entries nearest to the query alone
POOLS = ("chain", "without_aspects", "by_query", "top_three", "random", "profile", "last_ten")
_WITHOUT_ASPECTS = ("without_aspects", "by_query")


@dataclass(frozen=True)
class Example:
    """`is_answer` (C,) of the candidates; `pools`: name → places in `evidence.pool`; `inputs` (1 + n, S) of all.

    `milliseconds` it took to make the evidence with the pools of all rows.
    """

    target: QueryTarget
    evidence: Evidence
    is_answer: NDArray[np.bool_]
    pools: dict[str, list[int]]
    inputs: Values
    milliseconds: float

    def selector_inputs(self, pool: str) -> Values:
        """(1 + n, S) of the null choice and one pool; the cosine with aspects is zero where the pool knows none."""
        inputs = self.inputs[[0, *(1 + place for place in self.pools[pool])]]
        if pool in _WITHOUT_ASPECTS:
            inputs = inputs.copy()
            inputs[:, SELECTOR_FEATURES.index("aspect_cosine")] = 0
        return inputs


@dataclass(frozen=True)
class ExampleMaker:
    """Makes examples one after the other. `seed` draws the random memories."""

    split: WordsSplit
    index: WordsIndex
    known: GlobalMemory
    seed: int = 0
    _known_vectors: dict[str, Vectors] = field(default_factory=dict)

    def make(self, targets: Sequence[QueryTarget], desc: str) -> Iterator[Example]:
        """One example for each target, in order."""
        users = {target.user for target in targets}
        asked = (self.split.queries[place] for place in np.flatnonzero(np.isin(self.split.users, sorted(users))))
        texts = list(dict.fromkeys(query for query in asked if query))
        self._encoded(texts, desc)
        written: dict[tuple[int, int], tuple[LocalMemory, list[Entry]]] = {}
        for number, target in enumerate(progress(targets, desc=desc, unit="target")):
            key = target.user, target.timestamp // 86_400
            if key not in written:
                if len(written) > 64:
                    written.clear()
                written[key] = self._memory(target)
            yield self._example(target, self._encode([target.query])[0], written[key], number)

    def _encoded(self, texts: Sequence[str], desc: str) -> None:
        """Encode many texts at once, with progress; later calls find their vectors."""
        for start in progress(range(0, len(texts), 512), desc=f"{desc}: queries", unit="batch"):
            self._encode(texts[start : start + 512])

    def _encode(self, texts: Sequence[str]) -> Vectors:
        """As the encoder of the index, which reads each text only once."""
        new = [text for text in texts if text not in self._known_vectors]
        if new:
            self._known_vectors.update(zip(new, self.index.encoder.encode(new), strict=True))
        return np.stack([self._known_vectors[text] for text in texts])

    def _memory(self, target: QueryTarget) -> tuple[LocalMemory, list[Entry]]:
        history = self.split.history(target.user, target.timestamp)
        memory = LocalMemory(write_memory(history, self.index, self._encode), self.index.encoder.dimension)
        return memory, [self._last(memory)] if len(memory) else []

    def _last(self, memory: LocalMemory) -> Entry:
        """The last ten items as one entry."""
        newest, rows = memory.entries[0], memory.rows[:LAST]
        vector = unit(self.index.vectors[rows].mean(axis=0))
        return Entry("last", "pattern", "", "", vector.astype(np.float16), (), tuple(rows), 0, newest.t_last, LAST, 0.0)

    def _example(
        self, target: QueryTarget, vector: Vectors, written: tuple[LocalMemory, list[Entry]], number: int
    ) -> Example:
        started = time.perf_counter()
        memory, last = written
        aspects = nearest_aspects(target.query, vector, self.known, ChainReasoner())
        question = self._question(target, vector, aspects)
        chosen = self._places(question, memory, np.random.default_rng((self.seed, number)))
        pool = sorted({place for places in chosen.values() for place in places})
        evidence = gather(
            self.index,
            target.query,
            vector,
            found=question.found,
            memory=memory,
            pool=[*(memory.entries[place] for place in pool), *last],
            aspects=question.aspects,
        )
        at = {place: number for number, place in enumerate(pool)}
        pools = {name: [at[place] for place in places] for name, places in chosen.items()}
        pools["last_ten"] = [len(pool)] if last else []
        return Example(
            target=target,
            evidence=evidence,
            is_answer=np.isin(evidence.rows, target.answers),
            pools=pools,
            inputs=entry_features(question, memory, pool),
            milliseconds=1000 * (time.perf_counter() - started),
        )

    def _question(self, target: QueryTarget, vector: Vectors, aspects: Sequence[Aspect]) -> Question:
        named = np.array([aspect.embedding for aspect in aspects], dtype=np.float32).reshape(len(aspects), len(vector))
        return Question(target.query, vector, named, self.index.find(target.query, vector), target.timestamp)

    def _places(self, question: Question, memory: LocalMemory, rng: np.random.Generator) -> dict[str, list[int]]:
        if not len(memory):
            return {name: [] for name in POOLS if name != "last_ten"}
        nearest = np.argsort(-(memory.embeddings @ question.vector), kind="stable")[:PLAIN_POOL].tolist()
        return {
            "chain": fetch(question, memory),
            "without_aspects": fetch(question._replace(aspects=question.aspects[:0]), memory),
            "by_query": nearest,
            "top_three": nearest[:3],
            "random": sorted(rng.permutation(len(memory))[:3].tolist()),
            "profile": [len(memory) - 1],
        }


def ranked_rows(rows: Rows, scores: Values, count: int) -> Rows:
    """The best rows, best first; of equal scores the first."""
    return rows[np.argsort(-scores, kind="stable")[:count]]
