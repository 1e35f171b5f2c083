"""A route for floods: good requests go the shortest way, all others the one of FastAPI.

FastAPI takes longer over a request (content type, JSON, dependencies, validation and serialisation, each in Python)
than everything else does but the model. What the shortest way cannot read goes the long way, which says what is wrong.
"""

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic import TypeAdapter, ValidationError
from starlette.requests import ClientDisconnect

from service.errors import ClientGone, Overloaded
from service.http import problems
from service.http.dependencies import get_resources
from service.http.middleware import count_rejection
from service.http.schemas import RecommendRequest, RecommendResponse

_ANSWER = TypeAdapter(RecommendResponse)


class DirectRecommend(APIRoute):
    """Of an endpoint that takes a RecommendRequest, the request and the recommender."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        go_long_way = super().get_route_handler()

        async def handle(request: Request) -> Response:
            try:
                wanted = RecommendRequest.model_validate_json(await _json_body(request))
            except ValidationError:
                return await go_long_way(request)
            resources = await get_resources(request)
            try:
                answer: RecommendResponse = await self.endpoint(wanted, request, resources.recommender)
            except Overloaded as error:  # comes in floods: through all layers it would cost as much again
                count_rejection(resources.metrics, error)
                return problems.from_service_error(request.scope, error)
            return Response(_ANSWER.dump_json(answer), media_type="application/json")

        return handle


async def _json_body(request: Request) -> bytes:
    """Empty when it is not declared to be JSON."""
    try:
        body = await request.body()
    except ClientDisconnect:
        raise ClientGone("The caller hung up.") from None
    declared = request.headers.get("content-type", "")
    return body if declared.partition(";")[0].strip().lower() == "application/json" else b""
