"""Which items go together with an item, by what users did: with a bundle, as it is served now.

In: a bundle, a catalogue row and what may be shown. Out: rows, best first, with the table that says so. The tables are
those of the voices with what was counted live; or those of words, and live pairs for items that came after training;
or, where a bundle has neither, live pairs alone.
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from model_store.answers import RowCounts
from model_store.bundle import Bundle

Table = Literal["near", "follow", "together"]
TABLES: tuple[Table, ...] = ("near", "follow")
_SHRINKAGE = 5.0  # of pairs that were seen seldom, as in training

Scores = Mapping[Table, NDArray[np.float32]]


class Related(NamedTuple):
    """`score`: the mean of what the tables give to the item, each at most 1. `table`: the one that gives most."""

    row: int
    score: float
    table: Table


def related(
    bundle: Bundle, row: int, num_results: int, allowed: NDArray[np.bool_], counts: RowCounts | None
) -> list[Related]:
    """The items of `allowed` (N,) that go together with item `row`, best first; none if nothing is known of it."""
    found = _of_voices(bundle, row) or _of_words(bundle, row, counts) or _of_pairs(bundle, row, counts)
    if not found:
        return []
    scores = np.where(allowed, _means(found), 0)
    scores[row] = 0
    names, stacked = list(found), np.stack(list(found.values()))
    best = np.argsort(-scores, kind="stable")[:num_results]
    tables = [names[place] for place in stacked[:, best].argmax(axis=0).tolist()]
    columns = zip(best.tolist(), scores[best].tolist(), tables, strict=True)
    return [Related(*column) for column in columns if column[1] > 0]


def _means(found: Scores) -> NDArray[np.float32]:
    """(N,) the mean of the tables; live pairs stand beside them, for items that the tables do not know."""
    tables = [values for name, values in found.items() if name != "together"]
    mean = np.sum(tables, axis=0) / len(tables) if tables else np.float32(0)
    return np.asarray(mean + found.get("together", np.float32(0)), dtype=np.float32)


def _of_voices(bundle: Bundle, row: int) -> Scores:
    """(N,) of each table of the voices; items with the same title are the same for them."""
    if bundle.voices is None:
        return {}
    known, tokens = bundle.voices.known, bundle.tokens_of(np.arange(len(bundle.catalogue)))
    if tokens[row] >= known.num_tokens:
        return {}
    found: dict[Table, NDArray[np.float32]] = {}
    for name in TABLES:
        if name in known.tables.names:
            place = known.tables.names.index(name)
            near = known.rows(np.array([place]), tokens[[row]])
            values = np.zeros(max(known.num_tokens, int(tokens.max()) + 1), dtype=np.float32)
            values[near.indices - place * known.num_tokens] = near.data
            found[name] = values[tokens]
    return found if any(values.any() for values in found.values()) else {}


def _of_words(bundle: Bundle, row: int, counts: RowCounts | None) -> Scores:
    """(N,) of each table of the words. They have no row for items that came after training: of these, live pairs."""
    if bundle.words is None:
        return {}
    found: dict[Table, NDArray[np.float32]] = {}
    num_trained = len(bundle.catalogue)
    for name in TABLES:
        table = bundle.words.index.tables.get(name)
        if table is not None and row < table.shape[0]:
            num_trained = table.shape[0]
            values = bundle.words.index.neighbours(name, [row])
            found[name] = np.pad(values, (0, len(bundle.catalogue) - len(values)))
    if not any(values.any() for values in found.values()):
        return {}
    for name, values in _of_pairs(bundle, row, counts).items():
        found[name] = np.where(np.arange(len(values)) < num_trained, np.float32(0), values)
    return found


def _of_pairs(bundle: Bundle, row: int, counts: RowCounts | None) -> Scores:
    if counts is None:
        return {}
    with_row = (counts.pairs == row).any(axis=1) & (counts.pairs[:, 0] != counts.pairs[:, 1])
    if not with_row.any():
        return {}
    others = counts.pairs[with_row].sum(axis=1) - row
    roots = np.sqrt(np.maximum(bundle.catalogue.popularity_of(np.append(others, row)), 1))
    values = np.zeros(len(bundle.catalogue), dtype=np.float32)
    values[others] = counts.pair_counts[with_row] / (roots[:-1] * roots[-1] + _SHRINKAGE)
    return {"together": values}
