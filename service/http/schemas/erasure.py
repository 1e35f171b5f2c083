"""The JSON bodies of deletions of users: receipts, their list, and the erasure from the files of the store."""

from typing import Literal

from pydantic import Field

from service.http.fields import ShownUserId
from service.http.schemas.base import NEXT_CURSOR, ResponseSchema


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


class Compaction(ResponseSchema):
    status: Literal["done", "running", "no_files", "not_allowed"] = Field(
        description="done: the files hold nothing of what was deleted before the call. running: ask again. no_files:"
        " the store keeps none. not_allowed: the store refuses BGREWRITEAOF or BGSAVE to this user, or hides it (a"
        " managed store): its provider says when deleted bytes leave its files",
        examples=["done"],
    )
    nodes: int = Field(description="servers that wrote their files anew", examples=[1])
    replicas: int = Field(
        description="replicas that were not asked, because this service does not know their addresses: run"
        " BGREWRITEAOF and BGSAVE there",
        examples=[0],
    )
    unfinished: int = Field(
        description="deletions that are looked at again within a minute: call this once more after that", examples=[0]
    )
