"""The JSON bodies that ask for recommendations: for one user, and for several. Strict, as `service.http.schemas`."""

from typing import Literal

from pydantic import Field, model_validator

from service.http.fields import ItemId, Query, Schema, Timestamp, UserId
from service.http.requests.filters import WholeFilter
from service.http.requests.rules import Ordered, Pin, check_pins

MOST_FOR_USERS = 1000  # items in one answer


class RecentItem(Schema):
    item_id: ItemId = Field(description="an item the catalogue does not know is ignored and named in `warnings`")
    timestamp: Timestamp | None = Field(
        default=None, description="its place among the stored events; null: newer than all of them"
    )


class SharedFields(Ordered):
    """The fields of a request that are the same for one user and for several."""

    k: int = Field(default=10, ge=1, le=100, description="how many items")
    exclude_seen: bool | None = Field(
        default=None,
        description="leave out what the user had; null: yes, unless users of the bundle's data come back to items",
    )
    explain: bool = Field(default=True, description="say why each item is there, and list the older events that count")
    candidates: list[ItemId] | None = Field(
        default=None, min_length=1, max_length=1000, description="recommend only these"
    )
    filter: WholeFilter | None = Field(
        default=None,
        description="recommend only items that pass: attribute -> value or list of allowed values, or an operator "
        "(`op`: eq ne lt lte gt gte range in exists starts_with and or not); nested at most 8 deep, at most 100 parts",
        examples=[
            {"kind": ["series", "standalone"]},
            {
                "op": "and",
                "filters": [
                    {"kind": "series"},
                    {"op": "range", "attribute": "year", "gte": 1990, "lt": 2000},
                    {"op": "not", "filter": {"op": "starts_with", "attribute": "title", "text": "Uncle"}},
                ],
            },
        ],
    )
    exclude: list[ItemId] = Field(
        default=[],
        max_length=1000,
        fail_fast=True,
        description="never recommend these, for example what is on the page",
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


class RecommendRequest(SharedFields):
    user_id: UserId | None = Field(default=None, description="null for an anonymous session, described by `recent`")
    recent: list[RecentItem] = Field(
        default=[],
        max_length=100,
        fail_fast=True,
        description="items of this session, oldest first, in addition to the stored events",
    )
    pins: list[Pin] = Field(
        default=[], max_length=20, fail_fast=True, description="items at fixed places of the list", examples=[[]]
    )
    paged: bool = Field(
        default=False, description="the answer has `next_cursor`: the list goes on, up to 500 items in pages of `k`"
    )
    cursor: str | None = Field(
        default=None,
        max_length=8192,
        description="`next_cursor` of an answer: the next page of its list; alone, as the list is made already",
        examples=[None],
    )

    @model_validator(mode="after")
    def _fit_together(self) -> "RecommendRequest":
        if self.cursor is not None and self.model_fields_set != {"cursor"}:
            raise ValueError("a cursor must be the only field: its list is made already")
        check_pins(self.pins, self.k)
        return self


class UsersRequest(SharedFields):
    """The same for several users: each gets `k` items."""

    users: list[UserId] = Field(
        min_length=1, max_length=50, fail_fast=True, description="1 to 50 different users", examples=[["ada", "ben"]]
    )
    distinct: bool = Field(
        default=False,
        description="no item is in two of the lists. Each user in turn takes their best item that is left: in the "
        "order of `users`, then backwards, and so on",
    )

    @model_validator(mode="after")
    def _bounded(self) -> "UsersRequest":
        if len(set(self.users)) < len(self.users):
            raise ValueError("users must be different")
        if len(self.users) * self.k > MOST_FOR_USERS:
            raise ValueError(f"users times k must be at most {MOST_FOR_USERS}")
        return self
