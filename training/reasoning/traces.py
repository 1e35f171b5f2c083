"""Traces: dialogues for supervised learning, written by the deterministic steps with knowledge of the truth.

For each situation the aspects, the memories and the ideal item with the largest reward are searched among a few
candidates. The ideal item may only say what can be known: the title of the true item where at least half of its words
are in the memory used, and otherwise those of its words that the query or this memory has. A trace is kept if the truth
ranks among the first ten with it, and higher than for the query alone: usefulness is verified and not assumed.
"""

from collections.abc import Sequence
from typing import NamedTuple

from model_store.reasoner.dialogue import MAX_NEED, MAX_USED
from model_store.words.memory import Entry
from model_store.words.texts import words_of
from training.reasoning.situations import Reward, Situation
from training.run.stage import progress

_LEAST_GAIN, _FIRST = 1e-6, 10
_SUPPORTED, _SHORT = 0.5, 3  # share of the words of a title that memories must have; shorter words do not count


class Trace(NamedTuple):
    """`gain`: in quality, over the query alone. `rank`: of the first true item, from 0."""

    situation: Situation
    need: list[int]
    used: list[int]
    ideal: str
    gain: float
    rank: int


def verified_traces(situations: Sequence[Situation], reward: Reward) -> list[Trace]:
    """The traces that raise the rank of the truth."""
    made = [_trace(situation, reward) for situation in progress(situations, desc="traces", unit="trace")]
    return [trace for trace in made if trace.gain > _LEAST_GAIN and trace.rank < _FIRST]


def _trace(situation: Situation, reward: Reward) -> Trace:
    query, need = situation.target.query, _need(situation, reward)
    entries = situation.entries(need)
    options = [([place], text) for place, entry in enumerate(entries) for text in _ideals(situation, [entry])]
    options.append(([], query))
    quality = [reward.quality(situation, need, used, text) for used, text in options]
    best = max(range(len(options)), key=quality.__getitem__)  # of equal ones the first, so one with memory
    used, ideal = options[best]
    used = _further(situation, need, used, ideal, reward) if used else used
    found = reward.ranking(situation, need, used, ideal)
    return Trace(situation, need, used, ideal, found.quality - reward.without_memory(situation), found.rank)


def _need(situation: Situation, reward: Reward) -> list[int]:
    """The aspects that fetch and weigh best, each tried alone; those of the deterministic reasoner if none helps."""
    without = _best_memory(situation, [], reward)
    gains = {place: _best_memory(situation, [place], reward) - without for place in range(len(situation.offered))}
    helping = [place for place in gains if gains[place] > _LEAST_GAIN]
    return sorted(helping, key=lambda place: -gains[place])[:MAX_NEED] or situation.default[:1]


def _best_memory(situation: Situation, need: Sequence[int], reward: Reward) -> float:
    options = [[], *([place] for place in range(len(situation.places(need))))]
    return max(reward.quality(situation, need, used, None) for used in options)


def _further(situation: Situation, need: Sequence[int], used: list[int], ideal: str, reward: Reward) -> list[int]:
    """Further memories, one after the other, as long as one raises the quality."""
    found = reward.quality(situation, need, used, ideal)
    while len(used) < MAX_USED:
        left = [place for place in range(len(situation.places(need))) if place not in used]
        tried = {place: reward.quality(situation, need, [*used, place], ideal) for place in left}
        best = max(tried, key=tried.__getitem__, default=None)
        if best is None or tried[best] <= found + _LEAST_GAIN:
            break
        used, found = [*used, best], tried[best]
    return used


def _ideals(situation: Situation, memories: Sequence[Entry]) -> list[str]:
    """Candidates of the ideal item, the most exact first."""
    known = {word for entry in memories for word in words_of(f"{entry.scenario} {entry.text}")}
    asked = known | set(words_of(situation.target.query))
    texts = situation.words.index.texts
    titles, supported = [], []
    for row in situation.target.answers.tolist():
        words = [word for word in words_of(texts[row].title) if len(word) > _SHORT]
        if words and sum(word in known for word in words) >= _SUPPORTED * len(words):
            titles.append(texts[row].title)
        # What others asked for describes an item only where nothing else does.
        described = texts[row]._replace(phrases=()) if texts[row].attributes else texts[row]
        shared = [word for word in dict.fromkeys(words_of(described.sentence)) if word in asked]
        supported.append(" ".join(shared[:8]))
    return [text for text in dict.fromkeys([*titles, *supported, situation.target.query]) if text]
