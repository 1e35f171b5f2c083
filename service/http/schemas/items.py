"""The JSON bodies of requests and answers about items."""

from typing import Annotated, Any, Literal

from pydantic import Field, PlainValidator, model_validator

from service.http.fields import ItemId, Name, Schema, Title, Values, ValuesOrNull
from service.http.schemas.base import NEXT_CURSOR, ResponseSchema


class ItemBody(Schema):
    title: Title = Field(description="the model reads and writes this text")
    attributes: dict[Name, Values] = Field(
        default={}, max_length=50, description="name → text, number, true or false, or a list of them; used by `filter`"
    )
    hidden: bool = Field(default=False, description="a hidden item is never recommended")
    available_from: int | None = Field(default=None, ge=0, le=2**53, description="Unix time, seconds")
    available_until: int | None = Field(default=None, ge=0, le=2**53, description="Unix time, seconds")

    @model_validator(mode="after")
    def _some_time_available(self) -> "ItemBody":
        start, end = self.available_from, self.available_until
        if start is not None and end is not None and start >= end:
            raise ValueError("available_from must be earlier than available_until")
        return self


class ItemPatch(Schema):
    """Only the fields that are given change."""

    title: Title | None = Field(default=None, description="the new title")
    attributes: dict[Name, ValuesOrNull] | None = Field(
        default=None,
        max_length=50,
        description="attributes to add or change, merged with those of the item; null removes an attribute",
        examples=[{"price": 9.5, "on_sale": None}],
    )
    hidden: bool | None = Field(default=None, description="a hidden item is never recommended")
    available_from: int | None = Field(default=None, ge=0, le=2**53, description="Unix time, seconds; null: always")
    available_until: int | None = Field(default=None, ge=0, le=2**53, description="Unix time, seconds; null: for ever")

    @model_validator(mode="after")
    def _changes_something(self) -> "ItemPatch":
        empty = [name for name in ("title", "attributes", "hidden") if name in self.model_fields_set]
        if not self.model_fields_set or any(getattr(self, name) is None for name in empty):
            raise ValueError("must change a field; only available_from and available_until may be set to null")
        return self


class Item(ResponseSchema):
    """An item of the catalogue. Attributes from a bundle may have any JSON type."""

    item_id: str = Field(description="the item")
    title: str = Field(description="its title")
    attributes: dict[str, Any] = Field(default={}, description="name → value")
    hidden: bool = Field(default=False, description="a hidden item is never recommended")
    available_from: int | None = Field(
        default=None, description="recommended from this Unix time on, inclusive; null: always"
    )
    available_until: int | None = Field(
        default=None, description="recommended until this Unix time, exclusive; null: for ever"
    )
    added_at: int | None = Field(
        default=None, description="Unix time at which the item came while the service ran; null: with the first data"
    )


class NewItem(ItemBody):
    item_id: ItemId = Field(description="id of the item, yours")


UncheckedItem = Annotated[Any, PlainValidator(lambda element: element, json_schema_input_type=NewItem)]


class ItemsRequest(Schema):
    # Documented as items, and read one by one: a wrong one does not affect the others.
    items: list[UncheckedItem] = Field(
        min_length=1, max_length=500, description="the items; if an id appears twice, the last one counts"
    )


class ItemResult(ResponseSchema):
    index: int = Field(description="position of the item in the request, from 0")
    item_id: str | None = Field(description="the item; null when it was rejected")
    status: Literal["accepted", "rejected"] = Field(description="accepted: stored; rejected: not stored")
    reason: str | None = Field(default=None, description="why it was rejected; otherwise null")


class ItemsResponse(ResponseSchema):
    items: list[Item] = Field(description="the accepted items as stored")
    results: list[ItemResult] = Field(description="one for each item of the request, in order")


class DeletedItem(ResponseSchema):
    item_id: str = Field(description="the item")
    deleted: bool = Field(description="always true")


class Neighbor(ResponseSchema):
    item_id: str = Field(description="the item")
    title: str = Field(description="its title")
    distance: float = Field(description="L2 distance of the title vectors")


class Neighbors(ResponseSchema):
    item_id: str = Field(description="the item that was asked for")
    neighbors: list[Neighbor] = Field(description="available items, nearest first")


class ItemsPage(ResponseSchema):
    items: list[Item] = Field(description="one page, in the order of the catalogue; new items come last")
    next_cursor: str | None = Field(description=NEXT_CURSOR)


class RelatedItem(ResponseSchema):
    item_id: str = Field(description="the item")
    title: str = Field(description="its title")
    source: Literal["near", "follow", "together", "words"] = Field(
        description="near: users often have both close together; follow: it often comes next; together: counted live; "
        "words: a similar title"
    )
    score: float | None = Field(description="strength by behaviour, 0 to 1; null for words")
    distance: float | None = Field(description="L2 distance of the title vectors; null for behaviour")


class RelatedItems(ResponseSchema):
    item_id: str = Field(description="the item you asked for")
    related: list[RelatedItem] = Field(description="available items, best first; at last those by words")


class RankedItem(ResponseSchema):
    rank: int = Field(description="1, 2, 3, …")
    item_id: str = Field(description="the item")
    title: str = Field(description="its title")
    score: float = Field(
        description="popular: events of training and live ones, which fade. trending: how far the events of the last "
        "days exceed what the weeks before let expect, in standard deviations. latest: Unix time at which it came"
    )


class RankedItems(ResponseSchema):
    items: list[RankedItem] = Field(description="available items, best first")
