"""/settings/events: what types of events mean."""

from fastapi import APIRouter

from model_store.event_types import EventTypes
from service.http.body import JsonRoute
from service.http.dependencies import ResourcesDep
from service.http.schemas.interactions import EventSettings

router = APIRouter(prefix="/settings", tags=["settings"], route_class=JsonRoute)


@router.get("/events")
async def get_event_types(resources: ResourcesDep) -> EventSettings:
    """The table in force: that of the bundle, or the one that was put last."""
    return _shown(resources)


@router.put("/events")
async def put_event_types(body: EventTypes, resources: ResourcesDep) -> EventSettings:
    """Puts a whole table in force: on this replica at once, on others within about a second; it survives a restart.

    What is seen, the window, memory and votes of a user follow at the next read. Live counts follow when all users have
    been counted again, which the service starts by itself; `is_counted` says whether all of them were asked for.
    """
    await resources.event_table.put(body)
    return _shown(resources)


def _shown(resources: ResourcesDep) -> EventSettings:
    table = resources.event_table
    return EventSettings(
        number=table.number, is_counted=table.is_counted, types=table.types.types, other=table.types.other
    )
