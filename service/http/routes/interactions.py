"""POST /interactions"""

from fastapi import APIRouter, Response

from service.errors import AllRejected
from service.http.dependencies import IngestDep
from service.http.schemas import InteractionsRequest, InteractionsResponse

router = APIRouter(tags=["interactions"])


@router.post("/interactions", status_code=202, responses={200: {"model": InteractionsResponse}})
async def add_interactions(body: InteractionsRequest, response: Response, ingest: IngestDep) -> InteractionsResponse:
    """Events to remember: 202 when they cannot be lost, 200 when memory holds them (`wait: visible`)."""
    answer = await ingest.submit(body.interactions, body.wait)
    if answer.is_all_rejected:
        raise AllRejected([result.model_dump() for result in answer.results])
    response.status_code = 200 if body.wait == "visible" else 202
    return answer
