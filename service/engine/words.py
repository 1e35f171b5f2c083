"""Answers queries in words, in the process of the model: local memory is made, levels of reasoning are chosen by time.

    full      the ideal item is written, too, by the     retrieve   memories are chosen
              language model if the bundle has one
    off       BM25, vectors and popularity               lexical    BM25 alone

In: an opened bundle with words, and messages. Out: messages. Local memory is computed from the events of each message
and forgotten with it. A query that asks for more than its time allows gets the highest level that fits.
"""

import hashlib
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from model_store.reasoner.language import LanguageReasoner
from model_store.words.answer import Reasoning, Words, WordsAnswer, WordsQuery
from model_store.words.encoders import TextEncoder
from model_store.words.events import WordEvent
from model_store.words.live import with_titles
from model_store.words.memory import Entry, write_memory
from model_store.words.texts import item_text, query_terms
from model_store.words.vectors import Vectors
from service.engine.messages import (
    AskWords,
    FetchedAspect,
    MemoryEntry,
    MemoryRead,
    ReadMemory,
    Result,
    WordsAnswered,
    WordsLevel,
    unpack_rows,
)

_REASONING: tuple[Reasoning, ...] = ("off", "retrieve", "full")
_LEVELS: tuple[WordsLevel, ...] = ("lexical", *_REASONING)
_MARGIN = 2.0  # of the mean time of a level: memories differ in size
_MARGIN_WITH_MODEL = 1.5  # of a dialogue with a language model, whose tokens are bounded
_NEWEST = 0.1  # weight of the newest time in the mean
_NUM_CACHED = 20_000  # vectors: 30 MB with 384 numbers each


class CachedEncoder:
    """An encoder that keeps the vectors of texts, because with a transformer each costs milliseconds.

    Scenarios are shared by users, and queries come again. Keeps digests of the texts, so no user's words stay here.
    """

    def __init__(self, encoder: TextEncoder) -> None:
        self._encoder = encoder
        self._vectors: OrderedDict[bytes, Vectors] = OrderedDict()  # the least recently used first

    @property
    def dimension(self) -> int:
        return self._encoder.dimension

    def encode(self, texts: Sequence[str]) -> Vectors:
        digests = [hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=16).digest() for text in texts]
        missing = {digest: text for digest, text in zip(digests, texts, strict=True) if digest not in self._vectors}
        if missing:
            self._vectors |= zip(missing, self._encoder.encode(list(missing.values())), strict=True)
        for digest in digests:
            self._vectors.move_to_end(digest)
        found = [self._vectors[digest] for digest in digests]
        while len(self._vectors) > _NUM_CACHED:
            self._vectors.popitem(last=False)
        return np.stack(found) if found else np.zeros((0, self.dimension), dtype=np.float32)

    def save(self, directory: Path) -> None:
        self._encoder.save(directory)


class WordsRunner:
    """Single-threaded, as `Words` is."""

    def __init__(self, words: Words, reasoner: LanguageReasoner | None = None) -> None:
        self._reasoner = reasoner
        self.words = replace(words, index=replace(words.index, encoder=CachedEncoder(words.index.encoder)))
        self._num_trained, self._titles = len(words.index), dict[int, str]()
        self.seconds = dict.fromkeys(_LEVELS, 0.0)  # mean time of an answer

    def warm_up(self, rows: Sequence[int]) -> None:
        """Answers on each level for a user who had these items, so that its time is known."""
        text, num_items = " ".join(self.words.index.texts[row].title for row in rows)[:100], len(self.words.index)
        allowed, times = np.packbits(np.ones(num_items, bool)).tobytes(), list(range(len(rows)))
        for level in _REASONING:
            for _ in range(2):  # the first time is that of lazy initialisation
                self.seconds[level] = 0.0
                asked = AskWords(
                    id=0,
                    query=text,
                    reasoning=level,
                    num_results=10,
                    now=len(rows),
                    deadline=float("inf"),
                    rows=list(rows),
                    times=times,
                    queries=[""] * len(rows),
                    allowed=allowed,
                    num_items=num_items,
                )
                self._answer(asked)

    def read_titles(self, titles: Sequence[str]) -> None:
        """Keeps the vectors of titles for `put_titles`."""
        self.words.index.encoder.encode([item_text(title, {}).sentence for title in titles])

    def put_titles(self, titles: Mapping[int, str]) -> None:
        """Takes in items by catalogue row, new rows in order. An item of the bundle keeps the text of its training."""
        changed = {
            row: title for row, title in titles.items() if row >= self._num_trained and not self._has(row, title)
        }
        self._titles |= changed
        if changed:
            self.words = with_titles(self.words, changed)

    def _has(self, row: int, title: str) -> bool:
        return self._titles.get(row) == title

    def answer(self, asked: Sequence[AskWords]) -> list[Result]:
        return [self._answer(each) for each in asked]

    def read_memory(self, asked: Sequence[ReadMemory]) -> list[Result]:
        return [MemoryRead(each.id, [_shown(entry) for entry in self._entries(each)]) for each in asked]

    def _answer(self, asked: AskWords) -> WordsAnswered:
        began = time.monotonic()
        level = self._level(asked, began)
        answered = self._lexical(asked) if level == "lexical" else self._in_words(asked, level)
        seconds = time.monotonic() - began
        self.seconds[level] += (_NEWEST if self.seconds[level] else 1.0) * (seconds - self.seconds[level])
        return answered

    def _level(self, asked: AskWords, now: float) -> WordsLevel:
        """The highest level, at most the one that was asked for, that is expected to end in time."""
        possible = _LEVELS[1 : _LEVELS.index(asked.reasoning) + 1]
        in_time = [level for level in possible if now + self._margin(level) * self.seconds[level] <= asked.deadline]
        return in_time[-1] if in_time else "lexical"

    def _margin(self, level: WordsLevel) -> float:
        return _MARGIN_WITH_MODEL if level == "full" and self._reasoner is not None else _MARGIN

    def _lexical(self, asked: AskWords) -> WordsAnswered:
        began = time.perf_counter()
        scores = np.where(self._allowed(asked), self.words.index.lexicon.scores(query_terms(asked.query)), 0.0)
        best = np.argsort(-scores, kind="stable")[: asked.num_results]
        best = best[scores[best] > 0]
        timings_s = {"search": time.perf_counter() - began}
        return WordsAnswered(asked.id, best.tolist(), scores[best].tolist(), "lexical", [], [], [], None, timings_s)

    def _in_words(self, asked: AskWords, level: Reasoning) -> WordsAnswered:
        began, memory = time.perf_counter(), None
        if level != "off":
            memory = self.words.read(self._entries(asked))
        remember_s = time.perf_counter() - began
        query = WordsQuery(asked.query, asked.now, memory, self._allowed(asked))
        (answer,) = self.words.answer([query], asked.num_results, reasoning=level, reasoner=self._reasoner)
        return _message(asked.id, level, answer, {"remember": remember_s, **answer.timings_s})

    def _entries(self, asked: AskWords | ReadMemory) -> list[Entry]:
        """Local memory. The id of an event is its place; items that the words do not know are left out."""
        places = [place for place, row in enumerate(asked.rows) if row < len(self.words.index)]
        events = [
            WordEvent(f"{place:06}", asked.rows[place], asked.times[place], asked.queries[place]) for place in places
        ]
        return write_memory(events, self.words.index, self.words.index.encoder.encode)

    def _allowed(self, asked: AskWords) -> np.ndarray:
        num_known = len(self.words.index)
        return unpack_rows(asked.allowed, asked.num_items, max(asked.num_items, num_known))[:num_known]


def _message(number: int, level: WordsLevel, answer: WordsAnswer, timings_s: dict[str, float]) -> WordsAnswered:
    pairs = zip(answer.aspects, answer.for_aspects, strict=True)
    return WordsAnswered(
        id=number,
        rows=answer.rows.tolist(),
        scores=answer.scores.tolist(),
        level=level,
        aspects=[
            FetchedAspect(aspect.name, aspect.scenario, aspect.description, aspect.num_users, [e.id for e in entries])
            for aspect, entries in pairs
        ],
        fetched=[_shown(entry) for entry in answer.fetched],
        used=[entry.id for entry in answer.memories],
        profile=None if answer.profile is None else answer.profile.text,
        timings_s=timings_s,
    )


def _shown(entry: Entry) -> MemoryEntry:
    places = [int(event_id) for event_id in entry.support]
    return MemoryEntry(
        entry.id, entry.level, entry.scenario, entry.text, places, entry.count, entry.t_first, entry.t_last
    )
