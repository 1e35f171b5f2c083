"""What may be shown, and what the answer reports when not everything is known: the use case with real parts."""

import asyncio
import dataclasses
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from model_store.manifest import RetrieverSpec
from service.engine.messages import Result
from service.errors import ServiceError
from service.store.embedded.server import EmbeddedServer
from service.usecases.ranking.requests import Recommendation, Request
from service.usecases.timeline import SessionItem
from tests.conftest import BOTH_VOCABULARIES, TITLES, write_bundle
from tests.service.commands import calls
from tests.service.real import NOW, K, M, Service, ask, busy, history, interaction, open_service

ALL = [f"i{row}" for row in range(len(TITLES))]


def ids(answer: Recommendation) -> list[str]:
    return [item.item_id for item in answer.items]


def recent(*names: str) -> list[dict[str, Any]]:
    return [{"item_id": name} for name in names]


async def later(condition: Any, what: str) -> None:
    deadline = time.monotonic() + 5
    while not await condition():
        assert time.monotonic() < deadline, f"waited in vain for: {what}"
        await asyncio.sleep(0.02)


def some_request(dice: random.Random) -> dict[str, Any]:
    request: dict[str, Any] = {"k": dice.randint(1, 30), "exclude_seen": dice.random() < 0.5}
    optional = {
        "candidates": dice.choices([*ALL, "unknown"], k=dice.randint(1, 8)),
        "filter": {"even": True},
        "recent": recent(*dice.choices(ALL, k=dice.randint(0, 5))),
        "user_id": dice.choice(["u", "stranger"]),
    }
    return request | {name: value for name, value in optional.items() if dice.random() < 0.5}


@BOTH_VOCABULARIES
@pytest.mark.parametrize("seed", range(3))
async def test_k_distinct_allowed_items_in_order(service: Service, seed: int) -> None:
    await service.submit(history(30), "visible")
    requests = [some_request(random.Random(f"{seed} {number}")) for number in range(40)]
    answers = await asyncio.gather(*(ask(service, deadline_ms=60_000, **request) for request in requests))
    for request, answer in zip(requests, answers, strict=True):
        check_one(request, answer)


def check_one(request: dict[str, Any], answer: Recommendation) -> None:
    seen = {each["item_id"] for each in request.get("recent", [])}
    seen |= {each["item_id"] for each in history(30)} if request.get("user_id") == "u" else set()
    allowed = {name for name in ALL if name in request.get("candidates", ALL)}
    allowed -= seen if request["exclude_seen"] else set()
    allowed -= {name for name in allowed if "filter" in request and int(name[1:]) % 2}
    shown = ids(answer)
    assert len(shown) == len(set(shown)) == min(request["k"], len(allowed)) and set(shown) <= allowed, request
    assert [item.rank for item in answer.items] == list(range(1, len(shown) + 1))
    sources = [item.source for item in answer.items]
    assert sources == sorted(sources, key=["generated", "grounded", "popular"].index)
    scores = [item.score for item in answer.items if item.score is not None]
    assert scores == sorted(scores, reverse=True)


async def test_hidden_and_unavailable_items_are_not_shown(service: Service) -> None:
    now = int(time.time())
    change = service.items.patch
    await change("i0", {"hidden": True})
    await change("i1", {"available_from": now + 60})
    await change("i2", {"available_until": now - 60})
    await change("i3", {"available_from": now - 60, "available_until": now + 60})
    for request in ({"recent": recent("i5")}, {}):
        assert set(ids(await ask(service, k=30, exclude_seen=False, **request))) == set(ALL) - {"i0", "i1", "i2"}


async def test_strangers_get_what_is_popular_and_are_told(service: Service) -> None:
    answer = await ask(service, user_id="stranger", k=4)
    assert (ids(answer), answer.fallback, answer.memory) == (ALL[:4], "cold_start", [])
    assert {item.source for item in answer.items} == {"popular"}
    session = await ask(service, k=4, recent=recent("i3", "i4"))
    assert session.fallback is None and session.items[0].source == "generated"
    assert not {"i3", "i4"} & set(ids(session))
    assert (await ask(service, k=4, recent=recent("no such item"))).fallback == "cold_start"
    assert service.metric("fallback_total", reason="cold_start") == 2


async def test_an_interaction_counts_the_moment_it_is_acknowledged(service: Service) -> None:
    await service.submit(history(1), "durable")
    assert (await service.store.counts("u", service.space)).states == 0
    answer = await ask(service, user_id="u", k=30)
    assert answer.fallback is None and "i0" not in ids(answer)
    same = await ask(service, k=30, recent=[{"item_id": "i0", "timestamp": NOW}])
    assert ids(same) == ids(answer), "what the store knows and what the request says are one thing"


async def test_recent_stands_on_top_of_the_store(service: Service) -> None:
    await service.submit(history(K + 2), "visible")
    plain = await ask(service, user_id="u", exclude_seen=False)
    again = await ask(service, user_id="u", exclude_seen=False, recent=[{"item_id": "i4", "timestamp": NOW + 4}])
    assert ids(again) == ids(plain), "an item of the store, sent once more, changes nothing"
    context = await service.recommender._recall.of(Request(user_id="u", recent=[SessionItem("i9")]))
    assert context.known.recent == [TITLES[3], TITLES[4], TITLES[9]]
    assert [event.event_id for event in context.known.memory.events] == ["e000", "e001", "e002"]
    old = [SessionItem("i9", NOW - number) for number in range(1, 3)]
    context = await service.recommender._recall.of(Request(user_id="u", recent=old))
    assert context.known.recent == TITLES[2:5], "what is older than the store's newest does not push them out"
    assert [event.event_id for event in context.known.memory.events] == ["e000", "e001"], "recent is not memory, too"


async def test_a_session_without_a_user_is_answered_from_its_items_and_leaves_nothing(service: Service) -> None:
    await service.submit([{"user_id": "u", "item_id": f"i{n}", "timestamp": NOW - n} for n in (5, 2)], "visible")
    user, session = await ask(service, user_id="u", k=5), await ask(service, k=5, recent=recent("i5", "i2"))
    assert session.fallback is None and {item.source for item in session.items} == {"generated"}
    assert ids(session) == ids(user) and not {"i5", "i2"} & set(ids(session))
    assert ids(await ask(service, k=5, recent=recent("i2", "i7"))) != ids(session), "its items make no difference"
    assert [user_id async for user_id in service.store.users()] == ["u"]


async def test_a_recommendation_asks_the_store_once(service: Service, raw: Redis) -> None:
    """Other tasks use the store too, so the quietest of some requests counts."""
    await service.submit(history(30), "visible")
    for request in ({}, {"exclude_seen": False}, {"recent": recent("i3")}):
        found = []
        for _ in range(5):
            await raw.config_resetstat()
            await ask(service, user_id="u", **request)
            found.append(await calls(raw))
        least = min(found, key=lambda each: (each["eval"], len(each)))
        expected = {"eval", "zrevrange", "hmget", "hgetall", "hlen", "strlen", "get", "config|resetstat"}
        assert least["eval"] == 1 and least.keys() <= expected


async def test_an_answer_shows_its_memories_with_weights(tmp_path: Path, valkey: EmbeddedServer, raw: Redis) -> None:
    write_bundle(tmp_path / "never abstains", retriever=RetrieverSpec(width=16, top_k=2, has_null=False))
    async with open_service(tmp_path / "never abstains", valkey.url) as service:
        await service.submit(history(30), "visible")
        answer = await ask(service, user_id="u")
        assert len(answer.memory) == 2 and answer.memory[0].title in TITLES
        assert all(each.weight is not None and 0 < each.weight <= 1 for each in answer.memory)
        assert (await ask(service, user_id="u", explain=False)).memory == []
        page = await service.users.get("u", None, 10)
        assert len(page.memory) == M


async def test_states_are_not_read_where_the_retriever_never_picks_one(
    tmp_path: Path, valkey: EmbeddedServer, raw: Redis
) -> None:
    write_bundle(tmp_path / "abstains", retriever=RetrieverSpec(width=16, top_k=2, always_abstains=True))
    async with open_service(tmp_path / "abstains", valkey.url) as service:
        await service.submit(history(30), "visible")
        await raw.config_resetstat()
        answer = await ask(service, user_id="u")
        assert answer.items[0].source == "generated" and answer.memory == []
        assert "cmdstat_hgetall" not in await raw.info("commandstats"), "states are read"
        assert len((await service.users.get("u", None, 10)).memory) == M, "memory is kept for another bundle"


async def test_a_lost_state_is_asked_for_once(service: Service) -> None:
    await service.submit(history(30), "durable")
    await service.store.encoded([entry for entry, _ in await service.store.next_encodings("x", count=9, block_ms=1)])
    for _ in range(3):
        await ask(service, user_id="u")
    await later(service.store.backlog, "a request for encoding")
    assert await service.store.backlog() == 1
    await service.work_off()
    assert not (await service.timeline("u")).is_incomplete


async def test_without_its_store_it_says_so(bundle_path: Path, tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path / "store") as server:
        async with open_service(bundle_path, server.url, store_timeout_s=0.3) as service:
            await service.submit(history(10), "visible")
            server.stop()
            blind = await ask(service, user_id="u", k=3)
            assert (blind.fallback, ids(blind)) == ("memory_unavailable", ALL[:3])
            session = await ask(service, user_id="u", k=3, recent=recent("i2"))
            assert session.fallback == "memory_unavailable" and session.items[0].source == "generated"


async def test_too_late_is_popular(service: Service) -> None:
    await service.submit(history(10), "visible")
    async with busy(service):
        answer = await ask(service, user_id="u", k=3, deadline_ms=100)
    assert answer.fallback == "deadline" and len(ids(answer)) == 3
    assert answer.timings_ms["total"] < 900


@BOTH_VOCABULARIES
async def test_nothing_is_allowed(service: Service) -> None:
    await service.submit(history(10), "visible")
    for request in ({"candidates": ["unknown"]}, {"filter": {"even": "never"}}, {"filter": {"no such": 1}}):
        for who in ({"user_id": "u"}, {"recent": recent("i1")}, {}):
            assert ids(await ask(service, **request, **who)) == []
    together = (ask(service, user_id="u", candidates=["unknown"]), ask(service, user_id="u", k=2))
    assert [len(ids(each)) for each in await asyncio.gather(*together)] == [0, 2]


@BOTH_VOCABULARIES
@pytest.mark.parametrize("titles", [["The only one"], ["Same", "Same", "Same"]])
async def test_small_and_repetitive_catalogues(
    make_bundle: Callable[..., Path], valkey: EmbeddedServer, titles: Sequence[str]
) -> None:
    async with open_service(make_bundle(titles=titles), valkey.url) as service:
        for request in ({}, {"recent": recent("i0")}):
            answer = await ask(service, k=5, exclude_seen=False, **request)
            assert sorted(ids(answer)) == [f"i{row}" for row in range(len(titles))]


async def test_cancelled_requests_mix_up_nobody(service: Service) -> None:
    for user in ("a", "b"):
        await service.submit([interaction(n, user, item_id=f"i{n if user == 'a' else 9}") for n in range(5)], "visible")
    for delay in range(20):
        asked = [asyncio.create_task(ask(service, user_id="a", exclude_seen=False)) for _ in range(3)]
        await asyncio.sleep(delay / 5000)
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)
        remembered = await service.store.recall("b", service.space, 10)
        assert {each.event.item_id for each in remembered} == {"i9"}


async def test_a_model_that_fails_is_told_and_popular_items_are_shown(service: Service) -> None:
    await service.submit(history(10), "visible")

    def fail(asked: Sequence[Any]) -> list[Result]:
        raise RuntimeError("a fault of the test")

    recommend, service.model._runners["recommend"] = service.model._runners["recommend"], fail
    answer = await ask(service, user_id="u", k=3)
    assert (answer.fallback, len(answer.items), answer.memory) == ("engine_error", 3, [])
    assert {item.source for item in answer.items} == {"popular"}
    assert service.metric("fallback_total", reason="engine_error") == 1
    service.model._runners["recommend"] = recommend
    assert (await ask(service, user_id="u", k=3)).fallback is None


async def test_an_unexpected_error_of_the_engine_is_a_fallback_too(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    await service.submit(history(10), "visible")

    async def fail(*_: Any, **__: Any) -> None:
        raise TypeError("a fault of the test")

    monkeypatch.setattr(service.engine, "recommend", fail)
    assert (await ask(service, user_id="u", k=3)).fallback == "engine_error"


@pytest.mark.parametrize("error", [TypeError("a fault"), OSError("a fault"), ServiceError("a fault"), KeyError("i1")])
@pytest.mark.parametrize("part, fallback", [
    ("engine.recommend", "engine_error"), ("store.recall_and_seen", "memory_unavailable")
])  # fmt: skip
async def test_whatever_error_a_part_raises_the_answer_is_a_fallback(
    service: Service, monkeypatch: pytest.MonkeyPatch, part: str, fallback: str, error: Exception
) -> None:
    def fail(*args: object, **options: object) -> None:
        raise error

    await service.submit(history(5), "visible")
    owner, _, name = part.partition(".")
    monkeypatch.setattr(getattr(service, owner), name, fail)
    answer = await ask(service, user_id="u", k=3)
    assert (answer.fallback, len(answer.items)) == (fallback, 3)


async def test_an_answer_of_the_engine_that_cannot_be_shown_becomes_a_fallback(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    recommend = service.engine.recommend

    async def with_nonsense(*args: Any, **options: Any) -> Any:
        return dataclasses.replace(await recommend(*args, **options), chosen=(999,))

    await service.submit(history(5), "visible")
    monkeypatch.setattr(service.engine, "recommend", with_nonsense)
    answer = await ask(service, user_id="u", k=3)
    assert (answer.fallback, len(answer.items), answer.memory) == ("engine_error", 3, [])


async def test_a_slow_store_does_not_tighten_admission(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many requests wait for the store, the model is idle: none is refused."""
    await service.submit(history(10), "visible")
    await ask(service, user_id="u", k=3)
    recall = service.store.recall_and_seen

    async def slowly(*arguments: Any, **options: Any) -> Any:
        await asyncio.sleep(0.4)
        return await recall(*arguments, **options)

    monkeypatch.setattr(service.store, "recall_and_seen", slowly)
    answers = []
    for _ in range(60):  # 100 requests a second
        answers.append(asyncio.create_task(ask(service, user_id="u", k=3, deadline_ms=2000)))
        await asyncio.sleep(0.01)
    assert all(answer.items for answer in await asyncio.gather(*answers))
