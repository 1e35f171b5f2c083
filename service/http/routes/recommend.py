"""POST /recommend"""

from fastapi import APIRouter, Request

from service.http.body import JsonRoute
from service.http.dependencies import ResourcesDep, while_connected
from service.http.schemas import RecommendRequest, RecommendResponse
from service.usecases import recommend as recommend_use_case
from service.usecases.recommend import SessionItem

router = APIRouter(tags=["recommend"], route_class=JsonRoute)


@router.post("/recommend")
async def recommend(body: RecommendRequest, request: Request, resources: ResourcesDep) -> RecommendResponse:
    """k items for a user."""
    asked = recommend_use_case.Request(
        **{**dict(body), "recent": [SessionItem(item.item_id, item.timestamp) for item in body.recent]}
    )
    made = await while_connected(request, resources.recommender.recommend(asked))
    return RecommendResponse.model_validate(made)
