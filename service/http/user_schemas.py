"""The JSON bodies of answers about users; see `schemas.py`."""

from typing import Any, Literal

from pydantic import Field

from service.http.fields import ShownUserId
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
    user_id: ShownUserId = Field(description="the user")
    counts: Counts = Field(description="how much is stored")
    recent: list[UserEvent] = Field(description="one page of events, newest first")
    memory: list[MemoryElement] = Field(description="the events that are memory today, oldest first")
    next_cursor: str | None = Field(description="the `cursor` of the next page; null on the last one")


class UserMemory(ResponseSchema):
    user_id: ShownUserId = Field(description="the user")
    memory: list[WordsEntry] = Field(description="records, newest first; patterns, most events first; one profile")


class DeletedNumbers(ResponseSchema):
    """What a deletion removed."""

    events: int = Field(description="deleted events", examples=[123])
    states: int = Field(description="deleted memory states, of all spaces", examples=[100])
    keys: int = Field(description="deleted keys of the store", examples=[6])
    lists: int = Field(description="deleted lists that the user was shown", examples=[3])
    pages: int = Field(description="deleted lists of which the user could ask for more pages", examples=[0])
    outcomes: int = Field(description="events that named an answer and were not counted yet", examples=[0])
    live_counts: int = Field(description="live counts that the user is no longer part of", examples=[41])
    requests: int = Field(description="entries of the encode queue", examples=[1])
    dead_letters: int = Field(description="dead letters", examples=[0])
    shredded: bool = Field(
        description="the key that sealed the user's records was destroyed, so that no copy of them can be read; false"
        " where records are not encrypted",
        examples=[False],
        strict=False,
    )


class ForgottenUser(DeletedNumbers):
    user_id: ShownUserId = Field(description="the user", examples=["reader-2"])
    receipt_id: str = Field(
        description="finds this deletion in GET /deletions; says nothing about the user",
        examples=["6f1c0a52d0bd4f0f9c86e63b0e6d0c11"],
    )
    deleted_at: int = Field(description="Unix time of the store, seconds", examples=[1_760_000_000])
    erased_by: int | None = Field(
        description="until this Unix time the bytes leave the files of the store, if it allows it; null: at the next"
        " POST /store:compact",
        examples=[1_760_003_600],
    )


class Deletion(DeletedNumbers):
    receipt_id: str = Field(
        description="as in the answer of the deletion", examples=["6f1c0a52d0bd4f0f9c86e63b0e6d0c11"]
    )
    deleted_at: int = Field(description="Unix time of the store, seconds", examples=[1_760_000_000])
    is_erased: bool = Field(description="no file of the store has a byte of it any more", examples=[True])


class DeletionsPage(ResponseSchema):
    deletions: list[Deletion] = Field(description="one page, newest first; the newest 10,000 are kept")
    next_cursor: str | None = Field(description=NEXT_CURSOR)


class RecreatedUser(ResponseSchema):
    user_id: ShownUserId = Field(description="the user", examples=["reader-2"])
    was_deleted: bool = Field(description="whether older events were refused until now", examples=[True])


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
