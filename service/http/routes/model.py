"""GET /model"""

from fastapi import APIRouter

from service.http.access.routes import ScopedRoute
from service.http.dependencies import ResourcesDep
from service.http.schemas.ops import ModelInfo

router = APIRouter(tags=["model"], route_class=ScopedRoute)


@router.get("/model")
async def get_model(resources: ResourcesDep) -> ModelInfo:
    """The bundle that is served."""
    manifest = resources.view.manifest
    return ModelInfo(
        bundle=manifest.name,
        space=manifest.space,
        format=manifest.format_version,
        vocabulary=manifest.vocabulary,
        split_layer=manifest.backbone.split_layer,
        recent_length=manifest.prompt.recent_length,
        max_memory=manifest.memory.max_elements,
        num_items=len(resources.view.catalogue),
        items_waiting=len(resources.engine.intake),
        loaded_at=resources.loaded_at,
    )
