"""What events mean, over HTTP: different events, different answers; a table that is put counts at once and stays."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from httpx2 import AsyncClient
from redis.asyncio import Redis

from model_store.event_types import EventTypes
from service.store.embedded.server import EmbeddedServer
from tests.conftest import TITLES, small_voices, write_bundle
from tests.service.real import NOW, open_app

App = tuple[FastAPI, AsyncClient]


@pytest.fixture
async def opened(bundle_path: Path, valkey: EmbeddedServer, raw: Redis) -> AsyncIterator[App]:
    async with open_app(bundle_path, valkey.url) as app_and_client:
        yield app_and_client


async def send(client: AsyncClient, user: str, *events: dict[str, Any]) -> None:
    body = [{"user_id": user, "timestamp": NOW + n, **event} for n, event in enumerate(events)]
    answer = await client.post("/interactions", json={"interactions": body, "wait": "visible"})
    assert answer.status_code == 200, answer.text


async def listed(client: AsyncClient, user: str, **fields: Any) -> list[str]:
    answer = await client.post("/recommend", json={"user_id": user, "k": 20, "timestamp": NOW + 100} | fields)
    assert answer.status_code == 200, answer.text
    return [item["item_id"] for item in answer.json()["items"]]


async def asked(client: AsyncClient, user: str) -> dict[str, Any]:
    return dict((await client.post("/recommend", json={"user_id": user, "k": 20, "timestamp": NOW + 100})).json())


async def test_seven_users_who_did_other_things_get_other_answers(opened: App) -> None:
    _, client = opened
    shelf = ["i3", "i4", "i5", "i6"]
    kinds: dict[str, dict[str, Any]] = {
        "buyer": {"type": "purchase"}, "hater": {"type": "dislike"}, "critic": {"type": "rating", "value": 1.0},
        "fan": {"type": "rating", "value": 5.0}, "viewer": {"type": "view"}, "passer": {"type": "impression"},
        "returner": {"type": "refund"},
    }  # fmt: skip
    for user, kind in kinds.items():
        await send(client, user, *({"item_id": f"i{n}"} for n in (1, 2)), *({"item_id": i, **kind} for i in shelf))
    lists = {user: await listed(client, user) for user in kinds}
    for user in ("buyer", "fan", "hater", "critic", "returner"):
        assert not set(shelf) & set(lists[user]), f"the {user} is shown the same items again"
    for user in ("viewer", "passer"):
        assert set(shelf) & set(lists[user]), f"looking at items emptied the shelf of the {user}"
    prompts = {user: (await asked(client, user))["memory"] for user in kinds}
    assert lists["buyer"] == lists["fan"], "a purchase and a good rating say the same"
    assert lists["hater"] == lists["critic"] == lists["returner"], "a bad rating says what a dislike says"
    assert lists["hater"] != lists["buyer"], "a dislike counts as a purchase"
    assert prompts["hater"] == prompts["passer"], "a dislike entered memory"
    scores = {user: (await asked(client, user))["items"][0]["score"] for user in kinds}
    assert scores["passer"] == scores["hater"] or lists["passer"][0] in shelf, "an event without interest was read"


async def test_a_refund_takes_the_purchase_back(opened: App) -> None:
    _, client = opened
    await send(client, "kept", {"item_id": "i1"}, {"item_id": "i2"})
    bought = [{"item_id": "i1"}, {"item_id": "i7", "type": "purchase"}, {"item_id": "i2"}]
    await send(client, "u", *bought, {"item_id": "i7", "type": "refund"})
    assert "i7" not in await listed(client, "u"), "what came back is recommended again"
    first, second = [(await client.get(f"/users/{user}")).json() for user in ("kept", "u")]
    assert first["memory"] == second["memory"] == [] and second["counts"]["events"] == 4
    at = {user: (await asked(client, user))["items"] for user in ("kept", "u")}
    assert [(i["item_id"], i["score"]) for i in at["kept"] if i["item_id"] != "i7"][:5] == [
        (i["item_id"], i["score"]) for i in at["u"]
    ][:5], "the purchase still counts as interest"


async def test_a_put_table_counts_at_once_on_every_replica_and_after_a_restart(
    opened: App, bundle_path: Path, valkey: EmbeddedServer
) -> None:
    _, client = opened
    await send(client, "u", {"item_id": "i1", "type": "view"}, {"item_id": "i2", "type": "love"})
    assert "i1" in await listed(client, "u")
    table = (await client.get("/settings/events")).json()
    assert table["number"] == 0 and table["is_counted"] is True
    body = {"types": table["types"], "other": table["other"]}
    body["types"]["view"] |= {"seen_s": None}
    body["types"]["love"] = {"weight": -1, "seen_s": 0}
    async with open_app(bundle_path, valkey.url) as (_, other):
        put = (await client.put("/settings/events", json=body)).json()
        assert put["number"] == 1 and put["types"]["view"]["seen_s"] is None
        assert "i1" not in await listed(client, "u") and "i2" in await listed(client, "u")
        async with asyncio.timeout(5):
            while (await other.get("/settings/events")).json()["number"] != 1:
                await asyncio.sleep(0.1)
        assert await listed(other, "u") == await listed(client, "u")
        async with asyncio.timeout(10):
            while not (await client.get("/settings/events")).json()["is_counted"]:
                await asyncio.sleep(0.1)
    async with open_app(bundle_path, valkey.url) as (_, restarted):
        assert (await restarted.get("/settings/events")).json() == (await client.get("/settings/events")).json()
        assert await listed(restarted, "u") == await listed(client, "u")


@pytest.mark.parametrize(
    ("change", "word"),
    [({"weight": 11}, "weight"), ({"seen_s": -1}, "seen_s"), ({"colour": 1}, "colour"), ({"weight": "1"}, "weight"),
     ({"by_value": [{"weight": 1.0}]}, "at_least"), ({"by_value": [{"at_least": 3, "at_most": 2}]}, "at_least")],
)  # fmt: skip
async def test_a_wrong_table_is_refused_and_changes_nothing(opened: App, change: dict[str, Any], word: str) -> None:
    _, client = opened
    answer = await client.put("/settings/events", json={"types": {"view": change}})
    assert answer.status_code == 422 and word in answer.json()["detail"], answer.text
    found = (await client.get("/settings/events")).json()
    assert (
        found["number"] == 0
        and EventTypes.model_validate({"types": found["types"], "other": found["other"]}) == EventTypes()
    )


async def test_an_item_is_seen_for_as_long_as_its_type_says(opened: App) -> None:
    _, client = opened
    await send(client, "u", {"item_id": "i1"}, {"item_id": "i5", "type": "play"})
    assert "i5" not in await listed(client, "u", timestamp=NOW + 86_000)
    assert "i5" in await listed(client, "u", timestamp=NOW + 86_500)


async def test_what_is_near_a_disliked_item_sinks(tmp_path: Path, valkey: EmbeddedServer, raw: Redis) -> None:
    write_bundle(tmp_path / "voices", vocabulary="items", voices=small_voices(len(TITLES)))
    async with open_app(tmp_path / "voices", valkey.url) as (_, client):
        await send(client, "kept", {"item_id": "i1"}, {"item_id": "i2"})
        await send(client, "u", {"item_id": "i1"}, {"item_id": "i2"}, {"item_id": "i9", "type": "dislike"})
        before, after = [
            {item["item_id"]: item["score"] for item in (await asked(client, user))["items"]} for user in ("kept", "u")
        ]
        fallen = {item: before[item] - after[item] for item in before.keys() & after.keys()}
        assert "i9" in before and "i9" not in after, "the disliked item is shown"
        assert max(fallen.values()) - min(fallen.values()) > 0.5, "nothing near the disliked item sank"
        nearest = max(fallen, key=lambda item: fallen[item])
        shown = await listed(client, "u", exclude_seen=False)
        assert shown.index("i9") > (await listed(client, "kept", exclude_seen=False)).index("i9"), nearest


async def test_events_of_all_types_are_all_there(opened: App) -> None:
    """In parts of 500, sent twice: the counts agree to the event."""
    _, client = opened
    kinds = [*EventTypes().types, "a word of ours"]
    events = [
        {"user_id": f"u{n % 40}", "item_id": f"i{n * 7 % 20}", "timestamp": NOW - n, "type": kinds[n % len(kinds)],
         "value": float(n % 5 + 1)}
        for n in range(5_000)
    ]  # fmt: skip
    for status in ("accepted", "duplicate"):
        for start in range(0, len(events), 500):
            body = {"interactions": events[start : start + 500]}
            results = (await client.post("/interactions", json=body)).json()["results"]
            assert {each["status"] for each in results} == {status}
    counts = [(await client.get(f"/users/u{n}?limit=1")).json()["counts"]["events"] for n in range(40)]
    assert sum(counts) == len(events) and set(counts) == {125}
    exported = (await client.get("/users/u3/export")).text.splitlines()
    assert len(exported) == 125, "events that are no interest are missing from the export"
