"""Probes and metrics. Probes need no API key, do no slow work and write no access line."""

import asyncio

from fastapi import APIRouter, Request, Response

from service.errors import Draining, NotReady
from service.http.access.routes import ScopedRoute
from service.http.dependencies import ResourcesDep
from service.http.schemas.ops import Health, Readiness
from service.metrics import CONTENT_TYPE

router = APIRouter(tags=["operations"], route_class=ScopedRoute)


@router.get("/livez")
async def livez() -> Health:
    """The process is alive; also true while it shuts down."""
    return Health(status="ok")


@router.get("/startupz")
async def startupz(resources: ResourcesDep) -> Health:
    """The bundle is loaded."""
    return Health(status="ok")


@router.get("/readyz")
async def readyz(request: Request, resources: ResourcesDep) -> Readiness:
    """A request would be answered now: the model is warm, the store takes writes, the service is not shutting down."""
    if request.app.state.is_draining:
        raise Draining("The service is shutting down.")
    if not resources.engine.is_ready:
        raise NotReady("The model is warming up.")
    try:
        async with asyncio.timeout(resources.settings.store_timeout_s):
            await resources.store.probe()
            sealed = await resources.store.sealing.problem()
    except TimeoutError:
        raise NotReady("The memory store did not answer in time.") from None
    if sealed is not None:
        raise NotReady(f"Records of users cannot be read: {sealed}.")
    return Readiness(status="ok", items_waiting=len(resources.engine.intake))


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics(resources: ResourcesDep) -> Response:
    """Metrics as Prometheus text."""
    return Response(resources.metrics.render(), media_type=CONTENT_TYPE)
