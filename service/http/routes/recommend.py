"""POST /recommend for one user, and POST /recommend/users for several."""

from dataclasses import replace

from fastapi import APIRouter, Request

from service.http.body import JsonRoute
from service.http.dependencies import ResourcesDep, while_connected
from service.http.requests.bodies import RecommendRequest, SharedFields, UsersRequest
from service.http.requests.filters import condition_of
from service.http.requests.rules import rules_of
from service.http.schemas.recommendations import RecommendResponse, UsersResponse
from service.usecases.ranking import requests as use_case
from service.usecases.timeline import SessionItem

router = APIRouter(tags=["recommend"], route_class=JsonRoute)


@router.post("/recommend", responses={409: {}, 410: {}, 504: {}})
async def recommend(body: RecommendRequest, request: Request, resources: ResourcesDep) -> RecommendResponse:
    """k items for a user, or the next page of an earlier list."""
    answers = resources.answers
    work = answers.recommend(to_request(body)) if body.cursor is None else answers.next_page(body.cursor)
    return RecommendResponse.model_validate(await while_connected(request, work))


@router.post("/recommend/users", responses={409: {}, 504: {}})
async def recommend_to_users(body: UsersRequest, request: Request, resources: ResourcesDep) -> UsersResponse:
    """k items for each of several users, such as a household or the readers of a newsletter."""
    wanted = replace(_to_request(body), rules=rules_of(body, is_distinct=body.distinct))
    requests = [replace(wanted, user_id=user_id) for user_id in body.users]
    found = await while_connected(request, resources.answers.recommend_many(requests))
    return UsersResponse.model_validate({"recommendations": found})


def to_request(body: RecommendRequest) -> use_case.Request:
    session = [SessionItem(item.item_id, item.timestamp) for item in body.recent]
    rules = rules_of(body, pins=body.pins, is_paged=body.paged)
    return replace(_to_request(body), user_id=body.user_id, recent=session, rules=rules)


def _to_request(body: SharedFields) -> use_case.Request:
    return use_case.Request(
        k=body.k,
        exclude_seen=body.exclude_seen,
        explain=body.explain,
        candidates=body.candidates,
        filter=None if body.filter is None else condition_of(body.filter),
        exclude=body.exclude,
        deadline_ms=body.deadline_ms,
        timestamp=body.timestamp,
        query=body.query,
        reasoning=body.reasoning,
    )
