"""POST /recommend"""

from fastapi import APIRouter, Request

from service.http.dependencies import RecommenderDep, while_connected
from service.http.routes.direct import DirectRecommend
from service.http.schemas import RecommendRequest, RecommendResponse

router = APIRouter(tags=["recommend"], route_class=DirectRecommend)


@router.post("/recommend")
async def recommend(body: RecommendRequest, request: Request, recommender: RecommenderDep) -> RecommendResponse:
    """k items for a user."""
    return await while_connected(request, recommender.recommend(body))
