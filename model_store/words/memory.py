"""Local memory: what the service remembers of one user, in three levels, as a pure function of the user's events.

    record     an item the user chose: "title: attributes (asked for: …)"
    pattern    what the user chose in one *scenario*: a query, or an attribute of items
    profile    the scenarios that the user likes most

Equal sets of events give equal entries, in whatever order the events arrive and however often: memory that grows with
events equals memory that is rebuilt from the log. Texts are templates; a better writer may replace `Writer`. Bounded by
`MemoryLimits`. Needs no torch.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from model_store.words.events import WordEvent
from model_store.words.texts import ItemText, words_of
from model_store.words.vectors import Vectors, unit

Level = Literal["record", "pattern", "profile"]
MAX_TEXT_WORDS = 32


class MemoryLimits(NamedTuple):
    """The newest events are read; of records the newest are kept, of patterns those with most events."""

    events: int = 1000
    records: int = 300
    patterns: int = 80
    support: int = 32  # newest events that an entry names
    scenarios: int = 4  # of one item, from its attributes


@dataclass(frozen=True)
class Entry:
    """`embedding` (D,) float16. `support`: ids of the newest events, newest first; `rows`: their different items.

    `count`: all its events. `utility`: how much more often the user chooses within the scenario than others do, as the
    logarithm of the ratio, shrunk to 0 for few events.
    """

    id: str
    level: Level
    scenario: str
    text: str
    embedding: NDArray[np.float16] = field(repr=False, compare=False)
    support: tuple[str, ...]
    rows: tuple[int, ...]
    t_first: int
    t_last: int
    count: int
    utility: float


class KnownItems(Protocol):
    """What memory needs to know of the items; `WordsIndex` has it."""

    @property
    def texts(self) -> Sequence[ItemText]: ...

    @property
    def vectors(self) -> Vectors:
        """(N, D) of the items' texts."""
        ...

    @property
    def shares(self) -> Mapping[str, float]:
        """Scenario → its share of all events in training."""
        ...


class Writer(Protocol):
    """Writes the text of an entry. Must be a pure function of its arguments."""

    def record(self, item: ItemText, queries: Sequence[str]) -> str: ...

    def pattern(self, scenario: str, count: int, items: Sequence[ItemText]) -> str: ...

    def profile(self, scenarios: Sequence[tuple[str, int]]) -> str: ...


class TemplateWriter:
    """Says what, how often, and by which attribute, in at most `MAX_TEXT_WORDS` words."""

    def record(self, item: ItemText, queries: Sequence[str]) -> str:
        asked = f" (asked for: {', '.join(queries[:3])})" if queries else ""
        return _cut(f"{item.title}: {', '.join(item.attributes[:4])}{asked}" if item.attributes else item.title + asked)

    def pattern(self, scenario: str, count: int, items: Sequence[ItemText]) -> str:
        return _cut(f"{scenario}, {count} times: {', '.join(item.title for item in items[:6])}")

    def profile(self, scenarios: Sequence[tuple[str, int]]) -> str:
        return _cut("mostly " + ", ".join(f"{name} ({count})" for name, count in scenarios[:8]))


def write_memory(
    events: Iterable[WordEvent],
    items: KnownItems,
    encode: Callable[[Sequence[str]], Vectors],
    *,
    limits: MemoryLimits | None = None,
    writer: Writer | None = None,
) -> list[Entry]:
    """The entries of one user: records, newest first; patterns, most events first; one profile. [] without events.

    `encode` gives unit vectors of texts, as the encoder of the bundle does. The embedding of a record is the mean of
    the vectors of its item and queries; that of a pattern the mean of its scenario and items; that of the profile the
    mean of all items. So only queries and scenarios are encoded, no texts of entries.
    """
    limits, writer = limits or MemoryLimits(), writer or TemplateWriter()
    distinct = {event.event_id: event for event in events}
    newest = sorted(distinct.values(), key=lambda event: (event.timestamp, event.event_id), reverse=True)
    newest = newest[: limits.events]
    if not newest:
        return []
    groups = _groups(newest, items, limits)
    asked = sorted({event.query for event in newest if event.query} | {group.scenario for group in groups.patterns})
    vector_of = dict(zip(asked, encode(asked), strict=True)) if asked else {}
    build = _Builder(items, vector_of, writer, limits, len(newest))
    ranked = [(group.scenario, len(group.events)) for group in groups.patterns]
    return [
        *(build.record(group) for group in groups.records),
        *(build.pattern(group) for group in groups.patterns),
        build.profile(newest, ranked),
    ]


def scenarios_of(event: WordEvent, text: ItemText, limit: int) -> list[str]:
    """The query of the event, and attributes of its item. A pattern gathers the events of one scenario."""
    asked = [" ".join(words_of(event.query))] if event.query else []
    return list(dict.fromkeys(name for name in (*asked, *(a.casefold() for a in text.attributes[:limit])) if name))


class _Group(NamedTuple):
    scenario: str
    events: list[WordEvent]  # newest first


class _Groups(NamedTuple):
    records: list[_Group]
    patterns: list[_Group]


def _groups(newest: Sequence[WordEvent], items: KnownItems, limits: MemoryLimits) -> _Groups:
    by_item: dict[int, list[WordEvent]] = {}
    by_scenario: dict[str, list[WordEvent]] = {}
    for event in newest:
        by_item.setdefault(event.row, []).append(event)
        for name in scenarios_of(event, items.texts[event.row], limits.scenarios):
            by_scenario.setdefault(name, []).append(event)
    order = {name: (-len(found), -found[0].timestamp, name) for name, found in by_scenario.items()}
    patterns = sorted(by_scenario, key=order.__getitem__)[: limits.patterns]
    rank = {name: place for place, name in enumerate(sorted(by_scenario, key=order.__getitem__))}
    records = []
    for row, found in list(by_item.items())[: limits.records]:
        names = {name for event in found for name in scenarios_of(event, items.texts[row], limits.scenarios)}
        records.append(_Group(min(names, key=rank.__getitem__, default=""), found))
    return _Groups(records, [_Group(name, by_scenario[name]) for name in patterns])


@dataclass(frozen=True)
class _Builder:
    items: KnownItems
    vector_of: Mapping[str, Vectors]
    writer: Writer
    limits: MemoryLimits
    num_events: int

    def record(self, group: _Group) -> Entry:
        row = group.events[0].row
        queries = list(dict.fromkeys(event.query for event in group.events if event.query))
        text = self.writer.record(self.items.texts[row], queries)
        vectors = [self.items.vectors[row], *(self.vector_of[query] for query in sorted(queries))]
        return self._entry("record", group, str(row), text, vectors)

    def pattern(self, group: _Group) -> Entry:
        rows = _rows(group.events)[: self.limits.support]
        text = self.writer.pattern(group.scenario, len(group.events), [self.items.texts[row] for row in rows])
        mean = unit(self.items.vectors[sorted(rows)].mean(axis=0))
        return self._entry("pattern", group, group.scenario, text, [self.vector_of[group.scenario], mean])

    def profile(self, events: list[WordEvent], ranked: Sequence[tuple[str, int]]) -> Entry:
        vectors = list(self.items.vectors[sorted(_rows(events))])
        return self._entry("profile", _Group("", events), "", self.writer.profile(ranked), vectors)

    def _entry(self, level: Level, group: _Group, name: str, text: str, vectors: Sequence[Vectors]) -> Entry:
        events, shown = group.events, group.events[: self.limits.support]
        return Entry(
            id=f"{level}-{hashlib.blake2b(name.encode(errors='surrogatepass'), digest_size=6).hexdigest()}",
            level=level,
            scenario=group.scenario,
            text=text,
            embedding=unit(np.mean(np.stack(vectors), axis=0, dtype=np.float32)).astype(np.float16),
            support=tuple(event.event_id for event in shown),
            rows=tuple(_rows(shown)),
            t_first=events[-1].timestamp,
            t_last=events[0].timestamp,
            count=len(events),
            utility=self._utility(group) if level != "profile" else 0.0,
        )

    def _utility(self, group: _Group) -> float:
        """log of (share of the user's events + prior) / (share of all events + prior)."""
        count, share = len(group.events), self.items.shares.get(group.scenario, 0.0)
        prior = 1.0 / (self.num_events + 10)
        return float(np.log((count / (self.num_events + 10) + prior) / (share + prior)))


def _rows(events: Sequence[WordEvent]) -> list[int]:
    """Different items, newest first."""
    return list(dict.fromkeys(event.row for event in events))


def _cut(text: str) -> str:
    return " ".join(text.split()[:MAX_TEXT_WORDS])
