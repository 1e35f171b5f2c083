"""What a request may ask of the order of its items, as JSON, and the same as `Rules`. Knows pydantic, but no HTTP."""

from collections.abc import Sequence
from math import log

from pydantic import Field, model_validator

from service.http.fields import ItemId, Name, Schema
from service.http.requests.filters import WholeFilter, condition_of
from service.usecases.ranking import rules

MOST_POSITION = 100
_SECONDS_PER_DAY = 86_400


class Boost(Schema):
    """Lifts or lowers the items that pass the filter: by a factor of their probability, or by an addition to the score.

    Of several boosts that an item passes, all count.
    """

    filter: WholeFilter = Field(description="which items", examples=[{"kind": "series"}])
    factor: float | None = Field(
        default=None,
        ge=0.000001,
        le=1_000_000,
        description="multiplies the probability; below 1 it lowers",
        examples=[3.0],
    )
    add: float | None = Field(
        default=None,
        ge=-14,
        le=14,
        description="added to the score, a natural logarithm; `factor` 2 is 0.69",
        examples=[None],
    )

    @model_validator(mode="after")
    def _one_of_both(self) -> "Boost":
        if (self.factor is None) == (self.add is None):
            raise ValueError("must have either factor or add")
        return self

    def rule(self) -> rules.Boost:
        add = self.add if self.factor is None else log(self.factor)
        return rules.Boost(condition_of(self.filter), add or 0.0)


class Pin(Schema):
    """Puts an item at a place of the list, if it may be shown to this user."""

    item_id: ItemId = Field(description="the item", examples=["i7"])
    position: int = Field(ge=1, le=MOST_POSITION, description="its rank, at most `k`", examples=[1])


class Cap(Schema):
    """At most so many items of each value of an attribute, such as two of each series."""

    attribute: Name = Field(description="its name; items without it are not counted", examples=["series"])
    at_most: int = Field(ge=1, le=100, description="items of each value on a page", examples=[2])


class Rotation(Schema):
    """What the user was shown lately sinks."""

    rate: float = Field(
        ge=0,
        le=1,
        description="share of its lead over the last candidate that an item loses; 1: it goes last",
        examples=[0.5],
    )
    time_s: int = Field(
        default=3600, ge=1, le=86_400, description="how long after it was shown, seconds", examples=[3600]
    )


class Exploration(Schema):
    """A share of the places goes to items of which little is known, drawn among those that fit the user best."""

    share: float = Field(
        ge=0,
        le=0.5,
        description="of the places of a list, on average; a list has at most one more than this share",
        examples=[0.1],
    )
    max_events: int = Field(
        default=10,
        ge=0,
        le=1_000_000,
        description="an item counts as little known while it has at most so many events, in training and since then, "
        "and exploration has not shown it more often than the server allows",
        examples=[10],
    )
    max_age_days: int | None = Field(
        default=None,
        ge=1,
        le=3650,
        description="only items that came while the service ran, at most so many days ago; null: of any age",
        examples=[30],
    )


class Ordered(Schema):
    """The fields of a request that change the order of its items, whoever asks."""

    boosts: list[Boost] = Field(
        default=[], max_length=20, fail_fast=True, description="items that are lifted or lowered", examples=[[]]
    )
    caps: list[Cap] = Field(
        default=[],
        max_length=5,
        fail_fast=True,
        description="how many items of one value",
        examples=[[{"attribute": "series", "at_most": 2}]],
    )
    diversity: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="0: as ranked; 1: each item as unlike those before it as possible, by the vectors of the index",
        examples=[0.3],
    )
    rotation: Rotation | None = Field(
        default=None, description="what the user was shown lately sinks; needs `user_id`", examples=[None]
    )
    exploration: Exploration | None = Field(
        default=None,
        description="gives a share of the places to new and little-known items; such an item has `explored`: true",
        examples=[None],
    )


def check_pins(pins: Sequence[Pin], k: int) -> None:
    """Raises ValueError."""
    if len({pin.item_id for pin in pins}) < len(pins) or len({pin.position for pin in pins}) < len(pins):
        raise ValueError("pins must name different items and different positions")
    if any(pin.position > k for pin in pins):
        raise ValueError("pins must have positions up to k")


def rules_of(
    body: Ordered, *, pins: Sequence[Pin] = (), is_paged: bool = False, is_distinct: bool = False
) -> rules.Rules:
    exploration = _exploration(body.exploration)
    is_plain = not (body.boosts or pins or body.caps or body.diversity or body.rotation or exploration)
    if is_plain and not is_paged and not is_distinct:
        return rules.NO_RULES
    rotation = body.rotation
    return rules.Rules(
        boosts=[boost.rule() for boost in body.boosts],
        pins=[rules.Pin(pin.item_id, pin.position) for pin in pins],
        caps=[rules.Cap(cap.attribute, cap.at_most) for cap in body.caps],
        diversity=body.diversity,
        rotation=None if rotation is None else rules.Rotation(rotation.rate, rotation.time_s),
        exploration=exploration,
        is_paged=is_paged,
        is_distinct=is_distinct,
    )


def _exploration(body: Exploration | None) -> rules.Exploration | None:
    if body is None or not body.share:
        return None
    age_s = None if body.max_age_days is None else body.max_age_days * _SECONDS_PER_DAY
    return rules.Exploration(body.share, body.max_events, age_s)
