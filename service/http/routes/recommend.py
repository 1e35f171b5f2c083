"""POST /recommend"""

from fastapi import APIRouter, Request

from service.http.body import JsonRoute
from service.http.dependencies import ResourcesDep, while_connected
from service.http.filters import condition_of
from service.http.schemas import RecommendRequest, RecommendResponse
from service.usecases import recommend as use_case
from service.usecases.timeline import SessionItem

router = APIRouter(tags=["recommend"], route_class=JsonRoute)


@router.post("/recommend", responses={409: {}, 504: {}})
async def recommend(body: RecommendRequest, request: Request, resources: ResourcesDep) -> RecommendResponse:
    """k items for a user."""
    recommendation = await while_connected(request, resources.answers.recommend(to_request(body)))
    return RecommendResponse.model_validate(recommendation)


def to_request(body: RecommendRequest) -> use_case.Request:
    session = [SessionItem(item.item_id, item.timestamp) for item in body.recent]
    condition = None if body.filter is None else condition_of(body.filter)
    return use_case.Request(**{**dict(body), "recent": session, "filter": condition})
