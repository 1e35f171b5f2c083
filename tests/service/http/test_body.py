"""Bodies: what is read, what is refused and with which words. Work for a caller who leaves is stopped."""

import asyncio
import gc
import gzip
import json
import time
from functools import cache
from typing import Any

import pytest
from fastapi import Request
from fastapi.exceptions import RequestValidationError
from httpx2 import Response
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from service.errors import BadRequest, ClientGone, Overloaded
from service.http.body import parse_body
from service.http.dependencies import while_connected
from service.http.fields import field_errors
from service.http.requests.bodies import RecommendRequest
from service.http.routes.interactions import event_or_reason
from service.http.schemas.interactions import InteractionsRequest
from service.http.schemas.items import ItemBody, ItemPatch, ItemsRequest, NewItem
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


MODELS = [RecommendRequest, InteractionsRequest, ItemsRequest, ItemBody, ItemPatch]


def through_python(model: type[BaseModel], body: bytes) -> BaseModel | None:
    """The body read by Python's parser, then validated. None when it is refused."""
    try:
        return model.model_validate(json.loads(body))
    except (ValidationError, ValueError):
        return None


def parsed(model: type[BaseModel], body: bytes) -> BaseModel | None:
    try:
        return parse_body(model, body)
    except RequestValidationError:
        return None


def problem(body: bytes, model: type[BaseModel] = RecommendRequest) -> str:
    """The text of the refusal."""
    with pytest.raises((BadRequest, RequestValidationError)) as caught:
        parse_body(model, body)
    if isinstance(caught.value, RequestValidationError):
        return "; ".join(f"{each['loc']}: {each['msg']}" for each in caught.value.errors())
    return str(caught.value)


@given(st.fixed_dictionaries({}, optional=FIELDS), st.booleans())
def test_both_parsers_read_the_same(fields: dict[str, Any], is_ascii: bool) -> None:
    body = json.dumps(fields, ensure_ascii=is_ascii).encode("utf-8", "surrogatepass")
    try:
        assert parsed(RecommendRequest, body) == through_python(RecommendRequest, body)
    except BadRequest:  # a lone surrogate that is written as bytes is not UTF-8
        assert not is_ascii


@pytest.mark.parametrize("body", [b'{"k": 3, "k": 4}', b' {"k":3} ', b"{}", b'{"user_id": "\\ud83d\\ude00 \xc3\xa9"}'])
def test_odd_but_good_requests_are_read(body: bytes) -> None:
    assert parsed(RecommendRequest, body) == through_python(RecommendRequest, body) is not None


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("body", [b"null", b"[]", b"7", b'"text"', b"true"])
def test_a_body_that_is_no_object_is_refused(model: type[BaseModel], body: bytes) -> None:
    assert problem(body, model).startswith("('body',): ")


def test_an_empty_body_is_a_missing_field() -> None:
    assert problem(b"") == "('body',): Field required"


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b'{"k": }', "Expecting value at character 6"), (b'{"k": "\xff"}', "not UTF-8"),
        (b"[" * 100_000, "nested too deeply"), (b'{"k": 1' + b"0" * 5000 + b"}", "a number is too long"),
    ],
)  # fmt: skip
def test_an_unreadable_body_gets_its_reason(body: bytes, text: str) -> None:
    assert text in problem(body)


def test_a_lone_surrogate_is_the_mistake_of_its_field() -> None:
    assert problem(b'{"user_id": "\\ud800"}').startswith("('body', 'user_id'): ")


async def post(opened: Shell, declared: str) -> Response:
    return await opened.client.post("/recommend", content=b'{"user_id": "u"}', headers={"content-type": declared})


async def test_the_content_type_must_be_json() -> None:
    async with shell() as opened:
        for declared in ("Application/JSON; charset=utf-8", "application/x+json"):
            answer = await post(opened, declared)
            assert answer.is_success and answer.headers["content-type"] == "application/json"
        for declared in ("text/plain", "text/json", ""):
            answer = await post(opened, declared)
            assert answer.status_code == 422 and "Content-Type: application/json" in answer.text


async def test_a_compressed_body_is_told_to_be_sent_plain() -> None:
    async with shell() as opened:
        for encoding, status in (("gzip", 422), ("zstd, gzip", 422), ("Identity", 200)):
            body = gzip.compress(b'{"user_id": "u"}') if status == 422 else b'{"user_id": "u"}'
            headers = {"content-type": "application/json", "content-encoding": encoding}
            answer = await opened.client.post("/recommend", content=body, headers=headers)
            assert answer.status_code == status and ("without Content-Encoding" in answer.text) == (status == 422)


async def test_every_body_goes_through_the_same_route_class() -> None:
    async with shell() as opened:
        documented = opened.app.openapi()["paths"].items()
        with_body = [
            (path, method) for path, methods in documented for method in methods if "requestBody" in methods[method]
        ]
        assert len(with_body) == 13
        for path, method in with_body:
            answer = await opened.client.request(
                method,
                path.replace("{id}", "key_5f0c2ab19d3e"),
                content=b'{"a": }',
                headers={"content-type": "application/json"},
            )
            assert answer.status_code == 400 and "character 6" in answer.json()["detail"], path


async def test_a_refused_request_is_counted_and_answered() -> None:
    def refuse() -> None:
        raise Overloaded(retry_after_s=3)

    async with shell() as opened:
        opened.recommender.hook = refuse
        answer = await opened.client.post("/recommend", json={})
        assert answer.status_code == 429 and answer.headers["retry-after"] == "3"
        assert opened.metric("rejected_total", reason="Overloaded") == 1


# ---- callers who leave


def request(*messages: str) -> Request:
    """A request whose caller sends these messages, then nothing."""
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
    assert is_stopped.is_set(), "the work goes on after the answer"
    task = asyncio.current_task()
    assert task is not None and not task.cancelling()


async def test_a_passed_deadline_is_not_mistaken_for_a_caller_who_left() -> None:
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


MIB = 1 << 20
GOOD = {"items": [{"item_id": f"i{n}", "title": "t", "attributes": {f"name-{m}": "x" * 26 for m in range(50)}}
                  for n in range(500)]}  # fmt: skip
STRAY = {f"f{number:06}": 1 for number in range(70_000)}
COSTLY: list[tuple[type[BaseModel], Any]] = [
    (RecommendRequest, STRAY),
    (RecommendRequest, {"recent": [STRAY]}),
    (RecommendRequest, {"filter": STRAY}),
    (RecommendRequest, {"recent": [dict.fromkeys(list(STRAY)[:60], 1)] * 1000}),
    (RecommendRequest, {"candidates": [1] * 300_000}),
    (ItemsRequest, {"items": [{"attributes": dict.fromkeys(list(STRAY)[:50])}] * 500}),
    (ItemsRequest, {"items": [dict.fromkeys(list(STRAY)[:60], 1)] * 1000}),
    (InteractionsRequest, {"interactions": [STRAY]}),
    (InteractionsRequest, {"interactions": [dict.fromkeys(list(STRAY)[:64], 1)] * 500}),
    (InteractionsRequest, {"interactions": [[]] * 250_000}),
    (InteractionsRequest, {"interactions": [[[]] * 1000] * 250}),
    (InteractionsRequest, {"interactions": [{"context": {f"k{number}": [] for number in range(58)}}] * 500}),
    (InteractionsRequest, {"interactions": [{"user_id": "\u200b" * 256, "item_id": "\u200b" * 255 + "\n"}] * 300}),
    (InteractionsRequest, {"interactions": [{"context": {"k": "\u200b" * 300}, "query": "\n" * 200}] * 200}),
]


class GoodItems(BaseModel):
    """The elements of a body of items; the route reads them one by one."""

    items: list[NewItem]


@cache
def good_s() -> float:
    return cpu_s(GoodItems, GOOD)


@pytest.mark.parametrize("model, value", COSTLY)
def test_a_bad_body_costs_no_more_than_a_good_one(model: type[BaseModel], value: Any) -> None:
    assert cpu_s(model, value) < good_s()


def test_the_same_unknown_field_many_times_costs_no_more_than_a_good_body() -> None:
    body = b'{"k": 1' + b', "x": 1' * 120_000 + b"}"
    assert cpu_s(RecommendRequest, body) < good_s()


def cpu_s(model: type[BaseModel], value: Any) -> float:
    """CPU time to read the body and to report what is wrong with it; the least of three."""
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    assert len(body) <= MIB
    times = []
    gc.disable()  # the service collects rarely: see `service/garbage.py`
    for _ in range(3):
        started = time.thread_time()
        try:
            read = parse_body(model, body)
        except RequestValidationError as error:
            field_errors(error.errors())
        else:
            if isinstance(read, InteractionsRequest):
                assert all(isinstance(event_or_reason(each), str) for each in read.interactions)
        times.append(time.thread_time() - started)
    gc.enable()
    return min(times)


def test_brackets_in_texts_are_no_lists() -> None:
    body = json.dumps({"interactions": ['[]{}\\"' * 20_000]}).encode()
    assert len(parse_body(InteractionsRequest, body).interactions) == 1
    with pytest.raises(RequestValidationError, match="more than 30000"):
        parse_body(InteractionsRequest, b'{"interactions": ["]"' + b", [[]]" * 20_000 + b"]}")


def test_a_field_that_is_too_large_is_named() -> None:
    assert problem(json.dumps({"recent": [STRAY]}).encode()).startswith("('body', 'recent', 0): has 70000 members")


def test_an_unknown_field_of_an_interaction_is_named() -> None:
    known = {"user_id": "u", "item_id": "i", "timestamp": 1, "type": "t", "value": 1.0, "event_id": "e"}
    assert event_or_reason(known | {"colour": 1}) == "colour: Extra inputs are not permitted"
    assert event_or_reason({"colour": 1} | dict(list(known.items())[:5])) == "colour: Extra inputs are not permitted"
