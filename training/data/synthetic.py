"""A small bookshop where the right answer is provable, and only a long memory knows it.

The shop sells 180 items in six *themes* (detective, space, garden, sea, kitchen, ghost). A theme has

* four *series* of three ordered volumes: "Inspector Quill 2: The Borrowed Umbrella",
* sixteen *stand-alone* books: "Fingerprints in the Jam",
* two *cues*, things picked up on the way to the till: "Rainy Evening Tea Sampler".

A reader's life is mostly stand-alone books, in stretches of one theme, none of them twice. Now and then a
reader starts a series: one volume, sometimes two in a row, which teaches what a next volume is. A reader has
one series of a theme, never two. Later comes a cue of that theme, and right after it the next volume of the
reader's series: an *echo*, once for each series. Cues occur nowhere else.

* A *near* echo comes less than 10 events after the latest volume. That volume stands in the window of recent
  items, so a model that sees only the window learns the rule "after a cue, continue the series".
* A *far* echo comes at least 12 events after it. The window shows the cue, hence the theme, but no item of
  the series: which of four series and which volume is a guess that is right one time in six at best.
  Only one old interaction, the echo's *source*, knows.

One event in ten of a long history is an echo, and half of the echoes are far. Most readers have 24 to 44
events and begin at different times of the two years, so that every period of a time split finds readers in
the middle of their lives. 15 % are new readers with 3 to 15 events.

In: a seed. Out: a `Dataset` whose items carry theme, kind, series and volume; `find_echoes` tells the truth
about it. Knows nothing of models.
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
NEAR_GAPS, FAR_GAP = range(3, 10), 12  # from the source to the echo; gaps between them do not occur
FAR_RATE, NEAR_RATE, START_RATE, SWITCH_RATE = 0.7, 0.12, 0.7, 0.5
STREAK_LENGTHS = (1, 1, 1, 1, 2)
SUBTITLE_SHIFTS = (0, 3)


def synthetic_dataset(num_users: int = 1500, seed: int = 0) -> Dataset:
    """Equal arguments give equal data; with more users the first ones stay the same."""
    if num_users < 1 or seed < 0:
        raise DataError(f"a world of {num_users} users with seed {seed}: needs at least 1 user and a seed from 0 on")
    items = synthetic_items()
    shelf = _Shelf(items)
    lives = [_life(shelf, np.random.default_rng((seed, user))) for user in range(num_users)]
    interactions = pl.DataFrame(
        {
            "user_id": [f"reader-{user:05d}" for user, (rows, _) in enumerate(lives) for _ in rows],
            "item_id": items["item_id"].gather([row for rows, _ in lives for row in rows]),
            "timestamp": np.concatenate([times for _, times in lives]),
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
    """user_id, position of each echo in the user's history, source_position of the latest earlier volume.

    Positions are those of a split's histories as long as the split dropped no rare item, which holds from a
    few hundred users on.
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
    """Each of a theme's 12 differs: every round through the adjectives meets other nouns."""
    turn, adjective = divmod(number, len(theme.adjectives))
    noun = (adjective + SUBTITLE_SHIFTS[turn]) % len(theme.nouns)
    return f"The {theme.adjectives[adjective]} {theme.nouns[noun]}"


class _Shelf:
    """Rows of the items by theme: books and cues in a list, volumes as [theme][series][volume - 1]."""

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
class _Reading:
    """A reader's series of one theme: what is left of it, and where in life the latest volume stands."""

    unread: list[int]
    touched: int = -1


@dataclass
class _Reader:
    shelf: _Shelf
    rng: np.random.Generator
    length: int
    life: list[int] = field(default_factory=list)
    readings: dict[int, _Reading] = field(default_factory=dict)  # by theme

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
        elif self.theme not in self.readings and chance > 1 - START_RATE:
            self._start()
        else:
            self._read_standalone()

    def _open(self, gaps: range) -> list[int]:
        """Themes whose series has an unread volume that could come after a cue now, at such a gap."""
        position = len(self.life) + 1
        if position >= self.length:
            return []
        return [t for t, reading in self.readings.items() if reading.unread and position - reading.touched in gaps]

    def _echo(self, theme: int) -> None:
        self.life.append(self._pick(self.shelf.cues[theme]))
        self._read_volume(theme)
        self.readings[theme].unread.clear()  # a series comes back once, so that its echo has one explanation
        self.theme = theme

    def _start(self) -> None:
        volumes = self._pick(self.shelf.volumes[self.theme])
        first = int(self.rng.integers(NUM_VOLUMES - 1))
        self.readings[self.theme] = _Reading(unread=volumes[first:])
        for _ in range(min(self._pick(STREAK_LENGTHS), self.length - len(self.life))):
            self._read_volume(self.theme)

    def _read_volume(self, theme: int) -> None:
        reading = self.readings[theme]
        reading.touched = len(self.life)
        self.life.append(reading.unread.pop(0))

    def _read_standalone(self) -> None:
        if self.rng.random() < SWITCH_RATE:
            self.theme = int(self.rng.integers(len(THEMES)))
        while not (books := self.unread_books[self.theme]):
            self.theme = int(self.rng.integers(len(THEMES)))
        self.life.append(books.pop(int(len(books) * self.rng.random() ** 1.5)))  # the first are more popular

    def _pick(self, choices: Sequence[T]) -> T:
        return choices[int(len(choices) * self.rng.random())]


def _life(shelf: _Shelf, rng: np.random.Generator) -> tuple[list[int], np.ndarray]:
    """Item rows and times of one reader."""
    shortest, longest = SHORT_LENGTHS if rng.random() < SHORT_SHARE else LONG_LENGTHS
    reader = _Reader(shelf, rng, length=int(rng.integers(shortest, longest + 1)))
    while len(reader.life) < reader.length:
        reader.step()
    return reader.life, _times(rng, reader.length)


def _times(rng: np.random.Generator, count: int) -> np.ndarray:
    """Strictly increasing seconds inside a stretch of the two years, of a tenth of them at least."""
    begin = rng.uniform(0, 0.7 * SPAN_S)
    end = rng.uniform(begin + 0.1 * SPAN_S, SPAN_S)
    pauses = np.cumsum(rng.exponential(size=count))
    return FIRST_DAY_S + (begin + pauses / pauses[-1] * (end - begin - count)).astype(np.int64) + np.arange(count)


if __name__ == "__main__":
    sys.exit(main())
