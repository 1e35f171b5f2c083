"""What types of events mean: how much each counts, where it counts, and whether its item counts as seen.

In: the type and the value of an event. Out: its `EventRule`. One table is used by training, by the evaluation and by
serving. It belongs to the bundle (`event_types.json`; the defaults where a bundle has none) and may be replaced while
the service runs.
"""

import hashlib
import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from model_store.errors import BundleCorrupt

UNTYPED = "interaction"  # the type of an event that names none
DAY_S = 86_400
FOR_EVER = None


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, hide_input_in_errors=True)


class EventRule(_Frozen):
    """What an event means. With a negative weight it is no interest: it never enters the window or memory."""

    weight: float = Field(
        default=1.0, ge=-10, le=10,
        description="how much the event counts, as a multiple of a purchase; negative: it speaks against its item and "
        "against items near it; 0: neither",
        examples=[0.5],
    )  # fmt: skip
    window: bool = Field(default=True, description="may be one of the newest events, of which the prompt is made")
    memory: bool = Field(default=True, description="may be memory: a stored state, and an older event of the voices")
    popularity: bool = Field(default=True, description="counts for the popularity of its item, by its weight")
    neighbors: bool = Field(default=True, description="counts for what goes together with its item, by its weight")
    seen_s: Annotated[int, Field(ge=0, le=2**40)] | None = Field(
        default=FOR_EVER,
        description="for how many seconds after the event its item counts as seen; 0: not at all, null: for ever",
        examples=[86400],
    )
    cancels: bool = Field(
        default=False,
        description="takes back what the user did with the item before: these events are no interest any more and "
        "count nowhere; they still make the item seen",
    )

    @property
    def is_interest(self) -> bool:
        return self.weight > 0 and (self.window or self.memory)

    @property
    def is_against(self) -> bool:
        return self.weight < 0


class ValueRule(EventRule):
    """The rule for events whose value lies between `at_least` and `at_most`, both included; null: no limit."""

    at_least: float | None = Field(default=None, description="the smallest value of the range; null: no limit")
    at_most: float | None = Field(default=None, description="the largest value of the range; null: no limit")

    @model_validator(mode="after")
    def _has_a_range(self) -> Self:
        if self.at_least is None and self.at_most is None:
            raise ValueError("needs at_least or at_most")
        if self.at_least is not None and self.at_most is not None and self.at_least > self.at_most:
            raise ValueError("at_least is larger than at_most")
        return self

    def holds(self, value: float) -> bool:
        low, high = self.at_least, self.at_most
        return (low is None or value >= low) and (high is None or value <= high)


class TypeRule(EventRule):
    """The rule of a type. The first range of `by_value` that holds the event's value replaces it."""

    by_value: list[ValueRule] = Field(
        default=[], max_length=10, description="other rules for ranges of `value`; the first one that holds counts"
    )

    def of(self, value: float | None) -> EventRule:
        if value is None:
            return self
        return next((rule for rule in self.by_value if rule.holds(value)), self)


_BRIEF: dict[str, Any] = {"seen_s": 0}  # looking at an item does not take it off the shelf
_NOTHING: dict[str, Any] = {
    "weight": 0.0, "window": False, "memory": False, "popularity": False, "neighbors": False, "seen_s": 0,
}  # fmt: skip
_AGAINST: dict[str, Any] = {
    "weight": -1.0, "window": False, "memory": False, "popularity": False, "neighbors": False, "cancels": True,
}  # fmt: skip


def _defaults() -> dict[str, TypeRule]:
    bad, good = ValueRule(at_most=2.0, **_AGAINST), ValueRule(at_least=4.0)
    taken_back = _AGAINST | {"weight": 0.0}
    return {
        UNTYPED: TypeRule(),
        "purchase": TypeRule(),
        "play": TypeRule(weight=0.5, seen_s=DAY_S),
        "rating": TypeRule(weight=0.5, by_value=[bad, good]),
        "like": TypeRule(),
        "cart": TypeRule(weight=0.5, **_BRIEF),
        "click": TypeRule(weight=0.25, **_BRIEF),
        "view": TypeRule(weight=0.25, **_BRIEF),
        "dislike": TypeRule(**_AGAINST),
        "skip": TypeRule(**_AGAINST | {"weight": -0.25, "cancels": False, "seen_s": DAY_S}),
        "return": TypeRule(**taken_back),
        "refund": TypeRule(**taken_back),
        "impression": TypeRule(**_NOTHING),
    }


class EventTypes(_Frozen):
    """The table. A type that it does not name has the rule `other`."""

    types: dict[Annotated[str, Field(min_length=1, max_length=64)], TypeRule] = Field(
        default_factory=_defaults, max_length=100, description="type of events -> its rule"
    )
    other: TypeRule = Field(default=TypeRule(), description="the rule of types that the table does not name")

    def rule(self, kind: str, value: float | None) -> EventRule:
        return self.types.get(kind, self.other).of(value)

    @cached_property
    def digest(self) -> str:
        """12 hex characters: equal for equal tables."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:12]

    @cached_property
    def parts_memory(self) -> bool:
        """Whether a rule of interest lets events into only one of window and memory."""
        rules = [rule for each in (*self.types.values(), self.other) for rule in (each, *each.by_value)]
        return any(rule.is_interest and rule.window != rule.memory for rule in rules)


def read_event_types(file: Path) -> EventTypes:
    """Raises BundleCorrupt."""
    try:
        return EventTypes.model_validate_json(file.read_bytes())
    except (OSError, ValidationError) as error:
        raise BundleCorrupt(f"{file}: the table of event types cannot be read; build the bundle again") from error


def parse_event_types(facts: Mapping[str, Any]) -> EventTypes:
    """Raises ValidationError."""
    return EventTypes.model_validate_json(json.dumps(facts))
