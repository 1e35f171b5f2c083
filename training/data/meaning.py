"""What the types of events mean for training, by the table that serving reads (`model_store.event_types`).

In: interactions with a column `type`. Out: `Meaning`: the events of interest, of which histories, windows, memory and
targets are made, and apart from them what makes an item seen and what speaks against an item. Without the column,
every event is of interest and counts fully.

An event that was taken back later (`cancels`) stays in the history: to leave it out would tell a model what the user
did later.
"""

from collections.abc import Iterable
from typing import NamedTuple

import polars as pl

from model_store.event_types import EventRule, EventTypes

TYPE = "type"
_FOR_EVER = 2**62


class Meaning(NamedTuple):
    """`interest`: interactions, and columns `weight`, `is_popular`, `is_near` and `is_seen`. `seen`: user_id, item_id,
    timestamp, and `until` when the item counts as seen. `against`: user_id, item_id, timestamp, and `weight`, positive.
    Each in the order of the interactions.
    """

    interest: pl.DataFrame
    seen: pl.DataFrame
    against: pl.DataFrame


def meaning_of(interactions: pl.DataFrame, types: EventTypes) -> Meaning | None:
    """None where the interactions have no types."""
    if TYPE not in interactions.columns:
        return None
    kinds = interactions.select(TYPE, "rating").unique()
    rules = [types.rule(kind, rating) for kind, rating in kinds.iter_rows()]
    marked = interactions.join(
        kinds.with_columns(_columns(rules)), on=[TYPE, "rating"], how="left", nulls_equal=True, maintain_order="left"
    )
    seconds = pl.col("seen_s")
    seen = marked.filter(pl.col("is_seen")).select(
        "user_id",
        "item_id",
        "timestamp",
        until=pl.when(seconds.is_null()).then(_FOR_EVER).otherwise(pl.col("timestamp") + seconds),
    )
    against = marked.filter(pl.col("weight") < 0).select("user_id", "item_id", "timestamp", weight=-pl.col("weight"))
    interest = marked.filter(pl.col("is_interest")).drop("is_interest", "seen_s")
    return Meaning(interest, seen, against)


def _columns(rules: Iterable[EventRule]) -> list[pl.Series]:
    listed = list(rules)
    return [
        pl.Series("weight", [rule.weight for rule in listed], dtype=pl.Float32),
        pl.Series("is_interest", [rule.is_interest for rule in listed], dtype=pl.Boolean),
        pl.Series("is_popular", [rule.popularity for rule in listed], dtype=pl.Boolean),
        pl.Series("is_near", [rule.neighbors for rule in listed], dtype=pl.Boolean),
        pl.Series("is_seen", [rule.seen_s != 0 for rule in listed], dtype=pl.Boolean),
        pl.Series("seen_s", [rule.seen_s for rule in listed], dtype=pl.Int64),
    ]
