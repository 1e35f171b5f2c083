"""Lists that were shown: known at once, kept for a time, deleted with their user, and never in the way of an answer."""

import asyncio
import time
from typing import Any

import pytest
from redis.asyncio import Redis

from service.errors import StoreUnavailable
from service.metrics import Metrics
from service.store.client import MemoryStore
from service.store.erasure.tombstones import Tombstones
from service.store.shown import MOST_LISTS, ShownList, ShownStore
from service.usecases.ranking.requests import Request
from service.usecases.shown import ShownLists
from tests.service.real import Service, history, interaction

NOW = int(time.time())


def shown(number: int, user_id: str | None = "u", **fields: Any) -> ShownList:
    return ShownList(f"r{number}", user_id, ("i1", "i 2", "日"), "default", "tiny", NOW)._replace(**fields)


@pytest.fixture
def lists(store: MemoryStore) -> ShownStore:
    return ShownStore(store.run, store.tombstones, kept_s=3600)


async def test_a_list_comes_back_as_it_was_saved(lists: ShownStore) -> None:
    saved = [shown(1), shown(2, "ü {x}"), shown(3, None)]
    await lists.save(saved)
    for each in saved:
        assert await lists.get(each.recommendation_id, each.user_id, now=NOW) == each


async def test_a_list_belongs_to_its_user_but_that_of_a_session_to_who_names_it(lists: ShownStore) -> None:
    await lists.save([shown(1, "u"), shown(2, None)])
    assert await lists.get("r1", "other", now=NOW) is None
    assert await lists.get("r2", "other", now=NOW) == shown(2, None)


async def test_the_newest_lists_of_a_user_are_kept_newest_first(lists: ShownStore) -> None:
    for number in range(MOST_LISTS + 5):
        await lists.save([shown(number)])
    found = [each.recommendation_id for each in await lists.recent("u", now=NOW)]
    assert found == [f"r{number}" for number in range(5, MOST_LISTS + 5)][::-1]


async def test_old_lists_are_not_returned_and_expire(lists: ShownStore, raw: Redis) -> None:
    await lists.save([shown(1)])
    assert await lists.recent("u", now=NOW + 3600) == []
    assert 0 < await raw.ttl("automr:{u}:shown") <= 3600


async def test_what_is_not_a_list_is_left_out(lists: ShownStore, raw: Redis) -> None:
    await raw.lpush("automr:{u}:shown", b"r9 {", b"", b"\xff", b'r8 {"items": 1, "time": 2}')
    await lists.save([shown(1)])
    assert await lists.recent("u", now=NOW) == [shown(1)]


async def test_an_answer_is_remembered(service: Service) -> None:
    await service.submit(history(5), "visible")
    answer = await service.answers.recommend(Request(user_id="u", k=3))
    found = await service.shown.get(answer.recommendation_id, "u")
    assert found is not None and list(found.item_ids) == [item.item_id for item in answer.items]
    await service.shown.stop()
    assert [each.recommendation_id for each in await service.shown.recent("u")] == [answer.recommendation_id]
    assert await service.store.run([("LLEN", "automr:{u}:shown")]) == [1]


async def test_a_deleted_user_has_no_lists(service: Service) -> None:
    await service.answers.recommend(Request(user_id="u", k=3))
    await service.users.forget("u")
    await service.shown.stop()
    assert await service.store.run([("KEYS", "automr:{u}*")]) == [[]]
    await service.answers.recommend(Request(user_id="u", k=3))
    await asyncio.sleep(0.2)
    assert await service.store.run([("KEYS", "automr:{u}*")]) == [[]], "a deleted user has a list before an event"
    await asyncio.sleep(1)  # an answer of the second of the deletion may be from before it
    await service.submit([interaction(1, timestamp=int(time.time()) + 5)], "durable")
    answer = await service.answers.recommend(Request(user_id="u", k=3))
    await asyncio.sleep(0.2)
    assert [each.recommendation_id for each in await service.shown.recent("u")] == [answer.recommendation_id]


async def test_without_the_store_lists_are_lost_and_counted(store: MemoryStore) -> None:
    async def run(_: object) -> list[object]:
        raise StoreUnavailable("away")

    metrics = Metrics()
    lists = ShownLists(ShownStore(run, Tombstones(run), kept_s=60), metrics)
    lists.remember(shown(1))
    await lists.stop()
    assert metrics.registry.get_sample_value("automr_shown_lists_total", {"result": "lost"}) == 1
