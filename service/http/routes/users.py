"""/users/{user_id}: see, export and forget what is kept about a user."""

import json
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter
from fastapi.responses import StreamingResponse

from service.http.dependencies import Cursor, EventIdPath, Limit, UserIdPath, UsersDep
from service.http.schemas import ForgottenEvent, ForgottenUser, UserPage

router = APIRouter(prefix="/users/{user_id}", tags=["users"])


@router.get("")
async def get_user(user_id: UserIdPath, users: UsersDep, cursor: Cursor = None, limit: Limit = 50) -> UserPage:
    """Counts, recent events (newest first) and memory elements; their `weight` is null."""
    return await users.get(user_id, cursor, limit)


@router.get(
    "/export",
    response_class=StreamingResponse,
    responses={200: {"content": {"application/x-ndjson": {}}, "description": "One JSON object per line"}},
)
async def export_user(user_id: UserIdPath, users: UsersDep) -> StreamingResponse:
    """All that is kept about the user, as JSON lines."""
    rows = users.export(user_id)
    first = await anext(rows, None)  # now, while a failure can still become an error answer
    return StreamingResponse(_lines(first, rows), media_type="application/x-ndjson")


@router.delete("")
async def forget_user(user_id: UserIdPath, users: UsersDep) -> ForgottenUser:
    """Forgets the user everywhere; the receipt says how much there was."""
    return await users.forget(user_id)


@router.delete("/interactions/{event_id}")
async def forget_event(user_id: UserIdPath, event_id: EventIdPath, users: UsersDep) -> ForgottenEvent:
    """Forgets one event; the memory is derived anew."""
    return await users.forget_event(user_id, event_id)


async def _lines(first: dict[str, Any] | None, rest: AsyncIterator[dict[str, Any]]) -> AsyncIterator[str]:
    if first is not None:
        yield json.dumps(first, ensure_ascii=False) + "\n"
    async for row in rest:
        yield json.dumps(row, ensure_ascii=False) + "\n"
