"""A guest becomes a user: all events move, each once, whatever is killed, repeated or arrives meanwhile."""

import contextlib
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from service.errors import BadRequest, StoreUnavailable
from service.feedback.outcomes import Outcomes
from service.store.client import MemoryStore
from service.store.events import Event
from service.store.feedback.merge import merge
from service.store.feedback.outcomes import OutcomeStore
from service.store.shown import ShownList, ShownStore
from service.usecases.ranking.requests import Request
from tests.service.real import NOW, Service, history, states_from_scratch


def event(number: int, user_id: str, *, item: int = 0) -> Event:
    return Event(f"e{number}", user_id, f"i{item or number % 7}", NOW + number)


async def none(users: Any) -> None:
    pass


async def stored(store: MemoryStore, user_id: str) -> list[Event]:
    return (await store.events(user_id, limit=100))[0]


async def test_all_events_move_and_the_guest_is_gone(service: Service, raw: Redis) -> None:
    await service.submit(history(5, "ada"), "visible")
    guest = [{**each, "event_id": f"g{number}"} for number, each in enumerate(history(8, "guest"))]
    await service.submit([*guest, history(2, "guest")[0]], "visible")
    merged = await service.users.merge("ada", "guest")
    assert merged == (8, 1, True)
    assert {each.event_id for each in await stored(service.store, "ada")} == {
        *(f"g{n}" for n in range(8)),
        *(f"e{n:03}" for n in range(5)),
    }
    assert await raw.keys("automr:{guest}*") == []
    await service.work_off()
    timeline = await service.timeline("ada")
    expected = states_from_scratch(timeline.events, service.bundle)
    assert (await service.store.counts("ada", service.space)).states == len(expected) and not timeline.is_incomplete
    assert await service.users.merge("ada", "guest") == (0, 0, True), "a repeated call changes something"
    assert service.metric("merged_events_total") == 8


async def test_an_event_with_an_id_that_the_user_has_for_another_event_is_kept(store: MemoryStore) -> None:
    await store.append([event(1, "ada", item=3), event(1, "guest", item=4)])
    for _ in range(2):
        await merge(store, "guest", "ada", none)
        assert sorted(each.item_id for each in await stored(store, "ada")) == ["i3", "i4"]
        await store.append([event(1, "guest", item=4)])


async def test_what_the_guest_did_with_a_list_is_counted_before_the_event_moves(store: MemoryStore) -> None:
    """The event, or its outcome, came after the outbox of the guest was looked at."""
    shown = ShownList("r1", "guest", ("i1", "i2"), "spring/a", "tiny", NOW)
    await ShownStore(store.run, store.tombstones, kept_s=10**9).save([shown])
    await store.append([event(1, "guest", item=1)._replace(type="click", recommendation_id="r1")])
    assert not (await merge(store, "guest", "ada", none)).is_complete, "its outcome goes with the guest"
    outcomes = Outcomes(OutcomeStore(store.run))
    assert (await merge(store, "guest", "ada", outcomes.settle)).is_complete
    assert (await outcomes.store.totals())["spring/a|click"] == 1
    assert [each.event_id for each in await stored(store, "ada")] == ["e1"]


async def test_lists_that_the_guest_was_shown_count_for_the_user(service: Service) -> None:
    answer = await service.answers.recommend(Request(user_id="guest", k=3))
    await service.shown.stop()
    click = {"item_id": answer.items[0].item_id, "timestamp": NOW, "recommendation_id": answer.recommendation_id}
    await service.submit([{"user_id": "guest", "event_id": "c1", **click}], "durable")
    await service.users.merge("ada", "guest")
    await service.submit([{"user_id": "ada", "event_id": "c2", **click}], "durable")
    await service.experiments.outcomes.settle_waiting()
    results = await service.experiments.outcomes.results()
    assert results.unattributed == 0 and [each.clicks for each in results.variants] == [2]


async def test_a_user_is_not_merged_with_itself(service: Service) -> None:
    with pytest.raises(BadRequest):
        await service.users.merge("ada", "ada")


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    of_user=st.sets(st.integers(0, 9), max_size=6),
    of_guest=st.sets(st.integers(0, 9), max_size=6),
    late=st.sets(st.integers(10, 14), max_size=3),
    dies_after=st.lists(st.integers(0, 6), max_size=3),
)
async def test_nothing_is_lost_or_doubled_whatever_is_killed(
    store: MemoryStore, of_user: set[int], of_guest: set[int], late: set[int], dies_after: list[int]
) -> None:
    await store.run([("FLUSHALL",)])
    await store.append([event(n, "ada") for n in of_user] + [event(n, "guest") for n in of_guest])
    for calls in dies_after:
        await killed_after(store, calls, [event(n, "guest") for n in late])
        both = {e.event_id for user in ("ada", "guest") for e in await stored(store, user)}
        assert both >= {f"e{n}" for n in of_user | of_guest}, "an event was lost by a kill"
    await store.append([event(n, "guest") for n in late])
    assert (await merge(store, "guest", "ada", none)).is_complete
    assert sorted(e.event_id for e in await stored(store, "ada")) == sorted(f"e{n}" for n in of_user | of_guest | late)
    assert await store.run([("KEYS", "automr:{guest}*")]) == [[]]


async def killed_after(store: MemoryStore, calls: int, late: list[Event]) -> None:
    """A merge that ends at its n-th call of the store; events of the guest come just before."""
    dying = MemoryStore(store._client, timeout_s=1)
    left, run = calls, dying.run

    async def counted(commands: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            await store.append(late)
            raise StoreUnavailable("killed")
        return await run(commands)

    dying.run = counted  # type: ignore[method-assign]
    with contextlib.suppress(StoreUnavailable):
        await merge(dying, "guest", "ada", none)
