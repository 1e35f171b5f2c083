"""Counts what users did with lists that they were shown: impressions, clicks and conversions of each variant.

Every server looks for users whose outcomes wait. Knows neither HTTP nor how a list is looked up.
"""

import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from service.store.feedback.outcomes import EXPLORED, LISTS, Outcome, OutcomeStore

UNATTRIBUTED = "unattributed"
COUNTED = (
    "lists",
    "impressions",
    "clicks",
    "conversions",
    "rejections",
    "explored",
    "explored_clicks",
    "explored_conversions",
)  # of `VariantResult`, shown in metrics
_IMPRESSIONS = frozenset({"impression", "show", "shown"})
_CONVERSIONS = frozenset({"purchase", "buy", "order", "subscribe", "booking"})
_AGAINST = frozenset({"dislike", "skip", "return", "refund"})
_USERS_AT_ONCE = 200
_LIST_COMES_S = 5  # a list is written to the store a moment after its answer; an event may be faster
_SECONDS_PER_DAY = 86_400
_Z = 1.96  # of a 95 % interval


class Rate(NamedTuple):
    """Share of the lists, with its 95 % interval (E. B. Wilson, 1927)."""

    value: float
    low: float
    high: float


class VariantResult(NamedTuple):
    """`lists`: answers that were kept. `clicked_lists`, `converted_lists`: those with at least one such event.

    `explored`: items that exploration put into these lists; `explored_clicks`, `explored_conversions`: events of these.
    """

    variant: str
    lists: int
    impressions: int
    clicks: int
    conversions: int
    rejections: int
    explored: int
    explored_clicks: int
    explored_conversions: int
    clicked_lists: int
    converted_lists: int
    click_rate: Rate | None
    conversion_rate: Rate | None


class Results(NamedTuple):
    """`unattributed`: events that name a recommendation that is unknown, too old, or did not show their item."""

    variants: list[VariantResult]
    unattributed: int


def outcome_of(event_type: str) -> str:
    """impression, conversion, rejection, or click for every other type."""
    kinds = ((_IMPRESSIONS, "impression"), (_CONVERSIONS, "conversion"), (_AGAINST, "rejection"))
    return next((name for types, name in kinds if event_type.casefold() in types), "click")


class Outcomes:
    def __init__(self, store: OutcomeStore) -> None:
        self.store = store

    async def settle(self, user_ids: Sequence[str]) -> int:
        """Counts what waits in the outboxes of these users now; returns how many outcomes are new."""
        return await self._count(await self.store.waiting(user_ids))

    async def settle_waiting(self) -> None:
        """Counts the outcomes of all users who wait. Any number of servers may do so at a time.

        An outcome whose list is not known waits `_LIST_COMES_S` for it.
        """
        met: set[str] = set()
        while users := await self.store.users(_USERS_AT_ONCE):
            waiting = await self.store.waiting(list(users))
            since = time.time() - _LIST_COMES_S
            early = {each for each in waiting if not each.variant and each.came_at > since}
            await self._count([each for each in waiting if each not in early])
            late = {each.user_id for each in early}
            await self.store.settled({user_id: score for user_id, score in users.items() if user_id not in late})
            await self.store.postpone(list(late))
            if len(users) < _USERS_AT_ONCE or met.issuperset(users):
                break
            met |= users.keys()

    async def _count(self, waiting: Sequence[Outcome]) -> int:
        names = {each: outcome_of(each.type) if each.variant else UNATTRIBUTED for each in waiting}
        return await self.store.count(names, day=int(time.time()) // _SECONDS_PER_DAY)

    async def results(self) -> Results:
        return results_of(await self.store.totals())


def results_of(totals: Mapping[str, int]) -> Results:
    variants = dict.fromkeys(name.partition("|")[0] for name in totals if not name.startswith("|"))
    return Results([_result(variant, totals) for variant in sorted(variants)], totals.get(f"|{UNATTRIBUTED}", 0))


def _result(variant: str, totals: Mapping[str, int]) -> VariantResult:
    def total(name: str) -> int:
        return totals.get(f"{variant}|{name}", 0)

    lists, clicked, converted = total(LISTS), total("click|lists"), total("conversion|lists")
    return VariantResult(
        variant=variant,
        lists=lists,
        impressions=total("impression"),
        clicks=total("click"),
        conversions=total("conversion"),
        rejections=total("rejection"),
        explored=total(EXPLORED),
        explored_clicks=total("click|explored"),
        explored_conversions=total("conversion|explored"),
        clicked_lists=clicked,
        converted_lists=converted,
        click_rate=rate(clicked, lists),
        conversion_rate=rate(converted, lists),
    )


def rate(part: int, whole: int) -> Rate | None:
    """None for no lists. A list whose count was lost with a killed process can make `part` larger: it counts as all."""
    if not whole:
        return None
    share = min(1.0, part / whole)
    centre = share + _Z * _Z / (2 * whole)
    spread = _Z * ((share * (1 - share) + _Z * _Z / (4 * whole)) / whole) ** 0.5
    scale = 1 + _Z * _Z / whole
    return Rate(round(share, 6), round(max(0.0, centre - spread) / scale, 6), round((centre + spread) / scale, 6))
