"""/users/{user_id}: show, export and delete what the service holds about a user."""

import json
from collections.abc import AsyncIterator

from fastapi import APIRouter
from fastapi.responses import StreamingResponse

from service.http.body import JsonRoute
from service.http.dependencies import Cursor, EventIdPath, Limit, ListTurn, ResourcesDep, UserIdPath
from service.http.routes.interactions import event_of
from service.http.schemas.erasure import ForgottenUser
from service.http.schemas.interactions import EventContent
from service.http.schemas.users import CorrectedEvent, ForgottenEvent, UserMemory, UserPage
from service.identity.tenants import without_tenant
from service.usecases.users import TitledEvent

router = APIRouter(prefix="/users/{user_id}", tags=["users"], route_class=JsonRoute)


@router.get("")
async def get_user(user_id: UserIdPath, resources: ResourcesDep, cursor: Cursor = None, limit: Limit = 50) -> UserPage:
    """Counts, recent events (newest first) and memory elements (oldest first); their `weight` is null."""
    page = await resources.users.get(user_id, cursor, limit)
    return UserPage.model_validate({"user_id": user_id, **page._asdict()})


@router.get(
    "/export",
    response_class=StreamingResponse,
    responses={200: {"content": {"application/x-ndjson": {}}, "description": "One JSON object per line"}},
)
async def export_user(user_id: UserIdPath, resources: ResourcesDep) -> StreamingResponse:
    """Every event of the user, newest first, as JSON lines."""
    events = resources.users.export(user_id)
    first = await anext(events)  # before the answer starts: a failure can still become a problem document
    return StreamingResponse(_lines(user_id, first, events), media_type="application/x-ndjson")


@router.get("/memory", responses={409: {}}, dependencies=[ListTurn])
async def get_memory(user_id: UserIdPath, resources: ResourcesDep) -> UserMemory:
    """What the service remembers of the user in words; computed from the events, as for a query."""
    entries = await resources.users.memory_in_words(user_id)
    return UserMemory.model_validate({"user_id": user_id, "memory": entries})


@router.delete("")
async def forget_user(user_id: UserIdPath, resources: ResourcesDep) -> ForgottenUser:
    """Deletes everything about the user, and answers how much there was.

    For AUTOMR_TOMBSTONE_DAYS, events that are not newer than the deletion are refused, so that a late retry brings
    nothing back; newer ones are a new beginning. An error does not say that nothing was deleted: repeat the call.
    """
    receipt_id, deleted, _ = await resources.users.forget(user_id)
    minutes = resources.settings.erasure_minutes
    numbers = deleted._asdict()
    at = numbers.pop("at")
    erased_by = at + round(60 * minutes) if minutes else None
    return ForgottenUser(user_id=user_id, receipt_id=receipt_id, deleted_at=at, erased_by=erased_by, **numbers)


@router.put("/interactions/{event_id}", responses={409: {}})
async def correct_event(
    user_id: UserIdPath, event_id: EventIdPath, body: EventContent, resources: ResourcesDep
) -> CorrectedEvent:
    """Stores the event in the place of the one with this id, in one step; memory and counts are made again from it.

    A field that is absent has its default: send the whole event. Repeating it changes nothing.
    """
    status = await resources.ingest.correct(event_of(event_id, user_id, body))
    return CorrectedEvent(user_id=user_id, event_id=event_id, status=status)


@router.delete("/interactions/{event_id}")
async def forget_event(user_id: UserIdPath, event_id: EventIdPath, resources: ResourcesDep) -> ForgottenEvent:
    """Deletes one event; memory is computed again without it."""
    was_there = await resources.users.forget_event(user_id, event_id)
    return ForgottenEvent(user_id=user_id, event_id=event_id, forgotten=was_there)


async def _lines(user_id: str, first: TitledEvent, rest: AsyncIterator[TitledEvent]) -> AsyncIterator[str]:
    yield _line(user_id, first)
    async for event in rest:
        yield _line(user_id, event)


def _line(user_id: str, event: TitledEvent) -> str:
    return json.dumps({"user_id": without_tenant(user_id), **event._asdict()}, ensure_ascii=False) + "\n"
