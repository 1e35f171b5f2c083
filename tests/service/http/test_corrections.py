"""Conflicts and corrections of events over HTTP, and what an event carries besides: its session and its context."""

import json
from pathlib import Path
from typing import Any

import pytest
from httpx2 import AsyncClient

from service.commands import import_file
from service.store.embedded.server import EmbeddedServer
from tests.service.real import NOW, Service, open_app, open_service

EVENT = {"event_id": "e1", "user_id": "u", "item_id": "i1", "timestamp": NOW, "type": "purchase", "value": 2.0}


async def send(client: AsyncClient, *events: dict[str, Any]) -> list[str]:
    answer = await client.post("/interactions", json={"interactions": list(events)})
    return [each["status"] for each in answer.json()["results"]]


async def stored(client: AsyncClient) -> list[dict[str, Any]]:
    return list((await client.get("/users/u")).json()["recent"])


@pytest.mark.parametrize(
    "change", [{"item_id": "i2"}, {"timestamp": NOW - 1}, {"type": "view"}, {"value": 1.0}, {"value": None},
               {"query": "tea"}, {"session_id": "s"}, {"context": {"device": "phone"}}]
)  # fmt: skip
async def test_other_content_under_a_known_id_is_a_conflict_and_changes_nothing(
    bundle_path: Path, valkey: EmbeddedServer, raw: Any, change: dict[str, Any]
) -> None:
    async with open_app(bundle_path, valkey.url) as (_, client):
        assert await send(client, EVENT) == ["accepted"]
        before = await stored(client)
        answer = await client.post("/interactions", json={"interactions": [EVENT | change, EVENT]})
        (conflict, again) = answer.json()["results"]
        assert answer.status_code == 202 and again["status"] == "duplicate"
        assert conflict["status"] == "conflict" and conflict["event_id"] == "e1" and "PUT" in conflict["reason"]
        assert await stored(client) == before


async def test_another_value_without_an_id_is_a_conflict(bundle_path: Path, valkey: EmbeddedServer, raw: Any) -> None:
    event = {name: value for name, value in EVENT.items() if name != "event_id"}
    async with open_app(bundle_path, valkey.url) as (_, client):
        assert await send(client, event, event, event | {"value": 5.0}) == ["accepted", "duplicate", "conflict"]
        assert [each["value"] for each in await stored(client)] == [2.0]


async def test_a_correction_takes_the_place_of_the_event(bundle_path: Path, valkey: EmbeddedServer, raw: Any) -> None:
    corrected = {"item_id": "i2", "timestamp": NOW - 100, "type": "rating", "value": 1.5}
    async with open_app(bundle_path, valkey.url) as (_, client):
        await send(client, EVENT, EVENT | {"event_id": "e0", "item_id": "i3", "timestamp": NOW - 50})
        path = "/users/u/interactions/e1"
        answers = [await client.put(path, json=corrected) for _ in range(2)]
        assert [answer.json()["status"] for answer in answers] == ["replaced", "unchanged"]
        assert answers[0].json() | {"status": None} == {"user_id": "u", "event_id": "e1", "status": None}
        assert [each["event_id"] for each in await stored(client)] == ["e0", "e1"], "the order is not that of the times"
        assert (await stored(client))[1].items() >= corrected.items()
        assert (await client.get("/users/u")).json()["counts"]["events"] == 2
        assert await send(client, EVENT) == ["conflict"], "a resend of the event before undid the correction"
        listed = await client.post("/recommend", json={"user_id": "u", "k": 100, "exclude_seen": True})
        items = {each["item_id"] for each in listed.json()["items"]}
        assert "i1" in items and "i2" not in items, "what counts as seen is not that of the corrected event"


async def test_a_correction_that_comes_first_counts(bundle_path: Path, valkey: EmbeddedServer, raw: Any) -> None:
    async with open_app(bundle_path, valkey.url) as (_, client):
        body = {"item_id": "i2", "timestamp": NOW}
        answer = await client.put("/users/u/interactions/e1", json=body)
        assert answer.json()["status"] == "created"
        assert await send(client, EVENT) == ["conflict"]
        assert [each["item_id"] for each in await stored(client)] == ["i2"]


async def test_a_wrong_correction_changes_nothing(bundle_path: Path, valkey: EmbeddedServer, raw: Any) -> None:
    async with open_app(bundle_path, valkey.url) as (_, client):
        await send(client, EVENT)
        before = await stored(client)
        for body, word in (
            ({"item_id": "unknown", "timestamp": NOW}, "PUT /items"),
            ({"item_id": "i2"}, "timestamp"),
            ({"item_id": "i2", "timestamp": NOW, "user_id": "v"}, "user_id"),
        ):
            answer = await client.put("/users/u/interactions/e1", json=body)
            assert answer.status_code == 422 and word in answer.json()["detail"], answer.text
        assert await stored(client) == before


async def test_session_and_context_are_kept_exported_imported_and_forgotten(
    bundle_path: Path, valkey: EmbeddedServer, raw: Any, tmp_path: Path
) -> None:
    extra = {"session_id": "visit-7", "context": {"device": "phone", "place": 3, "is_new": True, "share": 0.5}}
    async with open_app(bundle_path, valkey.url) as (_, client):
        assert await send(client, EVENT | extra) == ["accepted"]
        assert (await stored(client))[0].items() >= extra.items()
        exported = (await client.get("/users/u/export")).text
        assert json.loads(exported).items() >= extra.items()
        await client.delete("/users/u")
        assert (await client.post("/users/u:recreate")).json()["was_deleted"], "the import below would be refused"
    keys = [key async for key in raw.scan_iter("*") if b"{u}" in key]
    assert not keys, "the store still holds something about a forgotten user"
    (tmp_path / "export.jsonl").write_text(exported)
    async with open_service(bundle_path, valkey.url) as service:
        await service.eraser.recreate("u")  # otherwise events from before the deletion are refused
        assert await import_file(service.ingest.submit, tmp_path / "export.jsonl") == 1
        ((found, _),) = await service.store.recall("u", service.space, 5)
        assert (found.session_id, found.context) == ("visit-7", extra["context"])


@pytest.mark.parametrize(
    ("context", "word"),
    [({"a": "x" * 2100}, "2048"), ({"a": {"b": 1}}, "text"), ({"a": [1]}, "text"), ([], "object"),
     ({str(n): n for n in range(51)}, "50"), ({"a": None}, "text"), ({"": 1}, "character")],
)  # fmt: skip
async def test_a_context_is_small_and_flat(
    bundle_path: Path, valkey: EmbeddedServer, raw: Any, context: Any, word: str
) -> None:
    async with open_app(bundle_path, valkey.url) as (_, client):
        answer = await client.post("/interactions", json={"interactions": [EVENT | {"context": context}]})
        assert answer.status_code == 422 and word in answer.json()["results"][0]["reason"], answer.text


async def test_the_backlog_counts_users_not_requests(service: Service) -> None:
    for _ in range(3):
        await service.submit([EVENT, EVENT | {"user_id": "v"}], "durable")
    assert await service.store.backlog() == 2, "a resend made the number of waiting users grow"
    entries = await service.store.next_encodings("w", count=100, block_ms=1)
    assert sorted(user for _, user in entries) == ["u", "v"], "a user who waits has one entry"
    await service.store.encoded([entry for entry, user in entries if user == "u"])
    assert await service.store.backlog() == 1, "v still waits"
    await service.store.encoded([entry for entry, _ in entries])
    assert await service.store.backlog() == 0
