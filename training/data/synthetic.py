"""The synthetic bookshop: a small data set whose right answers are known and need a long memory.

The shop sells 180 items in six *themes* (detective, space, garden, sea, kitchen, ghost). A theme has

* four *series* of three numbered volumes: "Inspector Quill 2: The Borrowed Umbrella",
* sixteen *stand-alone* books: "Fingerprints in the Jam",
* two *cues*, small things that are sold at the till: "Rainy Evening Tea Sampler".

Readers mostly read stand-alone books, several of one theme after the other, and no book twice. Now and then a reader
starts a series with one volume, sometimes two in a row, which shows the model what a next volume is. A reader has at
most one series of a theme. Later comes a cue of that theme, directly followed by the next volume of the reader's
series. This is an *echo*; there is one for each series. Cues occur nowhere else.

* A *near* echo comes less than 10 events after the latest volume. The window of recent items contains that volume, so
  a model that sees only the window learns the rule "after a cue, continue the series".
* A *far* echo comes at least 12 events after it. The window contains the cue, which tells the theme, but no item of the
  series. Which of four series and which volume comes next is a guess that is right at most one time in six. Only one
  old interaction, the *source* of the echo, tells it.

One event in ten of a long history is an echo, and half of the echoes are far. Most readers have 24 to 44 events, and
they begin at different times within two years, so that every period of a time split contains readers in the middle of
their histories. 15 % are new readers with 3 to 15 events.

In: a seed. Out: a `Dataset` whose items have the attributes theme, kind, series and volume; `find_echoes` lists the
echoes. Knows nothing of models.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
import polars as pl

from training.data.dataset import DataError, Dataset, clean_dataset, dataset_stats, save_dataset
from training.data.synthetic_titles import THEMES, Theme

NUM_VOLUMES = 3
FIRST_DAY_S = 1_672_531_200  # 2023-01-01
SPAN_S = 2 * 365 * 24 * 3600
LONG_LENGTHS, SHORT_LENGTHS, SHORT_SHARE = (24, 44), (3, 15), 0.15
NEAR_GAPS, FAR_GAP = range(3, 10), 12  # events from the source to the echo; 10 and 11 do not occur
FAR_RATE, NEAR_RATE, START_RATE, SWITCH_RATE = 0.7, 0.12, 0.7, 0.5
STREAK_LENGTHS = (1, 1, 1, 1, 2)
SUBTITLE_SHIFTS = (0, 3)


def synthetic_dataset(num_users: int = 1500, seed: int = 0) -> Dataset:
    """Equal arguments give equal data; more users leave the first ones unchanged. Raises DataError."""
    if num_users < 1 or seed < 0:
        raise DataError(f"{num_users} users with seed {seed}: needs at least 1 user and a seed ≥ 0")
    items = synthetic_items()
    shelf = _Shelf(items)
    histories = [_history(shelf, np.random.default_rng((seed, user))) for user in range(num_users)]
    interactions = pl.DataFrame(
        {
            "user_id": [f"reader-{user:05d}" for user, (rows, _) in enumerate(histories) for _ in rows],
            "item_id": items["item_id"].gather([row for rows, _ in histories for row in rows]),
            "timestamp": np.concatenate([times for _, times in histories]),
        }
    )
    return clean_dataset("synthetic", interactions, items)[0]


def synthetic_items() -> pl.DataFrame:
    """Columns item_id, title, theme, kind (series | standalone | cue), series, volume (null if none)."""
    rows = [row for theme in THEMES for row in _theme_items(theme)]
    titles = [row[0] for row in rows]
    ids = ["".join(c if c.isalnum() else " " for c in title.lower()).split() for title in titles]
    frame = pl.DataFrame(rows, schema=["title", "theme", "kind", "series", "volume"], orient="row")
    return frame.insert_column(0, pl.Series("item_id", ["-".join(words) for words in ids]))


def find_echoes(dataset: Dataset) -> pl.DataFrame:
    """One row for each echo: user_id, its position, and source_position, that of the latest earlier volume.

    Positions are the same in the histories of a split if the split left out no rare item. With a few hundred users no
    item is rare.
    """
    position = pl.int_range(pl.len(), dtype=pl.Int64)
    return (
        dataset.interactions.join(dataset.items, on="item_id", how="left", maintain_order="left")
        .with_columns(
            position=position.over("user_id"),
            cued_theme=pl.when(pl.col("kind") == "cue").then("theme").shift(1).over("user_id"),
        )
        .filter(pl.col("kind") == "series")
        .with_columns(source_position=pl.col("position").shift(1).over("user_id", "series"))
        .filter((pl.col("cued_theme") == pl.col("theme")) & pl.col("source_position").is_not_null())
        .select("user_id", "position", "source_position")
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m training.data.synthetic", description="Make the bookshop data set."
    )
    parser.add_argument("--out", type=Path, required=True, help="directory of the data set to write")
    parser.add_argument("--users", type=int, default=1500, help="number of readers (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="equal seeds make equal data (default: %(default)s)")
    args = parser.parse_args(argv)
    try:
        dataset = synthetic_dataset(args.users, args.seed)
        save_dataset(dataset, args.out, source={"synthetic": True, "users": args.users, "seed": args.seed})
    except (DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    echoes = find_echoes(dataset)
    far = int((echoes["position"] - echoes["source_position"] >= FAR_GAP).sum())
    print(json.dumps({"out": str(args.out), **dataset_stats(dataset), "echoes": echoes.height, "far_echoes": far}))
    return 0


T = TypeVar("T")
Row = tuple[str, str, str, str | None, int | None]


def _theme_items(theme: Theme) -> list[Row]:
    rows: list[Row] = [(title, theme.name, "standalone", None, None) for title in theme.standalones]
    rows += [(title, theme.name, "cue", None, None) for title in theme.cues]
    for number, series in enumerate(theme.series):
        for volume in range(1, NUM_VOLUMES + 1):
            subtitle = _subtitle(theme, number * NUM_VOLUMES + volume - 1)
            rows.append((f"{series} {volume}: {subtitle}", theme.name, "series", series, volume))
    return rows


def _subtitle(theme: Theme, number: int) -> str:
    """The 12 subtitles of a theme differ: each pass over the adjectives is shifted against the nouns."""
    turn, adjective = divmod(number, len(theme.adjectives))
    noun = (adjective + SUBTITLE_SHIFTS[turn]) % len(theme.nouns)
    return f"The {theme.adjectives[adjective]} {theme.nouns[noun]}"


class _Shelf:
    """Item rows by theme: `books[theme]`, `cues[theme]`, `volumes[theme][series]`."""

    def __init__(self, items: pl.DataFrame) -> None:
        rows = items.with_row_index("row")
        self.books = [self._rows(rows, theme, "standalone") for theme in THEMES]
        self.cues = [self._rows(rows, theme, "cue") for theme in THEMES]
        volumes = [self._rows(rows, theme, "series") for theme in THEMES]
        self.volumes = [[v[i : i + NUM_VOLUMES] for i in range(0, len(v), NUM_VOLUMES)] for v in volumes]

    @staticmethod
    def _rows(rows: pl.DataFrame, theme: Theme, kind: str) -> list[int]:
        chosen = (pl.col("theme") == theme.name) & (pl.col("kind") == kind)
        return rows.filter(chosen)["row"].to_list()


@dataclass
class _StartedSeries:
    """A reader's series of one theme: its unread volumes, and the position of the latest volume that was read."""

    unread: list[int]
    last_position: int = -1


@dataclass
class _Reader:
    """Draws the history of one reader, event by event."""

    shelf: _Shelf
    rng: np.random.Generator
    length: int
    items: list[int] = field(default_factory=list)
    started: dict[int, _StartedSeries] = field(default_factory=dict)  # by theme

    def __post_init__(self) -> None:
        self.unread_books = [list(books) for books in self.shelf.books]
        self.theme = int(self.rng.integers(len(THEMES)))

    def step(self) -> None:
        chance = self.rng.random()
        far, near = self._open(range(FAR_GAP, self.length)), self._open(NEAR_GAPS)
        if far and chance < FAR_RATE:
            self._echo(self._pick(far))
        elif near and FAR_RATE <= chance < FAR_RATE + NEAR_RATE:
            self._echo(self._pick(near))
        elif self.theme not in self.started and chance > 1 - START_RATE:
            self._start()
        else:
            self._read_standalone()

    def _open(self, gaps: range) -> list[int]:
        """Themes whose next volume would come with a gap in `gaps` if a cue came now."""
        position = len(self.items) + 1
        if position >= self.length:
            return []
        return [t for t, series in self.started.items() if series.unread and position - series.last_position in gaps]

    def _echo(self, theme: int) -> None:
        self.items.append(self._pick(self.shelf.cues[theme]))
        self._read_volume(theme)
        self.started[theme].unread.clear()  # one echo per series, so that its source is unique
        self.theme = theme

    def _start(self) -> None:
        volumes = self._pick(self.shelf.volumes[self.theme])
        first = int(self.rng.integers(NUM_VOLUMES - 1))
        self.started[self.theme] = _StartedSeries(unread=volumes[first:])
        for _ in range(min(self._pick(STREAK_LENGTHS), self.length - len(self.items))):
            self._read_volume(self.theme)

    def _read_volume(self, theme: int) -> None:
        series = self.started[theme]
        series.last_position = len(self.items)
        self.items.append(series.unread.pop(0))

    def _read_standalone(self) -> None:
        if self.rng.random() < SWITCH_RATE:
            self.theme = int(self.rng.integers(len(THEMES)))
        while not (books := self.unread_books[self.theme]):
            self.theme = int(self.rng.integers(len(THEMES)))
        self.items.append(books.pop(int(len(books) * self.rng.random() ** 1.5)))  # the first are more popular

    def _pick(self, choices: Sequence[T]) -> T:
        return choices[int(len(choices) * self.rng.random())]


def _history(shelf: _Shelf, rng: np.random.Generator) -> tuple[list[int], np.ndarray]:
    """The item rows and the times of one reader."""
    shortest, longest = SHORT_LENGTHS if rng.random() < SHORT_SHARE else LONG_LENGTHS
    reader = _Reader(shelf, rng, length=int(rng.integers(shortest, longest + 1)))
    while len(reader.items) < reader.length:
        reader.step()
    return reader.items, _times(rng, reader.length)


def _times(rng: np.random.Generator, count: int) -> np.ndarray:
    """Strictly increasing seconds within a random part of the two years, at least a tenth of them."""
    begin = rng.uniform(0, 0.7 * SPAN_S)
    end = rng.uniform(begin + 0.1 * SPAN_S, SPAN_S)
    pauses = np.cumsum(rng.exponential(size=count))
    return FIRST_DAY_S + (begin + pauses / pauses[-1] * (end - begin - count)).astype(np.int64) + np.arange(count)


if __name__ == "__main__":
    sys.exit(main())
