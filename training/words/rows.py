"""The rows of the evaluation by words: what each may know of a query and its user, and which memories it shows.

A row names the features that it may weigh and chooses memories from the pools of an example. Each row has weights of
its own, learned and chosen on the same valid targets. `mr_rec` is the bundle's own row. To add a row, add it to
`ROWS`.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from model_store.words.evidence import (
    ASPECTS_PART,
    CHOSEN_PART,
    HISTORY_PART,
    QUERY_PART,
    READ_PART,
)
from model_store.words.index import Values
from model_store.words.selector import MAX_CHOSEN, Selector
from training.words.examples import Example

OWN, HYBRID, ORACLE, REASONED = "mr_rec", "hybrid", "oracle", "reasoned"
MEMORY_PART = (*HISTORY_PART, *READ_PART, *CHOSEN_PART)
EVERYTHING = (*QUERY_PART, *MEMORY_PART, *ASPECTS_PART)

Selectors = Mapping[str, Selector]  # "warm-up" and "grpo"
Choose = Callable[[Example, Selectors], list[int]]


class WordsRow(NamedTuple):
    """`choose` gives places in `evidence.pool`. `uses_memory`: how far is chosen on users that did not teach."""

    label: str
    explanation: str
    features: tuple[str, ...]
    choose: Choose = lambda _example, _selectors: []
    uses_memory: bool = False


def _pool(name: str) -> Choose:
    return lambda example, _: example.pools[name]


def _selected(selector: str, pool: str) -> Choose:
    """What a selector chooses from a pool."""

    def choose(example: Example, selectors: Selectors) -> list[int]:
        if not example.pools[pool]:
            return []
        places = selectors[selector].choose(example.selector_inputs(pool))
        return [example.pools[pool][place] for place in places]

    return choose


def chosen_features(row: WordsRow, selectors: Selectors) -> Callable[[Example], Values]:
    """Example → (F, C) features with the memories that the row chooses."""
    return lambda example: example.evidence.with_chosen(row.choose(example, selectors))


_SHOWN = (*QUERY_PART, *CHOSEN_PART)

ROWS: dict[str, WordsRow] = {
    "popularity": WordsRow("popularity", "the most popular items of the train period", ("popularity",)),
    "bm25": WordsRow("BM25", "words of title, attributes and earlier queries; popularity between equals", ("lexical",)),
    "dense": WordsRow("dense", "cosine of the vectors of query and item", ("cosine",)),
    "hybrid": WordsRow("hybrid", "words, vectors, who asked exactly this, popularity; no memory", QUERY_PART),
    "last_ten": WordsRow(
        "hybrid + last ten", "and the last ten items of the user, as one memory", _SHOWN, _pool("last_ten"), True
    ),
    "static_profile": WordsRow(
        "hybrid + static profile",
        "and the profile of the user, the same for every query",
        _SHOWN,
        _pool("profile"),
        True,
    ),
    "random_three": WordsRow("hybrid + random 3", "and three random memories", _SHOWN, _pool("random"), True),
    "top_three": WordsRow(
        "hybrid + top 3 by query", "and the three memories nearest to the query", _SHOWN, _pool("top_three"), True
    ),
    "all_memory": WordsRow(
        "hybrid + all memory",
        "and everything in memory, without a choice",
        (*QUERY_PART, *HISTORY_PART),
        uses_memory=True,
    ),
    "no_local": WordsRow("MR.Rec without local memory", "query and global aspects", (*QUERY_PART, *ASPECTS_PART)),
    "no_global": WordsRow(
        "MR.Rec without global memory",
        "no aspects: the query alone fetches memories, by words and vector",
        (*QUERY_PART, *MEMORY_PART),
        _selected("grpo", "without_aspects"),
        True,
    ),
    "no_reasoning": WordsRow(
        "MR.Rec without reasoning",
        "memories are fetched by the vector of the plain query; the three nearest are used",
        (*QUERY_PART, *HISTORY_PART, *CHOSEN_PART),
        _pool("top_three"),
        True,
    ),
    "no_rl": WordsRow(
        "MR.Rec without RL",
        "the selector after its supervised warm-up",
        EVERYTHING,
        _selected("warm-up", "chain"),
        True,
    ),
    "mr_rec": WordsRow(
        "MR.Rec",
        "aspects, fetched memories, the selector's choice, ideal profile",
        EVERYTHING,
        _selected("grpo", "chain"),
        True,
    ),
}


def nearest_by_query(example: Example, _selectors: Selectors) -> list[int]:
    """The choice before any selector is trained: the entries of the chain's pool that are nearest to the query."""
    pool = example.pools["chain"]
    cosines = example.selector_inputs("chain")[1:, 1]
    return [pool[place] for place in np.argsort(-cosines, kind="stable")[:MAX_CHOSEN].tolist()]
