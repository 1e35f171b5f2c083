"""What a request wants of the order of its items. Plain values; what they mean is in `order.py` and `selection.py`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from model_store.catalogue.conditions import Condition


class Boost(NamedTuple):
    """`add` is added to the score, a log-probability, of each item that satisfies the condition."""

    condition: Condition
    add: float


class Pin(NamedTuple):
    """The item stands at this place of the first page, counted from 1, if it may be shown."""

    item_id: str
    position: int


class Cap(NamedTuple):
    """A page has at most `at_most` items of each value of the attribute; items without it are not counted."""

    attribute: str
    at_most: int


class Rotation(NamedTuple):
    """An item that was shown to the user less than `time_s` ago loses the share `rate` of its score's lead."""

    rate: float
    time_s: int


class Exploration(NamedTuple):
    """`share` of the places show items with at most `max_events` events.

    `max_age_s`: only items that came while the service runs, at most so many seconds ago; None: of any age.
    """

    share: float
    max_events: int = 10
    max_age_s: int | None = None


@dataclass(frozen=True)
class Rules:
    """`diversity`: 0 (as ranked) to 1. `is_paged`: later pages are made with the first. `is_distinct`: see `draft.py`.

    `shown_at`, for `rotation`: item → when the user was last shown it, Unix seconds; None when it is not known.
    """

    boosts: Sequence[Boost] = ()
    pins: Sequence[Pin] = ()
    caps: Sequence[Cap] = ()
    diversity: float = 0.0
    rotation: Rotation | None = None
    exploration: Exploration | None = None
    shown_at: Mapping[str, int] | None = None
    is_paged: bool = False
    is_distinct: bool = False

    @property
    def need_candidates(self) -> bool:
        """Whether the rules choose among more candidates than items."""
        order = self.boosts or self.pins or self.caps or self.diversity or self.shown_at
        return bool(order) or self.is_paged or self.is_distinct

    @property
    def change_the_list(self) -> bool:
        """Whether the list is not simply what the model answered."""
        return self.need_candidates or self.exploration is not None


NO_RULES = Rules()
