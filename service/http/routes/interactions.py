"""POST /interactions"""

from functools import partial
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import ValidationError

from model_store.event_types import UNTYPED
from model_store.text.history import derived_event_id
from service.errors import AllRejected
from service.http.body import JsonRoute, json_response
from service.http.dependencies import ResourcesDep, while_connected
from service.http.fields import reason, unknown_fields
from service.http.schemas.interactions import (
    EventContent,
    Interaction,
    InteractionResult,
    InteractionsRequest,
    InteractionsResponse,
)
from service.store.events import Event

_ID_OF_UNTYPED = "view"  # earlier versions took events without a type for views: a resend must have the same id

router = APIRouter(tags=["interactions"], route_class=JsonRoute)


@router.post(
    "/interactions",
    status_code=202,
    response_model=InteractionsResponse,
    responses={200: {"model": InteractionsResponse}, 504: {}},
)
async def add_interactions(body: InteractionsRequest, request: Request, resources: ResourcesDep) -> Response:
    """Stores events: 202 when they are durable, 200 when memory holds them (`wait: visible`).

    With `wait: visible`, 504 means that they are durable, but that memory does not hold them in time.
    """
    submit = partial(resources.ingest.submit, body.interactions, check=event_or_reason, durability=body.durability)
    if body.wait == "visible":
        timeout_s = resources.settings.visible_timeout_s
        outcomes = await while_connected(request, submit("visible", timeout_s=timeout_s))
    else:
        outcomes = await submit("durable")
    results = [InteractionResult(index=index, **vars(outcome)) for index, outcome in enumerate(outcomes)]
    if all(result.status == "rejected" for result in results):
        raise AllRejected([result.model_dump() for result in results], "interactions")
    return json_response(InteractionsResponse(results=results), 200 if body.wait == "visible" else 202)


def event_or_reason(element: Any) -> Event | str:
    """The event of one JSON element, or why it is refused."""
    if isinstance(element, dict) and len(element) > len(Interaction.model_fields):
        return unknown_fields(name for name in element if name not in Interaction.model_fields)
    try:
        interaction = Interaction.model_validate(element)
    except ValidationError as error:
        return reason(error)
    kind = _ID_OF_UNTYPED if interaction.type == UNTYPED else interaction.type
    facts = (interaction.user_id, interaction.item_id, interaction.timestamp, kind)
    return event_of(interaction.event_id or derived_event_id(*facts), interaction.user_id, interaction)


def event_of(event_id: str, user_id: str, content: EventContent) -> Event:
    return Event(
        event_id=event_id,
        user_id=user_id,
        item_id=content.item_id,
        timestamp=content.timestamp,
        type=content.type,
        value=content.value,
        query=content.query,
        session_id=content.session_id,
        context=content.context or None,
        recommendation_id=content.recommendation_id,
    )
