"""Questions in the synthetic bookshop whose answers only the right memory gives.

The bookshop of `synthetic.py`, whose readers also ask for books. There are two kinds of questions.

* *Gifts.* A reader asks for "a present for my sister" and takes a first or second volume of some series. Much later the
  same reader asks for "the next of the series my sister liked" and takes the next volume. A reader has presents for
  four people, each of another series, so the question alone fits every series, and all memories together fit four.
  Only the memory of this one person tells the answer.
* *Occasions.* A reader asks for "the volume after mine for a rainy night". A rainy night means detectives here, as the
  questions of other readers tell; no title says so. The reader read volumes of one series of each of several themes.
  The question alone fits the volumes of a theme, and the reader's series of that theme tells which.

With `unrelated`, each question is asked by another reader, drawn at random: what a reader did says nothing about what
the reader asks for, and memory can only harm.

The memories are of the first two fifths of the time, the questions of the second half, so that the train period has
questions and all queries of the valid and test periods are questions. In: a seed. Out: a `Dataset` with queries;
`right_memories` tells the memory that each question needs.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl

from training.data.dataset import DataError, Dataset, clean_dataset, dataset_stats, save_dataset
from training.data.synthetic import FIRST_DAY_S, NUM_VOLUMES, SPAN_S, synthetic_items
from training.data.synthetic_titles import THEMES

PEOPLE = [
    "sister",
    "brother",
    "mother",
    "father",
    "neighbour",
    "aunt",
    "uncle",
    "cousin",
    "boss",
    "friend",
    "grandmother",
    "teacher",
]
OCCASIONS = {
    "detective": "a rainy night",
    "space": "a long flight",
    "garden": "the first warm sunday",
    "sea": "a week at the coast",
    "kitchen": "a hungry afternoon",
    "ghost": "a candle in november",
}
GIFT_WORDS = ("a present for my {}", "something my {} will enjoy", "my {} has a birthday")
NEXT_GIFT_WORDS = ("the next of the series my {} liked", "my {} wants to read on", "the volume after my {}'s last one")
OCCASION_WORDS = ("a book for {}", "something for {}")
NEXT_OCCASION_WORDS = ("the volume after mine for {}", "my series again, for {}")
PRESENTS, OWN_SERIES, QUESTIONS, OTHERS = 4, 3, 4, 14
MEMORY_TIME, OTHER_TIME, QUESTION_TIME = (0.0, 0.4), (0.4, 0.5), (0.5, 1.0)  # shares of the two years
DAY_S = 86_400

Row = tuple[str, str]  # item, query; the query is "" where nothing was asked
Event = tuple[str, str, int, str]  # user, item, time, query


def questions_dataset(num_users: int = 1500, seed: int = 0, *, unrelated: bool = False) -> Dataset:
    """Equal arguments give equal data. Raises DataError."""
    if num_users < 1 or seed < 0:
        raise DataError(f"{num_users} users with seed {seed}: needs at least 1 user and a seed ≥ 0")
    items = synthetic_items()
    shelf = _Shelf(items)
    askers = np.random.default_rng(seed).permutation(num_users) if unrelated else np.arange(num_users)
    events = [event for user in range(num_users) for event in _history(shelf, user, int(askers[user]), seed)]
    frame = pl.DataFrame(events, schema=["user_id", "item_id", "timestamp", "query"], orient="row")
    return clean_dataset("questions", frame.drop("query"), items, frame.filter(pl.col("query") != ""))[0]


def right_memories(dataset: Dataset) -> pl.DataFrame:
    """One row for each question that needs a memory: user_id, timestamp, query, item_id, and source_id.

    The source is the item of the event that tells the answer: the volume before it, which this reader took earlier.
    """
    assert dataset.queries is not None
    series = dataset.items.filter(pl.col("kind") == "series").select("item_id", "series", "volume")
    before = series.select("series", (pl.col("volume") + 1).alias("volume"), pl.col("item_id").alias("source_id"))
    questions = dataset.queries.join(series, on="item_id")
    taken = dataset.interactions.select("user_id", pl.col("item_id").alias("source_id"))
    found = questions.join(before, on=["series", "volume"]).join(taken, on=["user_id", "source_id"], how="semi")
    return found.select("user_id", "timestamp", "query", "item_id", "source_id")


class _Shelf:
    """Item ids: `books` are stand-alone, `volumes[theme]` has the volumes of each series in order."""

    def __init__(self, items: pl.DataFrame) -> None:
        self.books = items.filter(pl.col("kind") == "standalone")["item_id"].to_list()
        self.volumes = {theme.name: self._series(items, theme.name) for theme in THEMES}

    @staticmethod
    def _series(items: pl.DataFrame, theme: str) -> list[list[str]]:
        ids = items.filter((pl.col("theme") == theme) & (pl.col("kind") == "series"))["item_id"].to_list()
        return [ids[start : start + NUM_VOLUMES] for start in range(0, len(ids), NUM_VOLUMES)]


def _history(shelf: _Shelf, user: int, asker: int, seed: int) -> list[Event]:
    """Memories, then books without a question, then the questions of `asker`; each on a day of its own."""
    rng = np.random.default_rng((seed, user))
    themes = [THEMES[place].name for place in rng.permutation(len(THEMES))]
    people = [PEOPLE[place] for place in rng.permutation(len(PEOPLE))[:PRESENTS]]
    memories: list[Row] = []
    questions: list[Row] = []
    for number in range(PRESENTS + OWN_SERIES):
        is_gift = number < PRESENTS
        theme = themes[(number if is_gift else number - PRESENTS) % len(themes)]
        # Presents are of the first two series of a theme, own series of the last two: no series occurs twice.
        series = shelf.volumes[theme][int(rng.integers(2)) + (0 if is_gift else 2)]
        volume = int(rng.integers(NUM_VOLUMES - 1))
        about = people[number] if is_gift else OCCASIONS[theme]
        first, then = (GIFT_WORDS, NEXT_GIFT_WORDS) if is_gift else (OCCASION_WORDS, NEXT_OCCASION_WORDS)
        memories.append((series[volume], _one_of(first, rng).format(about)))
        questions.append((series[volume + 1], _one_of(then, rng).format(about)))
    others = [(shelf.books[place], "") for place in rng.permutation(len(shelf.books))[:OTHERS]]
    asked = [questions[place] for place in rng.permutation(len(questions))[:QUESTIONS]]
    past = [*_days(memories, MEMORY_TIME, rng), *_days(others, OTHER_TIME, rng)]
    timed = [*((user, each) for each in past), *((asker, each) for each in _days(asked, QUESTION_TIME, rng))]
    return [(f"asker-{whose:05d}", item, time, query) for whose, (time, (item, query)) in timed]


def _one_of(texts: Sequence[str], rng: np.random.Generator) -> str:
    return texts[int(rng.integers(len(texts)))]


def _days(rows: list[Row], span: tuple[float, float], rng: np.random.Generator) -> list[tuple[int, Row]]:
    """The rows on different days, drawn within a part of the two years."""
    first, end = (int(share * SPAN_S / DAY_S) for share in span)
    days = rng.permutation(np.arange(first, end))[: len(rows)]
    return [(int(FIRST_DAY_S + day * DAY_S), row) for day, row in zip(days, rows, strict=True)]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m training.data.questions", description="Make the bookshop data set with questions."
    )
    parser.add_argument("--out", type=Path, required=True, help="directory of the data set to write")
    parser.add_argument("--users", type=int, default=1500, help="number of readers (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="equal seeds make equal data (default: %(default)s)")
    parser.add_argument("--unrelated", action="store_true", help="readers ask for what their past says nothing about")
    args = parser.parse_args(argv)
    try:
        dataset = questions_dataset(args.users, args.seed, unrelated=args.unrelated)
        save_dataset(
            dataset,
            args.out,
            source={"questions": True, "unrelated": args.unrelated, "users": args.users, "seed": args.seed},
        )
    except (DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    answered = right_memories(dataset).height
    print(json.dumps({"out": str(args.out), **dataset_stats(dataset), "questions": answered}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
