"""A situation: a valid target as the language model meets it, and the reward of what the model writes.

    reward = 5 · (NDCG@100 + 0.2 · nearness) + 0.1 · complete + 0.1 · helped

`nearness` is 1 − log(1 + rank) / log(1 + N): without it, most groups of thoughts have equal rewards. `helped`: memory
was used, and NDCG@100 + 0.2 · nearness is larger than with the same ideal item and no memory. The format cannot fail,
so `complete` asks only whether the ideal item ended.

The candidates are those of all aspects that are offered, so each thought about a target ranks the same ones.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from model_store.reasoner.dialogue import NUM_READ, distinct
from model_store.words.answer import Words, WordsQuery
from model_store.words.aspects import Aspect
from model_store.words.evidence import FEATURES, Evidence, LocalMemory
from model_store.words.index import Values
from model_store.words.memory import Entry
from model_store.words.ranker import Ranker
from model_store.words.reasoning import NUM_SHOWN, ChainReasoner, fetch
from model_store.words.selector import Question, entry_features
from model_store.words.vectors import unit
from training.run.stage import progress
from training.words.metrics import ndcg_of_list
from training.words.split import QueryTarget, WordsSplit

RANK_WEIGHT, QUALITY_WEIGHT, SMALL_WEIGHT = 0.2, 5.0, 0.1
_PROFILE, _ASPECTS = FEATURES.index("profile"), FEATURES.index("aspects")


@dataclass
class Situation:
    """`offered`: the aspects; `default`: places of those that the deterministic reasoner takes."""

    target: QueryTarget
    words: Words
    offered: list[Aspect]
    default: list[int]
    memory: LocalMemory
    question: Question
    pool: list[int]
    evidence: Evidence
    is_answer: NDArray[np.bool_]
    _read: dict[tuple[int, ...], tuple[list[int], list[int]]] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        return [aspect.name for aspect in self.offered]

    def entries(self, need: Sequence[int]) -> list[Entry]:
        """What the model reads after it named aspects, best first by the selector."""
        return [self.memory.entries[place] for place in self.places(need)]

    def texts(self, need: Sequence[int]) -> list[str]:
        return [entry.text for entry in self.entries(need)]

    def places(self, need: Sequence[int]) -> list[int]:
        return self._fetched(need)[0]

    def selected(self, need: Sequence[int]) -> list[int]:
        """Places among the entries that the selector chooses."""
        return self._fetched(need)[1]

    def _fetched(self, need: Sequence[int]) -> tuple[list[int], list[int]]:
        key = tuple(sorted(need))
        if key not in self._read:
            question = self._asked(key)
            pool = fetch(question, self.memory)
            if not pool:
                self._read[key] = [], []
            else:
                features = entry_features(question, self.memory, pool)
                order = self.words.selector.order(features)[:NUM_READ]
                chosen = self.words.selector.choose(features)
                self._read[key] = [pool[place] for place in order], [order.index(p) for p in chosen if p in order]
        return self._read[key]

    def _asked(self, need: Sequence[int]) -> Question:
        named = [self.offered[place].embedding for place in need]
        vectors = np.array(named, dtype=np.float32).reshape(len(named), len(self.question.vector))
        return self.question._replace(aspects=vectors)

    def features(self, need: Sequence[int], used: Sequence[int], ideal: str | None) -> Values:
        """(F, C) with the memories used; `ideal` None: the mean of these memories is the ideal item."""
        at = {place: number for number, place in enumerate(self.pool)}
        read = self.places(need)
        found = self.evidence.with_chosen([at[read[place]] for place in used])
        items = self.words.index.vectors[self.evidence.rows]
        aspects = self._asked(need).aspects
        found[_ASPECTS] = items @ unit(aspects.mean(axis=0)) if len(aspects) else 0
        if ideal is not None:
            found[_PROFILE] = items @ self.words.index.encoder.encode([ideal or self.target.query])[0]
        return found

    def ranked(self, weights: Values, spread: Values, features: Values) -> "Ranking":
        """By weights (X, F) as in `Ranker`."""
        scores = np.asarray((self.evidence.context @ weights / spread) @ features, dtype=np.float32)
        order = np.argsort(-scores, kind="stable")
        ndcg = ndcg_of_list(self.evidence.rows[order], self.target.answers, 100)
        return Ranking(int(np.argmax(self.is_answer[order])), ndcg, len(self.words.index))


class Ranking(NamedTuple):
    """`rank` of the first answer, from 0."""

    rank: int
    ndcg: float
    num_items: int

    @property
    def quality(self) -> float:
        """NDCG@100 + 0.2 · nearness."""
        return self.ndcg + RANK_WEIGHT * (1 - float(np.log1p(self.rank) / np.log1p(self.num_items)))


@dataclass(frozen=True)
class Reward:
    """Rewards of thoughts, with fixed weights of the ranking: those that use memory."""

    ranker: Ranker

    def ranking(self, situation: Situation, need: Sequence[int], used: Sequence[int], ideal: str | None) -> Ranking:
        """`ideal` None: the mean of the memories used."""
        return situation.ranked(self.ranker.joint, self.ranker.spread, situation.features(need, used, ideal))

    def quality(self, situation: Situation, need: Sequence[int], used: Sequence[int], ideal: str | None) -> float:
        return self.ranking(situation, need, used, ideal).quality

    def without_memory(self, situation: Situation) -> float:
        """The quality of the query alone."""
        return situation.ranked(self.ranker.alone, self.ranker.spread, situation.features([], [], None)).quality

    def helped(self, situation: Situation, need: Sequence[int], used: Sequence[int], ideal: str) -> bool:
        """Whether the memories that were used raise the quality of the same ideal item."""
        with_memory = self.quality(situation, need, used, ideal)
        return bool(used) and with_memory > self.quality(situation, need, [], ideal) + 1e-9

    def parts(
        self, situation: Situation, need: Sequence[int], used: Sequence[int], ideal: str, *, is_ended: bool
    ) -> dict[str, float]:
        """Weighted; the reward is their sum."""
        return {
            "quality": QUALITY_WEIGHT * self.quality(situation, need, used, ideal),
            "complete": SMALL_WEIGHT * float(is_ended),
            "helped": SMALL_WEIGHT * float(self.helped(situation, need, used, ideal)),
        }


def make_situations(
    split: WordsSplit, words: Words, targets: Sequence[QueryTarget], desc: str = "situations"
) -> Iterator[Situation]:
    """Those that have memories and an answer among the candidates."""
    for target in progress(targets, desc=desc, unit="target"):
        memory = words.remember(split.history(target.user, target.timestamp))
        if len(memory) and (made := _situation(words, target, memory)).is_answer.any():
            yield made


def _situation(words: Words, target: QueryTarget, memory: LocalMemory) -> Situation:
    vector = words.index.encoder.encode([target.query])[0]
    shown = words.aspects.nearest(vector, NUM_SHOWN) if len(words.aspects) else []
    offered = distinct([aspect for aspect, _ in shown])
    usual = {aspect.id for aspect in ChainReasoner().aspects(target.query, shown)}
    query = WordsQuery(target.query, target.timestamp, memory)
    question, pool, evidence = words.consider(query, vector, memory, offered)
    return Situation(
        target=target,
        words=words,
        offered=offered,
        default=[place for place, aspect in enumerate(offered) if aspect.id in usual],
        memory=memory,
        question=question,
        pool=pool,
        evidence=evidence,
        is_answer=np.isin(evidence.rows, target.answers),
    )
