"""POST /recommend"""

from fastapi import APIRouter, Request

from service.http.body import JsonRoute
from service.http.dependencies import get_resources, while_connected
from service.http.schemas import RecommendRequest, RecommendResponse

router = APIRouter(tags=["recommend"], route_class=JsonRoute)


@router.post("/recommend")
async def recommend(body: RecommendRequest, request: Request) -> RecommendResponse:
    """k items for a user."""
    recommender = (await get_resources(request)).recommender
    return await while_connected(request, recommender.recommend(body))
