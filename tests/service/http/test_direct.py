"""The shortest way of a request gives what the long one gives; a caller who leaves stops it."""

import asyncio
import json
from typing import Any

import pytest
from fastapi import Request
from httpx2 import Response
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from service.errors import ClientGone
from service.http.dependencies import while_connected
from service.http.schemas import RecommendRequest
from tests.service.standins import Shell, shell

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3)
FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "user_id": st.text(min_size=1, max_size=3) | SCALARS,
    "k": st.integers(0, 101) | SCALARS,
    "explain": st.booleans() | SCALARS,
    "recent": st.lists(st.fixed_dictionaries({"item_id": st.text(max_size=2)}, optional={"timestamp": SCALARS})),
    "candidates": st.none() | st.lists(SCALARS, max_size=2),
    "filter": st.dictionaries(st.text(max_size=2), SCALARS | st.lists(SCALARS, max_size=2), max_size=2),
    "deadline_ms": st.integers(0, 60_001) | SCALARS,
}


def direct(body: bytes) -> RecommendRequest | None:
    try:
        return RecommendRequest.model_validate_json(body)
    except ValidationError:
        return None


def long(body: bytes) -> RecommendRequest | None:
    try:
        return RecommendRequest.model_validate(json.loads(body))
    except (ValidationError, ValueError):
        return None


@given(st.fixed_dictionaries({}, optional=FIELDS), st.booleans())
def test_what_is_read_directly_is_read_alike_the_long_way(fields: dict[str, Any], is_ascii: bool) -> None:
    body = json.dumps(fields, ensure_ascii=is_ascii).encode("utf-8", "surrogatepass")
    assert direct(body) in (long(body), None)


@pytest.mark.parametrize("body", [b'{"k": 3, "k": 4}', b' {"k":3} ', b"{}", b'{"user_id": "\\ud83d\\ude00 \xc3\xa9"}'])
def test_odd_but_good_requests_are_read_directly(body: bytes) -> None:
    assert direct(body) is not None and direct(body) == long(body)


async def post(opened: Shell, declared: str) -> Response:
    return await opened.client.post("/recommend", content=b'{"user_id": "u"}', headers={"content-type": declared})


async def test_both_ways_answer_alike() -> None:
    async with shell() as opened:
        quick, slow = await post(opened, "Application/JSON; charset=utf-8"), await post(opened, "application/x+json")
        assert quick.is_success and quick.content == slow.content
        assert quick.headers["content-type"] == slow.headers["content-type"] == "application/json"
        assert (await post(opened, "text/plain")).status_code == 422


# ---- callers who leave


def request(*messages: str) -> Request:
    """Of a caller who sends these, then waits."""
    coming = [{"type": message} for message in messages]

    async def receive() -> dict[str, str]:
        return coming.pop(0) if coming else await asyncio.Future()

    return Request({"type": "http"}, receive)


async def test_a_caller_who_leaves_stops_the_work() -> None:
    is_stopped = asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            is_stopped.set()

    with pytest.raises(ClientGone):
        await while_connected(request("http.request", "http.disconnect"), work())
    assert is_stopped.is_set(), "the work goes on behind the answer"
    task = asyncio.current_task()
    assert task is not None and not task.cancelling()


async def test_a_deadline_is_not_taken_for_a_caller_who_left() -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await while_connected(request(), asyncio.sleep(60))


async def test_the_watch_ends_with_the_work() -> None:
    before = asyncio.all_tasks()
    assert await while_connected(request(), asyncio.sleep(0, "done")) == "done"
    with pytest.raises(ValueError, match="of its own"):
        await while_connected(request(), fail())
    await asyncio.sleep(0.01)
    assert asyncio.all_tasks() == before


async def fail() -> None:
    await asyncio.sleep(0)
    raise ValueError("of its own")
