"""The JSON bodies of requests and answers, as documented in /docs. Strict: no coercion, no unknown fields, no NaN.

A request is a `Schema`: its error report names the field and the reason, never the value. A `ResponseSchema` can be
made from an object of a use case: `UserPage.model_validate(page)` reads its attributes. The report of a long list names
its first wrong element only: thousands of reports would take longer than the request.
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from service.http.fields import (
    EventId,
    EventType,
    FieldError,
    ItemId,
    Name,
    Query,
    Schema,
    Timestamp,
    Title,
    UserId,
    Values,
)


class ResponseSchema(Schema):
    model_config = ConfigDict(from_attributes=True)


# ---- recommendations


class RecentItem(Schema):
    item_id: ItemId
    timestamp: Timestamp | None = None


class RecommendRequest(Schema):
    user_id: UserId | None = Field(default=None, description="null for an anonymous session, described by `recent`")
    k: int = Field(default=10, ge=1, le=100)
    exclude_seen: bool | None = Field(
        default=None,
        description="leave out what the user had; null: yes, unless users of the bundle's data come back to items",
    )
    explain: bool = Field(default=True, description="say why each item is there, and list the older events that count")
    recent: list[RecentItem] = Field(
        default=[],
        max_length=100,
        fail_fast=True,
        description="items of this session, oldest first, in addition to the stored events",
    )
    candidates: list[ItemId] | None = Field(
        default=None, min_length=1, max_length=1000, description="recommend only these"
    )
    filter: dict[Name, Values] | None = Field(
        default=None, max_length=20, description="attribute -> its value, or a list of allowed values"
    )
    deadline_ms: int | None = Field(
        default=None, ge=1, le=60_000, description="answer within this time, with a fallback if need be"
    )
    query: Query | None = Field(default=None, description="what the user asks for, in words of any language")
    reasoning: Literal["off", "retrieve", "full"] = Field(
        default="retrieve",
        description="with `query`. off: the words alone; retrieve: memories are chosen for the query; full: the ideal "
        "item is described, too",
    )
    timestamp: Timestamp | None = Field(
        default=None, description="the time of the request, from which the age of events counts; null: now"
    )


class Reason(ResponseSchema):
    """`voice`: language_model, popularity, near, follow, linear, alike or return; a bundle may have others."""

    voice: str
    share: float = Field(description="of what all voices give to this item, the part of this voice")
    item_id: str | None = Field(description="item of the event behind the voice; null when there is none")
    event_id: str | None = Field(description="that event; null also for an item of `recent`")


class RecommendedItem(ResponseSchema):
    rank: int
    item_id: str
    title: str
    score: float | None = Field(
        description="log-probability of the title when generated, score of the ranking when found; otherwise null"
    )
    source: Literal["generated", "grounded", "popular", "found"]
    distance: float | None = Field(
        default=None, description="L2 distance to the nearest generated title; null when popular or found"
    )
    reason: Reason | None = Field(default=None, description="null when it is not known, or `explain` is false")


class MemoryElement(ResponseSchema):
    event_id: str
    item_id: str
    title: str | None
    timestamp: int
    weight: float | None = Field(
        default=None,
        description="the retriever's probability; null when the state was not used, and in GET /users/{user_id}",
    )
    share: float | None = Field(
        default=None,
        description="the event's part in the mixture of voices; null without voices, and in GET /users/{user_id}",
    )


class WordsEntry(ResponseSchema):
    """An entry of local memory: what the service remembers of the user in words."""

    id: str
    level: Literal["record", "pattern", "profile"]
    scenario: str = Field(description="a query of the user, or an attribute of items; empty for the profile")
    text: str
    event_ids: list[str] = Field(description="its newest events, newest first")
    count: int = Field(description="all its events")
    first: int = Field(description="Unix time of its oldest event, seconds")
    last: int = Field(description="Unix time of its newest event, seconds")


class WordsAspect(ResponseSchema):
    """What matters to people who ask so, learned from the queries of many."""

    name: str
    scenario: str
    description: str
    num_users: int
    entries: list[str] = Field(description="ids of the entries that the aspect fetched from memory")


class WordsReasoning(ResponseSchema):
    level: Literal["lexical", "off", "retrieve", "full"] = Field(description="how far the answer went")
    aspects: list[WordsAspect]
    fetched: list[WordsEntry] = Field(description="entries that the query and its aspects fetched from memory")
    used: list[str] = Field(description="ids of the entries that count in the ranking, most useful first")
    profile: str | None = Field(description="the ideal item in words; null unless `reasoning` is full")


class ModelName(ResponseSchema):
    bundle: str
    space: str


class RecommendResponse(ResponseSchema):
    recommendation_id: str
    user_id: str | None
    items: list[RecommendedItem]
    memory: list[MemoryElement]
    reasoning: WordsReasoning | None = Field(description="with `query` and `explain`; otherwise null")
    fallback: (
        Literal[
            "cold_start",
            "memory_unavailable",
            "deadline",
            "engine_error",
            "no_second_round",
            "no_reasoning",
            "lexical_only",
        ]
        | None
    ) = Field(
        description="why something is missing: cold_start (no known item of this user: popular items), "
        "memory_unavailable (the store does not answer: `recent` alone is used), deadline, engine_error (the model was "
        "too slow or failed: popular items), no_second_round, no_reasoning, lexical_only (too little time to reason "
        "again, to reason at all, for anything but the words of the query); null when nothing is missing"
    )
    model: ModelName
    timings_ms: dict[str, float]


# ---- interactions


class Interaction(Schema):
    event_id: EventId | None = Field(default=None, description="derived from user, item, time and type when absent")
    user_id: UserId
    item_id: ItemId
    timestamp: Timestamp
    type: EventType = "view"
    value: float | None = None
    query: Query | None = Field(default=None, description="what the user wrote before they chose the item")


class InteractionsRequest(Schema):
    interactions: list[Any] = Field(min_length=1, max_length=500, description="each one an Interaction")
    wait: Literal["durable", "visible"] = "durable"


class InteractionResult(ResponseSchema):
    index: int
    event_id: str | None
    status: Literal["accepted", "duplicate", "rejected"]
    reason: str | None = None


class InteractionsResponse(ResponseSchema):
    results: list[InteractionResult]


# ---- users


class UserEvent(ResponseSchema):
    event_id: str
    item_id: str
    title: str | None
    timestamp: int
    type: str
    value: float | None
    query: str | None


class Counts(ResponseSchema):
    events: int
    states: int


class UserPage(ResponseSchema):
    user_id: str
    counts: Counts
    recent: list[UserEvent] = Field(description="one page of events, newest first")
    memory: list[MemoryElement]
    next_cursor: str | None


class UserMemory(ResponseSchema):
    user_id: str
    memory: list[WordsEntry] = Field(description="records, newest first; patterns, most events first; one profile")


class ForgottenUser(ResponseSchema):
    user_id: str
    events: int
    states: int
    keys: int


class ForgottenEvent(ResponseSchema):
    user_id: str
    event_id: str
    forgotten: bool


# ---- items


class ItemBody(Schema):
    title: Title
    attributes: dict[Name, Values] = Field(default={}, max_length=50)
    hidden: bool = False
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

    title: Title | None = None
    attributes: dict[Name, Values] | None = Field(default=None, max_length=50)
    hidden: bool | None = None
    available_from: int | None = Field(default=None, ge=0, le=2**53)
    available_until: int | None = Field(default=None, ge=0, le=2**53)

    @model_validator(mode="after")
    def _changes_something(self) -> "ItemPatch":
        empty = [name for name in ("title", "attributes", "hidden") if name in self.model_fields_set]
        if not self.model_fields_set or any(getattr(self, name) is None for name in empty):
            raise ValueError("must change a field; only available_from and available_until may be set to null")
        return self


class Item(ResponseSchema):
    """An item of the catalogue. Attributes from a bundle may have any JSON type."""

    item_id: str
    title: str
    attributes: dict[str, Any] = Field(default={})
    hidden: bool = False
    available_from: int | None = None
    available_until: int | None = None


class NewItem(ItemBody):
    item_id: ItemId


class ItemsRequest(Schema):
    items: list[NewItem] = Field(min_length=1, max_length=500, fail_fast=True)


class ItemsResponse(ResponseSchema):
    items: list[Item]


class DeletedItem(ResponseSchema):
    item_id: str
    deleted: bool


class Neighbor(ResponseSchema):
    item_id: str
    title: str
    distance: float


class Neighbors(ResponseSchema):
    item_id: str
    neighbors: list[Neighbor]


# ---- operations


class ModelInfo(ResponseSchema):
    bundle: str
    space: str
    format: int
    vocabulary: Literal["titles", "items"] = Field(description="how the model reads a title: as text, or as one token")
    split_layer: int
    recent_length: int = Field(description="K, interactions in a prompt")
    max_memory: int = Field(description="M, memory elements of a user")
    num_items: int
    loaded_at: str = Field(description="RFC 3339 time in UTC")


class Health(ResponseSchema):
    status: Literal["ok"]


class Problem(BaseModel):
    """An error (RFC 9457). Some errors have further members."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    request_id: str
    errors: list[FieldError] | None = None
