"""GET /model"""

from fastapi import APIRouter

from service.http.dependencies import ResourcesDep
from service.http.schemas import ModelInfo

router = APIRouter(tags=["model"])


@router.get("/model")
async def get_model(resources: ResourcesDep) -> ModelInfo:
    """The bundle that is served."""
    return resources.describe()
