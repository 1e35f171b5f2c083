"""POST /interactions"""

from fastapi import APIRouter, Request, Response

from service.errors import AllRejected
from service.http.body import JsonRoute, json_response
from service.http.dependencies import get_resources
from service.http.schemas import InteractionsRequest, InteractionsResponse

router = APIRouter(tags=["interactions"], route_class=JsonRoute)


@router.post(
    "/interactions",
    status_code=202,
    response_model=InteractionsResponse,
    responses={200: {"model": InteractionsResponse}},
)
async def add_interactions(body: InteractionsRequest, request: Request) -> Response:
    """Events to remember: 202 when they cannot be lost, 200 when memory holds them (`wait: visible`)."""
    answer = await (await get_resources(request)).ingest.submit(body.interactions, body.wait)
    if answer.is_all_rejected:
        raise AllRejected([result.model_dump() for result in answer.results])
    return json_response(answer, 200 if body.wait == "visible" else 202)
