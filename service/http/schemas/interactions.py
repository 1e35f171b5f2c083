"""The JSON bodies of events, what became of each, and the table of event types."""

from typing import Annotated, Any, Literal

from pydantic import Field, PlainValidator

from model_store.event_types import UNTYPED, TypeRule
from service.http.fields import (
    Context,
    EventId,
    EventType,
    ItemId,
    Query,
    RecommendationId,
    Schema,
    SessionId,
    Timestamp,
    UserId,
)
from service.http.schemas.base import ResponseSchema


class EventContent(Schema):
    """What an event says, without its user and its id."""

    item_id: ItemId = Field(description="an item of the catalogue", examples=["green-tea"])
    timestamp: Timestamp = Field(examples=[1760000000])
    type: EventType = Field(
        default=UNTYPED,
        description="what the user did; GET /settings/events says what each type means",
        examples=["purchase"],
    )
    value: float | None = Field(
        default=None, description="a number that belongs to the event, such as a rating", examples=[4.5]
    )
    query: Query | None = Field(
        default=None,
        description="what the user wrote before they chose the item",
        examples=["a present for my brother"],
    )
    session_id: SessionId | None = Field(
        default=None, description="the visit in which it happened; kept and given back", examples=["visit-71"]
    )
    context: Context | None = Field(
        default=None,
        description="facts of your own: text, numbers, true or false by name, at most 2048 bytes; kept and given back",
        examples=[{"device": "phone", "position": 3}],
    )
    recommendation_id: RecommendationId | None = Field(
        default=None,
        description="of the answer that showed the item: the event counts for its variant in GET /experiments",
        examples=["fbd9053df1def2fb64c52c11f6ae32e4"],
    )


class Interaction(EventContent):
    event_id: EventId | None = Field(
        default=None, description="derived from user, item, time and type when absent", examples=["order-17-1"]
    )
    user_id: UserId = Field(description="the user", examples=["ada"])


# Documented as an interaction, and read later, one by one: a wrong one does not affect the others.
UncheckedInteraction = Annotated[Any, PlainValidator(lambda element: element, json_schema_input_type=Interaction)]


class InteractionsRequest(Schema):
    interactions: list[UncheckedInteraction] = Field(min_length=1, max_length=500, description="the events")
    wait: Literal["durable", "visible"] = Field(
        default="durable",
        description="durable: answer when the events are stored; visible: when memory holds them, too",
    )
    durability: Literal["stored", "fsync", "replicated"] | None = Field(
        default=None,
        description="stored: as the store is set up; fsync: on its disk; replicated: on its replicas, too; null: as"
        " AUTOMR_DURABILITY says. If that is not reached in time, the answer is 503: the events are stored,"
        " but sending them again is safe and needed",
        examples=["replicated"],
    )


class EventSettings(ResponseSchema):
    number: int = Field(description="grows with each table that is put; 0: the table of the bundle")
    is_counted: bool = Field(
        description="false while users wait to be counted again by this table; the encode queue shows how far it is"
    )
    types: dict[str, TypeRule] = Field(description="type of events -> its rule")
    other: TypeRule = Field(description="the rule of types that the table does not name")


class InteractionResult(ResponseSchema):
    index: int = Field(description="position of the event in the request, from 0")
    event_id: str | None = Field(description="the id under which the event is stored; null when it was rejected")
    status: Literal["accepted", "duplicate", "conflict", "rejected"] = Field(
        description="accepted: stored; duplicate: it was stored before; conflict: another event is stored under this "
        "id, and nothing changed; rejected: not stored"
    )
    reason: str | None = Field(default=None, description="why it is a conflict or was rejected; otherwise null")


class InteractionsResponse(ResponseSchema):
    results: list[InteractionResult] = Field(description="one for each event, in order")
