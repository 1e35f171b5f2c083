"""The JSON bodies of answers about users; see `schemas.py`."""

from typing import Any, Literal

from pydantic import Field

from service.http.schemas import NEXT_CURSOR, MemoryElement, ResponseSchema, WordsEntry


class UserEvent(ResponseSchema):
    event_id: str = Field(description="id of the event, unique for its user")
    item_id: str = Field(description="the item")
    title: str | None = Field(description="title of the item today; null when the catalogue does not know it")
    timestamp: int = Field(description="Unix time, seconds")
    type: str = Field(description="as it was sent")
    value: float | None = Field(description="as it was sent")
    query: str | None = Field(description="what the user wrote before they chose the item")
    session_id: str | None = Field(description="as it was sent")
    context: dict[str, Any] | None = Field(description="as it was sent")
    recommendation_id: str | None = Field(
        default=None, description="as it was sent", examples=["fbd9053df1def2fb64c52c11f6ae32e4"]
    )


class Counts(ResponseSchema):
    events: int = Field(description="stored events")
    states: int = Field(description="memory states in the space of the served bundle")


class UserPage(ResponseSchema):
    user_id: str = Field(description="the user")
    counts: Counts = Field(description="how much is stored")
    recent: list[UserEvent] = Field(description="one page of events, newest first")
    memory: list[MemoryElement] = Field(description="the events that are memory today, oldest first")
    next_cursor: str | None = Field(description="the `cursor` of the next page; null on the last one")


class UserMemory(ResponseSchema):
    user_id: str = Field(description="the user")
    memory: list[WordsEntry] = Field(description="records, newest first; patterns, most events first; one profile")


class ForgottenUser(ResponseSchema):
    user_id: str = Field(description="the user")
    events: int = Field(description="deleted events")
    states: int = Field(description="deleted memory states, of all spaces")
    keys: int = Field(description="deleted keys of the store")


class CorrectedEvent(ResponseSchema):
    user_id: str = Field(description="the user")
    event_id: str = Field(description="the event")
    status: Literal["created", "replaced", "unchanged"] = Field(
        description="created: no event had this id; replaced: the event that had it is gone; unchanged: it is the same"
    )


class ForgottenEvent(ResponseSchema):
    user_id: str = Field(description="the user")
    event_id: str = Field(description="the event")
    forgotten: bool = Field(description="whether it was there")


class ListedUser(ResponseSchema):
    user_id: str = Field(description="the user")
    events: int = Field(description="stored events")


class UsersPage(ResponseSchema):
    users: list[ListedUser] = Field(description="one page, in no order; a user may come on two pages")
    next_cursor: str | None = Field(description=NEXT_CURSOR)
