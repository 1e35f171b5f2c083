"""GET /model"""

from fastapi import APIRouter

from service.deps import ResourcesDep
from service.schemas import ModelInfo

router = APIRouter(tags=["model"])


@router.get("/model")
async def get_model(resources: ResourcesDep) -> ModelInfo:
    """The bundle that is served."""
    return resources.describe()
