"""Wrong and odd requests to the real application: each gets a problem document or a correct answer; no data is lost."""

import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from httpx2 import AsyncClient, Response
from redis.asyncio import Redis

from service.store.embedded.server import EmbeddedServer
from tests.service import fuzzing
from tests.service.real import NOW, interaction, open_app

TEMPLATE_TOKENS = ["<|im_start|>", "[INST]", "<s>", "</s>", "<|endoftext|>", "{{system}}"]
JSON = {"content-type": "application/json"}


@pytest.fixture
async def client(bundle_path: Path, valkey: EmbeddedServer, raw: Redis) -> AsyncIterator[AsyncClient]:
    """The client of an application that stores one event. After the test, the event must still be stored."""
    async with open_app(bundle_path, valkey.url) as (_, client):
        kept = {"interactions": [interaction(1, "kept")], "wait": "visible"}
        assert (await client.post("/interactions", json=kept)).status_code == 200
        yield client
        page = (await client.get("/users/kept")).json()
        assert page["counts"] == {"events": 1, "states": 1}, "the stored event is lost"
        assert (await client.post("/recommend", json={"user_id": "kept"})).json()["fallback"] is None


def assert_refused(answer: Response, *statuses: int) -> dict[str, Any]:
    assert answer.status_code in (statuses or (422,)), f"{answer.status_code}: {answer.text[:500]}"
    assert answer.headers["content-type"] == "application/problem+json"
    document: dict[str, Any] = answer.json()
    assert document["detail"] and "Traceback" not in answer.text
    return document


@pytest.mark.parametrize("path", ["/recommend", "/interactions", "/items"])
@pytest.mark.parametrize(
    "body", [b"", b"{", b"nonsense", b"\xff\xfe", b"[1, 2", b'"text"', b"null", b"[]", b"[" * 9999]
)
async def test_bodies_that_are_no_request_are_refused(client: AsyncClient, path: str, body: bytes) -> None:
    assert_refused(await client.post(path, content=body, headers=JSON), 400, 422)


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        ({"k": 0}, "k"), ({"k": 10_000}, "k"), ({"k": "5"}, "k"), ({"k": 1.5}, "k"), ({"k": True}, "k"),
        ({"user_id": 7}, "user_id"), ({"user_id": ""}, "user_id"), ({"user_id": "x" * 900_000}, "user_id"),
        ({"user_id": "a\u0000b"}, "user_id"), ({"user_id": "a\nb"}, "user_id"), ({"usre_id": "u"}, "usre_id"),
        ({"recent": "i1"}, "recent"), ({"recent": [{"item_id": "i1", "timestamp": "now"}]}, "recent.0.timestamp"),
        ({"recent": [{"item_id": "i1"}] * 101}, "recent"), ({"candidates": []}, "candidates"),
        ({"candidates": ["i1"] * 1001}, "candidates"), ({"filter": {"a": {"b": 1}}}, "filter.a"),
        ({"deadline_ms": 0}, "deadline_ms"), ({"exclude_seen": "no"}, "exclude_seen"), ({"explain": 1}, "explain"),
    ],
)  # fmt: skip
async def test_the_problem_names_the_wrong_field(client: AsyncClient, request_: dict[str, Any], field: str) -> None:
    document = assert_refused(await client.post("/recommend", json=request_))
    assert [error["field"] for error in document["errors"]] == [field]


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
async def test_numbers_that_are_not_finite_are_refused(client: AsyncClient, number: str) -> None:
    event = json.dumps(interaction(2)).replace("}", f', "value": {number}}}')
    document = assert_refused(
        await client.post("/interactions", content=f'{{"interactions": [{event}]}}', headers=JSON)
    )
    assert "value" in document["results"][0]["reason"]
    assert_refused(await client.post("/recommend", content=f'{{"filter": {{"a": {number}}}}}', headers=JSON))


@pytest.mark.parametrize(
    "wrong",
    [
        {"timestamp": -1}, {"timestamp": int(time.time()) + 3600}, {"timestamp": NOW * 1000}, {"timestamp": "2024"},
        {"timestamp": 1.5}, {"timestamp": 10**30}, {"timestamp": None}, {"item_id": "unknown"}, {"item_id": ""},
        {"item_id": "x" * 900_000}, {"item_id": "i\u2028"}, {"user_id": "\u0007"}, {"event_id": "x" * 129},
        {"type": ""}, {"value": "5"}, {"colour": "red"},
    ],
)  # fmt: skip
async def test_a_rejected_interaction_has_a_reason(client: AsyncClient, wrong: dict[str, Any]) -> None:
    body = {"interactions": [interaction(2) | wrong, interaction(3)]}
    answer = await client.post("/interactions", json=body)
    assert answer.status_code == 202, answer.text[:500]
    bad, good = answer.json()["results"]
    assert (bad["status"], good["status"]) == ("rejected", "accepted")
    assert next(iter(wrong)) in bad["reason"] and len(bad["reason"]) < 500


async def test_milliseconds_get_a_hint(client: AsyncClient) -> None:
    body = {"interactions": [interaction(2, timestamp=NOW * 1000)]}
    assert "milliseconds" in assert_refused(await client.post("/interactions", json=body))["results"][0]["reason"]


async def test_bodies_over_the_limit_are_refused(client: AsyncClient) -> None:
    body = {"interactions": [interaction(2)], "padding": "x" * 10_000_000}
    assert_refused(await client.post("/interactions", json=body), 413)


async def test_duplicates_in_one_request_are_stored_once(client: AsyncClient) -> None:
    body = {"interactions": [interaction(2)] * 3 + [interaction(2, item_id="i5")]}
    results = (await client.post("/interactions", json=body)).json()["results"]
    assert [each["status"] for each in results] == ["accepted", "duplicate", "duplicate", "conflict"]
    assert (await client.get("/users/u")).json()["counts"]["events"] == 1


@pytest.mark.parametrize("text", TEMPLATE_TOKENS)
async def test_chat_template_tokens_are_plain_text(client: AsyncClient, text: str) -> None:
    path = {"<": "%3C", ">": "%3E", "|": "%7C", "/": "%2F", "[": "%5B", "]": "%5D", "{": "%7B", "}": "%7D"}
    quoted = "".join(path.get(char, char) for char in text)
    assert (await client.put(f"/items/{quoted}", json={"title": f"{text} {text}"})).status_code == 200
    event = interaction(2, text, item_id=text)
    assert (await client.post("/interactions", json={"interactions": [event], "wait": "visible"})).status_code == 200
    answer = (await client.post("/recommend", json={"user_id": text, "exclude_seen": False, "k": 50})).json()
    assert answer["fallback"] is None and text in [item["item_id"] for item in answer["items"]]
    assert (await client.get(f"/users/{quoted}")).json()["recent"][0]["title"] == f"{text} {text}"


@pytest.mark.parametrize("title", ["", " ", "\u0000", "\u200b\u200b", "\n\t", 7, None, "x" * 1025])
async def test_titles_without_a_visible_character_are_refused(client: AsyncClient, title: Any) -> None:
    assert_refused(await client.put("/items/new", json={"title": title}))
    assert_refused(await client.get("/items/new"), 404)


async def test_items_may_have_equal_titles_and_line_breaks_are_removed(client: AsyncClient) -> None:
    for number in range(3):
        assert (await client.put(f"/items/same{number}", json={"title": "Same\nTitle\u0007"})).json()[
            "title"
        ] == "Same Title"
    answer = await client.post("/recommend", json={"recent": [{"item_id": "same0"}], "k": 50, "exclude_seen": False})
    names = [item["item_id"] for item in answer.json()["items"]]
    assert len(names) == len(set(names)) and {"same0", "same1", "same2"} <= set(names)


async def test_unknown_users_and_items_are_a_404(client: AsyncClient) -> None:
    for path in ("/users/nobody", "/users/nobody/export", "/items/nothing", "/items/nothing/neighbors"):
        assert_refused(await client.get(path), 404)
    assert_refused(await client.patch("/items/nothing", json={"hidden": True}), 404)
    assert_refused(await client.delete("/items/nothing"), 404)
    for cursor in ("x", "????", "MTox" * 50, "aW5mOg"):
        assert (await client.get("/users/kept", params={"cursor": cursor})).status_code in (200, 400)


async def test_wrong_routes_and_methods_are_told_what_to_do(client: AsyncClient) -> None:
    for path in ("/nothing", "/items/a/b", "/user"):
        assert "/docs" in assert_refused(await client.get(path), 404)["detail"]
    answer = await client.delete("/recommend")
    assert "Allow" in assert_refused(answer, 405)["detail"] and answer.headers["allow"] == "POST"


def test_no_request_of_schemathesis_is_answered_with_500(bundle_path: Path, valkey: EmbeddedServer) -> None:
    """A few hundred requests, whose answers are also those of the document; `make chaos` sends five thousand."""
    with fuzzing.opened(bundle_path, valkey.url) as app:
        fuzzing.fuzz(app, each=12, within_s=30)
        assert app.statuses.total() > 43, "not one request to each operation"
