"""Lists over HTTP: items by words and filters, related items, users; every page bounded, none lost."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from httpx2 import AsyncClient
from redis.asyncio import Redis

from service.store.embedded.server import EmbeddedServer
from tests.conftest import TITLES, small_voices, write_bundle
from tests.service.real import interaction, open_app


@pytest.fixture(scope="module")
def voiced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lists") / "voiced"
    write_bundle(path, vocabulary="items", voices=small_voices(len(TITLES)))
    return path


@pytest.fixture
async def client(voiced: Path, valkey: EmbeddedServer, raw: Redis) -> AsyncIterator[AsyncClient]:
    async with open_app(voiced, valkey.url) as (_, opened):
        yield opened


async def get(client: AsyncClient, path: str, status: int = 200, **query: Any) -> dict[str, Any]:
    response = await client.get(path, params=query)
    assert response.status_code == status, response.text
    found: dict[str, Any] = response.json()
    return found


async def all_pages(client: AsyncClient, path: str, key: str, **query: Any) -> list[str]:
    page = await get(client, path, **query)
    found = [each[key] for each in page[path[1:]]]
    while page["next_cursor"]:
        page = await get(client, path, cursor=page["next_cursor"], **query)
        found += [each[key] for each in page[path[1:]]]
    return found


async def test_items_are_found_by_words_and_filters(client: AsyncClient) -> None:
    await client.put("/items/new-1", json={"title": "RED Teapot deluxe", "attributes": {"price": 3}})
    await client.put("/items/i4", json={"title": "Renamed", "attributes": {"price": 9}})
    await client.patch("/items/i0", json={"hidden": True})
    await client.delete("/items/i1")
    titles = {f"i{row}": title for row, title in enumerate(TITLES)} | {"new-1": "RED Teapot deluxe", "i4": "Renamed"}
    del titles["i1"]
    for query in ("", "red", "tea RED", "i1", "moon", "renamed", "no such"):
        words = query.casefold().split()
        expected = [key for key, title in titles.items() if all(w in f"{key} {title}".casefold() for w in words)]
        for limit in (3, 500):
            assert await all_pages(client, "/items", "item_id", query=query, limit=limit) == expected, query
    cheap = {"op": "lt", "attribute": "price", "value": 5}
    assert await all_pages(client, "/items", "item_id", filter=json.dumps(cheap)) == ["new-1"]
    assert await all_pages(client, "/items", "item_id", query="red", filter='{"even": true}') == ["i0", "i2", "i6"]
    shown = (await get(client, "/items", query="deluxe"))["items"][0]
    assert shown == await get(client, "/items/new-1")


async def test_a_page_of_items_looks_at_few_of_them(client: AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.usecases.browsing.items._MOST_LOOKED", 4)
    page = await get(client, "/items", filter='{"even": "never"}')
    assert page["items"] == [] and page["next_cursor"]
    assert await all_pages(client, "/items", "item_id", filter='{"even": true}', limit=2) == [
        f"i{n}" for n in range(0, 20, 2)
    ]


async def test_new_items_between_pages_come_last(client: AsyncClient) -> None:
    first = await get(client, "/items", limit=18)
    await client.put("/items/a-new-one", json={"title": "A new one"})
    rest = await get(client, "/items", limit=18, cursor=first["next_cursor"])
    assert [each["item_id"] for each in rest["items"]] == ["i18", "i19", "a-new-one"] and rest["next_cursor"] is None


@pytest.mark.parametrize(
    "query",
    [
        {"cursor": "x"},
        {"cursor": "eHg"},
        {"cursor": "MTpvdGhlcg"},
        {"filter": "{"},
        {"filter": '{"op": "eq"}'},
        {"filter": "[]"},
    ],
)
async def test_a_list_that_cannot_be_given_says_why(client: AsyncClient, query: dict[str, str]) -> None:
    assert (await get(client, "/items", 400, **query))["detail"]


# ---- related items


def related(answer: dict[str, Any]) -> list[tuple[str, str]]:
    return [(each["item_id"], each["source"]) for each in answer["related"]]


async def test_items_are_related_by_behaviour_and_then_by_words(client: AsyncClient) -> None:
    """In the table of the bundle the only neighbour of an item is the next one."""
    answer = await get(client, "/items/i7/related", k=4)
    assert related(answer)[0] == ("i8", "near") and answer["related"][0]["score"] == 1 and len(answer["related"]) == 4
    assert {source for _, source in related(answer)[1:]} == {"words"}
    near = (await get(client, "/items/i7/neighbors", k=5))["neighbors"]
    words = await get(client, "/items/i7/related", k=5, by="words")
    assert related(words) == [(each["item_id"], "words") for each in near]
    assert len({item_id for item_id, _ in related(answer)}) == 4 and "i7" not in dict(related(answer))
    await client.patch("/items/i8", json={"hidden": True})
    assert "i8" not in dict(related(await get(client, "/items/i7/related", k=20)))
    await get(client, "/items/nowhere/related", 404)


async def test_items_that_are_taken_together_live_are_related(
    bundle_path: Path, valkey: EmbeddedServer, raw: Redis
) -> None:
    """A bundle without tables of behaviour knows live pairs of new items only."""
    async with open_app(bundle_path, valkey.url, live_half_life_days=30, encode_in_process=True) as (app, client):
        assert {source for _, source in related(await get(client, "/items/i7/related"))} == {"words"}
        await client.put("/items/new-1", json={"title": "A new one"})
        events = [interaction(n, f"u{n % 4}", item_id="new-1" if n < 4 else "i7") for n in range(8)]
        assert (await client.post("/interactions", json={"interactions": events, "wait": "visible"})).status_code == 200
        resources, deadline = app.state.resources.current(), time.monotonic() + 10
        while not (resources.live_counts.view.catalogue.popularity_of(np.array([20])) > 0).all():
            assert time.monotonic() < deadline, "the events were never counted"
            await asyncio.sleep(0.05)
            await resources.live_counts.catch_up()
        assert related(await get(client, "/items/i7/related"))[0] == ("new-1", "together")
        assert related(await get(client, "/items/new-1/related"))[0] == ("i7", "together")


# ---- users


async def test_every_user_is_on_a_page(client: AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    users = [f"reader {n}/ü" for n in range(30)] + ["*", "[a-z]", "reading", "Reader"]
    events = [interaction(n, user) for n, user in enumerate(users)] + [interaction(99, "*")]
    assert (await client.post("/interactions", json={"interactions": events})).status_code == 202
    monkeypatch.setattr("service.usecases.browsing.users._KEYS_A_STEP", 10)
    assert set(await all_pages(client, "/users", "user_id", limit=5)) == set(users)
    monkeypatch.setattr("service.usecases.browsing.users._KEYS_A_STEP", 1000)
    page = await get(client, "/users", limit=8)
    assert len(page["users"]) <= 8 and page["next_cursor"], "a page has more users than were asked for"
    assert set(await all_pages(client, "/users", "user_id", limit=8)) == set(users)
    for prefix in ("reader 1", "read", "*", "[", "R", "nobody", "reader 1/"):
        found = await all_pages(client, "/users", "user_id", prefix=prefix, limit=7)
        assert sorted(set(found)) == sorted(user for user in users if user.startswith(prefix))
    assert {each["user_id"]: each["events"] for each in (await get(client, "/users", prefix="*"))["users"]} == {"*": 2}
    await client.delete("/users/reading")
    assert "reading" not in await all_pages(client, "/users", "user_id")
    await get(client, "/users", 400, cursor="x")
