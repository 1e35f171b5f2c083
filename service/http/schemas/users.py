"""The JSON bodies about users: their events and memory, single events, merges of guests, the list of users."""

from typing import Any, Literal

from pydantic import Field

from service.http.fields import Schema, ShownUserId, UserId
from service.http.schemas.base import NEXT_CURSOR, ResponseSchema
from service.http.schemas.recommendations import MemoryElement, WordsEntry


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
    user_id: ShownUserId = Field(description="the user")
    counts: Counts = Field(description="how much is stored")
    recent: list[UserEvent] = Field(description="one page of events, newest first")
    memory: list[MemoryElement] = Field(description="the events that are memory today, oldest first")
    next_cursor: str | None = Field(description="the `cursor` of the next page; null on the last one")


class UserMemory(ResponseSchema):
    user_id: ShownUserId = Field(description="the user")
    memory: list[WordsEntry] = Field(description="records, newest first; patterns, most events first; one profile")


class CorrectedEvent(ResponseSchema):
    user_id: ShownUserId = Field(description="the user")
    event_id: str = Field(description="the event")
    status: Literal["created", "replaced", "unchanged"] = Field(
        description="created: no event had this id; replaced: the event that had it is gone; unchanged: it is the same"
    )


class ForgottenEvent(ResponseSchema):
    user_id: ShownUserId = Field(description="the user")
    event_id: str = Field(description="the event")
    forgotten: bool = Field(description="whether it was there")


class ListedUser(ResponseSchema):
    user_id: ShownUserId = Field(description="the user")
    events: int = Field(description="stored events")


class UsersPage(ResponseSchema):
    users: list[ListedUser] = Field(description="one page, in no order; a user may come on two pages")
    next_cursor: str | None = Field(description=NEXT_CURSOR)


class UserToMerge(Schema):
    from_user_id: UserId = Field(description="the guest", examples=["guest-81"])


class MergedUser(ResponseSchema):
    user_id: ShownUserId = Field(description="the user", examples=["ada"])
    from_user_id: ShownUserId = Field(description="the guest", examples=["guest-81"])
    moved: int = Field(description="events that the user did not have", examples=[12])
    duplicates: int = Field(description="events that the user had already", examples=[0])
    is_complete: bool = Field(description="nothing is left of the guest; false: repeat the call", examples=[True])
