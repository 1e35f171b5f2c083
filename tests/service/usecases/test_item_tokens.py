"""The service with a bundle whose tokens are items: titles come and go while it runs, and no state depends on when."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from httpx2 import AsyncClient
from redis.asyncio import Redis

from model_store.catalogue.items import Item
from model_store.manifest import RetrieverSpec
from model_store.text.prompt import ItemPrompt
from service.store.embedded.server import EmbeddedServer
from service.usecases.encode import backfill
from service.usecases.ranking.requests import Recommendation
from tests.conftest import TITLES, write_bundle
from tests.service import real
from tests.service.real import K, Service, history, interaction, open_app, open_service, states_from_scratch

LATE = [f"{adjective} newcomer" for adjective in ("Red", "Blue", "Silent", "Last", "日本")]


@pytest.fixture(scope="module")
def bundle_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A retriever that never abstains, so that memory always takes part."""
    path = tmp_path_factory.mktemp("items") / "tiny"
    write_bundle(path, vocabulary="items", retriever=RetrieverSpec(width=16, top_k=2, has_null=False))
    return path


async def ask(service: Service, **request: Any) -> Recommendation:
    return await real.ask(service, **{"k": 50, "deadline_ms": 20_000, **request})


def scored(answer: Recommendation) -> dict[str, float]:
    """In order; rounding of batches allowed for."""
    assert answer.fallback is None and {item.source for item in answer.items} == {"generated"}
    return {item.item_id: item.score for item in answer.items if item.score is not None}


def check_same(answer: Recommendation, other: Recommendation) -> None:
    assert list(scored(answer)) == list(scored(other)), "another order"
    assert scored(answer) == pytest.approx(scored(other), abs=2e-3)
    assert [each.event_id for each in answer.memory] == [each.event_id for each in other.memory], "other memories"


def token(service: Service, title: str) -> int:
    return service.bundle.prompt.title_tokens(title)[0]


def shift_tokens(service: Service, by: int = 3) -> None:
    """As if this process had been told of other titles before."""
    for number in range(by):
        service.bundle.prompt.title_tokens(f"known to this process alone {number}")


async def records(service: Service, user_id: str = "u") -> dict[str, bytes]:
    remembered = await service.store.recall(user_id, service.space, 1000)
    return {each.event.event_id: each.record for each in remembered if each.record is not None}


async def put_late(service: Service, titles: Sequence[str] = LATE) -> None:
    for number, title in enumerate(titles):
        await service.items.put(Item(f"late{number}", title))


def events_with_late(count: int = 24) -> list[dict[str, Any]]:
    """Every third event is of a late item."""
    return [
        interaction(number, item_id=f"late{number % 5}" if number % 3 == 0 else f"i{number % 7}")
        for number in range(count)
    ]


async def test_a_new_item_is_recommended_and_remembered_at_once_through_http(
    bundle_path: Path, valkey: EmbeddedServer, raw: Redis
) -> None:
    async with open_app(bundle_path, valkey.url, encode_in_process=True) as (_, client):
        sent = {"interactions": history(K + 2), "wait": "visible"}
        assert (await client.post("/interactions", json=sent)).status_code == 200
        assert (await client.put("/items/new", json={"title": "A brand new title"})).is_success
        await check_is_generated(client, "new")
        late = [interaction(50 + number, item_id="new" if number == 0 else "i9") for number in range(K + 1)]
        visible = await client.post("/interactions", json={"interactions": late, "wait": "visible"})
        assert [each["status"] for each in visible.json()["results"]] == ["accepted"] * (K + 1)
        page = (await client.get("/users/u")).json()
        assert page["counts"]["states"] == page["counts"]["events"] == 2 * K + 3
        remembered = [each["item_id"] for each in page["memory"]]
        assert "new" in remembered, "what was read is not remembered"
        assert (await client.get("/items/new/neighbors")).is_success


async def check_is_generated(client: AsyncClient, item_id: str) -> None:
    everything = (await client.post("/recommend", json={"user_id": "u", "k": 50, "exclude_seen": False})).json()
    assert len(everything["items"]) == len(TITLES) + 1
    assert {item["source"] for item in everything["items"]} == {"generated"}
    wanted = {"user_id": "u", "k": 3, "candidates": [item_id]}
    (only,) = (await client.post("/recommend", json=wanted)).json()["items"]
    of_all = next(item for item in everything["items"] if item["item_id"] == item_id)
    assert only["score"] == pytest.approx(of_all["score"], abs=2e-3), "candidates change a score"


async def test_candidates_filters_and_seen_items_choose_among_scores(service: Service) -> None:
    await service.submit(history(10), "visible")
    await put_late(service)
    await service.items.patch("late1", {"attributes": {"even": True}})
    everything = scored(await ask(service, user_id="u", exclude_seen=False))
    assert len(everything) == len(TITLES) + len(LATE)
    cases: list[tuple[dict[str, Any], set[str]]] = [
        ({"candidates": ["i3", "late2", "i12", "unknown"]}, {"i3", "late2", "i12"}),
        ({"filter": {"even": True}}, {"late1", *(f"i{row}" for row in range(0, 20, 2))}),
        ({"exclude_seen": True}, everything.keys() - {f"i{row}" for row in range(7)}),
        ({"exclude_seen": True, "candidates": ["i3", "late2"]}, {"late2"}),
    ]
    for request, wanted in cases:
        found = scored(await ask(service, user_id="u", **{"exclude_seen": False, **request}))
        assert list(found) == [name for name in everything if name in wanted], f"{request}: other items or order"
        assert found == pytest.approx({name: everything[name] for name in found}, abs=2e-3), f"{request}: other scores"


async def test_a_renamed_item_is_read_under_its_new_title(service: Service, bundle_path: Path) -> None:
    await service.submit(history(12), "visible")
    before = await records(service)
    await service.items.patch("i4", {"title": "Quite another title"})
    stale = {todo.event.event_id for todo in (await service.timeline("u")).missing_states()}
    assert stale == {"e004", "e005", "e006", "e011"}, "not exactly the windows that show it"
    await service.worker.reconcile_all(["u"])
    after = await records(service)
    assert {name for name in after if after[name] != before[name]} == stale
    # One that is renamed to the title of another item is read as that one: titles, not ids, are tokens.
    await service.items.patch("i4", {"title": TITLES[5]})
    assert token(service, service.bundle.catalogue.items[4].title) == token(service, TITLES[5])
    both = scored(await ask(service, recent=[{"item_id": "i1"}], candidates=["i4", "i5"], k=1))
    assert list(both) == ["i4"], "the more popular one stands for the title"


async def test_a_restart_gives_the_same_states_and_answers(
    service: Service, bundle_path: Path, valkey: EmbeddedServer
) -> None:
    shift_tokens(service)
    await put_late(service)
    await service.items.put_many([Item("twin", LATE[0]), Item("old twin", TITLES[2])])
    await service.items.delete("late3")
    await service.submit(events_with_late(), "visible")
    requests: list[dict[str, Any]] = [{"user_id": "u"}, {"recent": [{"item_id": "late2"}, {"item_id": "i3"}]}]
    answers = [await ask(service, exclude_seen=False, **request) for request in requests]
    async with open_service(bundle_path, valkey.url) as restarted:
        assert token(restarted, LATE[1]) != token(service, LATE[1]), "the test tests nothing"
        assert not (await restarted.timeline("u")).missing_states(), "states are thrown away"
        for request, answer in zip(requests, answers, strict=True):
            again = await ask(restarted, exclude_seen=False, **request)
            assert [item.item_id for item in again.items] == [item.item_id for item in answer.items]


async def test_processes_that_number_titles_differently_make_the_same_bytes(
    bundle_path: Path, valkey: EmbeddedServer, raw: Redis
) -> None:
    """Server, worker and backfill: one state for one window, whoever encodes it."""
    async with (
        open_service(bundle_path, valkey.url, max_batch=1) as server,
        open_service(bundle_path, valkey.url, max_batch=1) as worker,
    ):
        shift_tokens(worker, 7)
        await put_late(server)
        await server.submit(events_with_late(), "visible")
        by_server = await records(server)
        await raw.delete(*[key async for key in raw.scan_iter("*:states:*")])
        await worker.items.catch_up()
        assert token(server, LATE[2]) != token(worker, LATE[2]), "the test tests nothing"
        assert await backfill(worker.worker) == {"users": 1, "states": len(by_server)}
        assert await records(worker) == by_server, "who encodes it decides about a state"
        events = [each.event for each in await server.store.recall("u", server.space, 1000)]
        for name, (state, fingerprint) in states_from_scratch(events, worker.bundle).items():
            assert by_server[name] == server.bundle.codec.encode(state, fingerprint), f"{name} is not from the log"


async def test_items_events_and_requests_all_at_once(bundle_path: Path, valkey: EmbeddedServer, raw: Redis) -> None:
    """Handlers give out tokens while the engine thread grows rows; nobody gets another one's title."""
    async with open_service(bundle_path, valkey.url, encode_in_process=True) as service:

        async def shop(number: int) -> None:
            name = f"n{number}"
            await service.items.put(Item(name, f"Number {number} of many"))
            await service.submit([interaction(number, f"u{number % 4}", item_id=name)], "durable")
            answer = await ask(service, user_id=f"u{number % 4}", k=5, exclude_seen=False)
            assert answer.fallback is None and len(answer.items) == 5
            (only,) = scored(await ask(service, user_id=f"u{number % 4}", candidates=[name], exclude_seen=False))
            assert only == name

        async with asyncio.timeout(60):
            await asyncio.gather(*(shop(number) for number in range(40)))
            while await service.store.backlog():
                await asyncio.sleep(0.01)
        prompt = service.bundle.prompt
        assert isinstance(prompt, ItemPrompt)
        titles = [f"Number {number} of many" for number in range(40)]
        assert len({prompt.title_tokens(title) for title in titles}) == 40 == len(prompt.vocabulary) - 21
        kept = {user: await ask(service, user_id=user, exclude_seen=False) for user in ("u0", "u1", "u2", "u3")}
        async with open_service(bundle_path, valkey.url) as restarted:
            for user, answer in kept.items():
                assert not (await restarted.timeline(user)).missing_states()
                check_same(await ask(restarted, user_id=user, exclude_seen=False), answer)


async def test_many_items_at_once_are_one_change(service: Service) -> None:
    await service.items.put_many([Item(f"n{number}", f"Title {number}") for number in range(300)])
    assert len(service.bundle.index) == len(service.bundle.catalogue) == len(TITLES) + 300
    found = scored(await ask(service, recent=[{"item_id": "i1"}], k=100, exclude_seen=False))
    assert len(found) == 100, "a long list of items was not ranked whole"
