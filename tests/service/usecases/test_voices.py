"""The past of a request, what lies in the basket, and why an item is shown: with a bundle that has voices."""

import random
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from redis.asyncio import Redis

from model_store.answers import Answer, PastRows, Query
from model_store.catalogue.items import Item
from model_store.inference import recommend
from service.store.embedded.server import EmbeddedServer
from service.store.events import Event
from service.usecases.ranking.requests import Recommendation
from service.usecases.timeline import Known, SessionItem, events_needed, events_with_states, known_of
from tests.conftest import TITLES, small_voices, write_bundle
from tests.service.real import (
    NOW,
    K,
    M,
    Service,
    ask,
    history,
    in_order,
    interaction,
    open_app,
    open_service,
    states_from_scratch,
)

PAST = 40  # more events than window and memory need
ALL = {f"i{row}" for row in range(len(TITLES))}
LATER = NOW + 86_400
EVERYTHING: dict[str, Any] = {"user_id": "u", "k": 50, "deadline_ms": 20_000}


@pytest.fixture(scope="module")
def voiced(tmp_path_factory: pytest.TempPathFactory) -> Callable[[bool], Path]:
    """A bundle with voices, of users who come back to items or not."""
    paths: dict[bool, Path] = {}

    def path(has_returns: bool) -> Path:
        if has_returns not in paths:
            paths[has_returns] = tmp_path_factory.mktemp("voiced") / "tiny"
            voices = small_voices(len(TITLES), recent_length=K, past_length=PAST, has_returns=has_returns)
            write_bundle(paths[has_returns], vocabulary="items", voices=voices)
        return paths[has_returns]

    return path


@pytest.fixture(scope="module")
def bundle_path(voiced: Callable[[bool], Path]) -> Path:
    """Of the fixture `service`."""
    return voiced(True)


@pytest.fixture
async def no_returns(voiced: Callable[[bool], Path], valkey: EmbeddedServer, raw: Redis) -> AsyncIterator[Service]:
    async with open_service(voiced(False), valkey.url) as opened:
        yield opened


def ids(answer: Recommendation) -> set[str]:
    return {item.item_id for item in answer.items}


def scores(answer: Recommendation) -> dict[str, float]:
    assert answer.fallback is None and {item.source for item in answer.items} == {"generated"}
    return {item.item_id: item.score for item in answer.items if item.score is not None}


def elements(count: int) -> list[dict[str, Any]]:
    """Events of all items but i19 in a mixed order, three of each hour."""
    items = random.Random(7).choices(range(19), k=count)
    return [interaction(number, item_id=f"i{item}", timestamp=NOW + number // 3) for number, item in enumerate(items)]


async def known(service: Service, now: int = LATER, session: list[SessionItem] | None = None) -> Known:
    recalled = service.store.recall_and_seen(
        "u", service.space, events_needed(service.view), num_states=events_with_states(service.view)
    )
    return known_of((await recalled).events, service.view, now, session or [])


async def from_scratch(service: Service, now: int, allowed: set[str]) -> Answer:
    """What `model_store` answers when it is given the whole log, spelt out once more."""
    events = in_order([each.event for each in await service.store.recall("u", service.space, 1000)])
    bundle, catalogue = service.bundle, service.bundle.catalogue
    states = states_from_scratch(events, bundle)
    newest = events[-PAST:]
    return recommend(
        bundle,
        [
            Query(
                prompt=bundle.prompt.tokens(catalogue.titles(event.item_id for event in events[-K:])),
                memory=np.stack([states[event.event_id][0] for event in events[:-K][-M:]]),
                allowed=np.array([item.item_id in allowed for item in catalogue.items]),
                num_results=50,
                past=PastRows([catalogue.rows[e.item_id] for e in newest], [e.timestamp for e in newest], now),
            )
        ],
    )[0]


# ---- the past


@pytest.mark.parametrize("count", [30, 60])
async def test_an_answer_is_that_of_the_model_for_the_same_past(service: Service, count: int) -> None:
    """However the events arrived; so the evaluation, which calls the model with the same past, ranks alike."""
    for element in random.Random(count).sample(elements(count), count):
        await service.submit([element], "durable")
    await service.work_off()
    answer = await ask(service, **EVERYTHING, timestamp=LATER)
    expected = await from_scratch(service, LATER, ALL)
    catalogue = service.bundle.catalogue
    assert [item.item_id for item in answer.items] == [catalogue.items[each.row].item_id for each in expected.items]
    assert list(scores(answer).values()) == pytest.approx([each.score for each in expected.items], abs=2e-3)
    found = [(item.reason.voice, item.reason.event_id is None) for item in answer.items if item.reason]
    assert found == [(each.voice, each.event is None) for each in expected.reasons if each]


async def test_memory_equals_a_backfill_however_much_past_is_read(service: Service) -> None:
    plan = random.Random(5)
    for element in plan.sample(elements(70), 70):
        await service.submit([element], plan.choice(["durable", "visible"]))
    for number in plan.sample(range(70), 8):
        await service.users.forget_event("u", f"e{number:03}")
    await service.work_off()
    stored = await service.store.recall("u", service.space, 1000)
    events = in_order([each.event for each in stored])
    expected = states_from_scratch(events, service.bundle)
    assert {each.event.event_id for each in stored if each.record} == expected.keys(), "states of the newest K + M"
    found = await known(service)
    assert found.memory.events == events[:-K][-M:] and list(found.past_events) == events[-PAST:]
    for event, state in zip(found.memory.events, found.memory.states, strict=True):
        np.testing.assert_allclose(state, expected[event.event_id][0], rtol=2e-3, atol=2e-3)


async def test_older_events_vote_and_need_no_state(service: Service) -> None:
    """More events are read for the past than have states: the others neither count as missing nor are read."""
    await service.submit(elements(60), "visible")
    await service.work_off()
    assert (await service.store.counts("u", service.space)).states == K + M
    found = await known(service)
    assert len(found.past.rows) == PAST > events_with_states(service.view)
    assert len(found.memory.events) == M and not found.is_incomplete
    for _ in range(2):
        await ask(service, user_id="u")
    await service.recommender.stop()
    assert not await service.store.backlog(), "states of older events were asked for"
    before = scores(await ask(service, **EVERYTHING, timestamp=LATER))
    old = found.past_events[4]
    assert isinstance(old, Event)
    await service.store.forget_event("u", old.event_id)
    await service.submit([interaction(90, item_id="i19", timestamp=old.timestamp)], "visible")
    memory = (await known(service)).memory
    assert memory.events == found.memory.events
    np.testing.assert_array_equal(memory.states, found.memory.states)
    assert scores(await ask(service, **EVERYTHING, timestamp=LATER)) != before, "an event without a state is not read"


async def test_without_voices_nothing_is_sent(tmp_path: Path, valkey: EmbeddedServer, raw: Redis) -> None:
    write_bundle(tmp_path / "plain", vocabulary="items")
    async with open_service(tmp_path / "plain", valkey.url) as service:
        assert events_needed(service.view) == events_with_states(service.view)
        await service.submit(elements(30), "visible")
        found = await known(service, session=[SessionItem("i4")])
        assert (list(found.past.rows), list(found.past_events)) == ([], [])
        answer = await ask(service, user_id="u", recent=[{"item_id": "i4"}])
        assert all(item.reason is None for item in answer.items)
        assert all(each.share is None for each in answer.memory)


async def test_an_item_that_came_after_training_is_part_of_the_past(service: Service) -> None:
    await service.items.put(Item("late", "A late title"))
    await service.submit([*elements(10), interaction(90, item_id="late", timestamp=NOW + 5000)], "visible")
    answer = await ask(service, **EVERYTHING, timestamp=LATER)
    assert answer.fallback is None and len(answer.items) == len(TITLES) + 1


# ---- the clock


async def test_ages_count_from_the_time_of_the_request(service: Service) -> None:
    await service.submit(elements(30), "visible")
    early, again, late = [
        scores(await ask(service, **EVERYTHING, timestamp=at)) for at in (LATER, LATER, LATER + 300 * 86_400)
    ]
    assert early == again and early != late
    today = [scores(await ask(service, **EVERYTHING, **at)) for at in ({}, {"timestamp": int(time.time())})]
    assert today[0] == pytest.approx(today[1], abs=1e-3), "without a time it is now"


async def test_session_items_are_the_newest_in_their_order(service: Service) -> None:
    await service.submit(history(8), "visible")
    session = [
        SessionItem("i11"),
        SessionItem("i3", NOW + 3),
        SessionItem("gone"),
        SessionItem("i12"),
        SessionItem("i13"),
    ]
    found = await known(service, LATER, session)
    assert found.recent == [TITLES[11], TITLES[12], TITLES[13]]
    assert found.past.rows[-4:] == [0, 11, 12, 13], "i3 is the stored event, and unknown items are not read"
    assert found.past.timestamps[-3:] == [LATER - 2, LATER - 1, LATER]
    assert [event.item_id for event in found.past_events] == [f"i{row}" for row in found.past.rows]
    found = await known(service, NOW, session)
    assert found.past.timestamps == sorted(found.past.timestamps), "never before a stored event"
    placed = await known(service, LATER, [SessionItem("i9", NOW + 2)])
    assert placed.past.rows[:4] == [0, 1, 2, 9] and placed.recent == TITLES[5:7] + TITLES[:1]


# ---- what may be shown


async def test_the_basket_is_not_shown_again_and_older_items_are(service: Service) -> None:
    await service.submit([*elements(20), interaction(70, item_id="i19", timestamp=LATER)], "visible")
    seen = await service.seen("u")
    assert "i19" in seen
    for request in ({}, {"exclude_seen": False}):
        assert ids(await ask(service, **EVERYTHING, timestamp=LATER, **request)) == ALL - {"i19"}
        assert ids(await ask(service, **EVERYTHING, timestamp=LATER + 1, **request)) == ALL
    assert ids(await ask(service, **EVERYTHING, timestamp=LATER + 1, exclude_seen=True)) == ALL - seen
    shown = ids(await ask(service, **EVERYTHING, timestamp=LATER + 9, recent=[{"item_id": "i1"}, {"item_id": "i2"}]))
    assert shown == ALL - {"i2"}, "the newest item of the session lies in the basket"


async def test_where_nobody_returns_seen_items_are_hidden_unless_asked_for(no_returns: Service) -> None:
    await no_returns.submit([*elements(20), interaction(70, item_id="i19", timestamp=LATER)], "visible")
    seen = await no_returns.seen("u")
    assert ids(await ask(no_returns, **EVERYTHING, timestamp=LATER)) == ALL - seen
    assert ids(await ask(no_returns, **EVERYTHING, timestamp=LATER, exclude_seen=False)) == ALL


async def test_strangers_and_blind_requests_follow_the_same_rule(service: Service) -> None:
    assert len(ids(await ask(service, k=50))) == len(ALL)
    session = await ask(service, k=50, recent=[{"item_id": "i1", "timestamp": NOW}, {"item_id": "i2"}])
    assert ids(session) == ALL - {"i2"} and session.fallback is None


# ---- why


async def test_every_item_says_why_it_is_shown(service: Service) -> None:
    await service.submit(elements(60), "visible")
    answer = await ask(service, **EVERYTHING, timestamp=LATER, recent=[{"item_id": "i19"}])
    events = {each.event.event_id: each.event for each in await service.store.recall("u", service.space, 1000)}
    reasons = [(item, item.reason) for item in answer.items if item.reason]
    assert len(reasons) == len(answer.items) and {reason.voice for _, reason in reasons} >= {"near", "return"}
    for item, reason in reasons:
        assert 0 < reason.share <= 1
        if reason.voice == "return":
            assert reason.item_id == item.item_id
        elif reason.voice == "near":
            behind = int(str(reason.item_id)[1:])
            assert item.item_id == f"i{(behind + 1) % len(TITLES)}", "not the neighbour in the table"
        else:
            assert reason.voice in ("language_model", "popularity") and reason.item_id is None
        if reason.event_id is None:
            assert reason.item_id in (None, "i19"), "only an item of the session has no event"
        else:
            assert events[reason.event_id].item_id == reason.item_id
    stranger = await ask(service, k=50, recent=[{"item_id": "i5"}])
    voices = {item.item_id: item.reason.voice for item in stranger.items if item.reason}
    assert voices.pop("i6") == "near" and set(voices.values()) <= {"language_model", "popularity"}


async def test_older_events_that_vote_are_listed(service: Service) -> None:
    await service.submit(elements(60), "visible")
    answer = await ask(service, **EVERYTHING, timestamp=LATER)
    listed = {each.event_id: each for each in answer.memory}
    assert 1 < len(listed) <= 20
    found = await known(service)
    past = [event for event in found.past_events if isinstance(event, Event)]
    older = {event.event_id: event for event in past[:-K]}
    for each in answer.memory:
        assert (each.item_id, each.timestamp) == (older[each.event_id].item_id, older[each.event_id].timestamp)
        assert each.title == service.bundle.catalogue.items[int(each.item_id[1:])].title
        assert each.share is not None and (each.weight is not None or each.share >= 0.01)
    sizes = [max(each.weight or 0, each.share or 0) for each in answer.memory]
    assert sizes == sorted(sizes, reverse=True)
    expected = await from_scratch(service, LATER, ALL)
    votes = dict(zip([event.event_id for event in past], expected.event_shares, strict=True))
    enough = {name for name in older if votes[name] >= 0.0105}
    assert len(listed) == 20 or enough <= listed.keys()
    for name, each in listed.items():
        assert each.share == pytest.approx(votes[name], abs=2e-3)


async def test_explain_false_says_nothing_and_counts_all_the_same(service: Service) -> None:
    await service.submit(elements(30), "visible")
    answer = await ask(service, **EVERYTHING, explain=False)
    assert answer.memory == [] and all(item.reason is None for item in answer.items)
    names = ("language_model", "popularity", "near", "return")
    assert sum(service.metric("reason_total", voice=name) for name in names) == len(answer.items)


async def test_over_http(bundle_path: Path, valkey: EmbeddedServer, raw: Redis) -> None:
    async with open_app(bundle_path, valkey.url) as (_, client):
        body = {"interactions": elements(30), "wait": "visible"}
        assert (await client.post("/interactions", json=body)).status_code == 200
        answer = (await client.post("/recommend", json={"user_id": "u", "k": 20, "timestamp": LATER})).json()
        assert answer["fallback"] is None
        assert all(item["reason"].keys() == {"voice", "share", "item_id", "event_id"} for item in answer["items"])
        assert all({"weight", "share"} <= each.keys() for each in answer["memory"]) and answer["memory"]
        page = (await client.get("/users/u")).json()
        assert all(each["share"] is None for each in page["memory"])
        assert "automr_reason_total{" in (await client.get("/metrics")).text
