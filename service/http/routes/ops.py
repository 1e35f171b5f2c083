"""Probes and metrics. Probes ask for no key, touch nothing slow and are not logged."""

from typing import Annotated

from fastapi import APIRouter, Depends, Response

from service.http.dependencies import ResourcesDep, ensure_ready
from service.http.schemas import Health
from service.metrics import CONTENT_TYPE

router = APIRouter(tags=["operations"])


@router.get("/livez")
async def livez() -> Health:
    """The process is alive; stays so while it drains."""
    return Health(status="ok")


@router.get("/startupz")
async def startupz(resources: ResourcesDep) -> Health:
    """The bundle is loaded."""
    return Health(status="ok")


@router.get("/readyz")
async def readyz(ready: Annotated[None, Depends(ensure_ready)]) -> Health:
    """A request would be answered now: warm, store reachable, not shutting down."""
    return Health(status="ok")


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics(resources: ResourcesDep) -> Response:
    """Prometheus text."""
    return Response(resources.metrics.render(), media_type=CONTENT_TYPE)
