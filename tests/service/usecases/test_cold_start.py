"""A user of whom nothing is known sees what is popular, what has been bought suddenly, and what came new."""

from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from model_store.catalogue.items import Item
from service.http.requests.bodies import RecommendRequest
from service.http.routes.recommend import to_request
from service.settings import Settings
from service.store.embedded.server import EmbeddedServer
from service.usecases.ranking.requests import Recommendation
from tests.service.real import Service, ask, interaction, open_service

POPULAR_FIRST = [f"i{row}" for row in range(10)]  # 20 events in training, 19, 18, …
USUAL = ["i0", "i1", "i15", "i2", "i3", "daisy", "i4", "i5", "i6", "i7"]  # one item trends, and one is new


@pytest.fixture
async def service(make_bundle: Callable[..., Path], valkey: EmbeddedServer, raw: Redis) -> AsyncIterator[Service]:
    """Six users bought i15 today, and one item is new."""
    async with open_service(make_bundle(), valkey.url, live_half_life_days=30) as opened:
        await opened.items.put(Item("daisy", "Daisy Chain", attributes={"kind": "flower"}))
        await opened.submit([interaction(n, f"buyer{n}", item_id="i15") for n in range(6)], "durable")
        await opened.work_off()
        await opened.live_counts.catch_up()
        yield opened


def ids(answer: Recommendation) -> list[str]:
    return [item.item_id for item in answer.items]


def sources(answer: Recommendation) -> dict[str, str]:
    return {item.item_id: item.source for item in answer.items if item.source != "popular"}


async def test_what_was_bought_suddenly_and_what_came_new_stand_beside_the_popular(service: Service) -> None:
    answer = await ask(service, user_id="stranger")
    assert answer.fallback == "cold_start" and ids(answer) == USUAL
    assert sources(answer) == {"i15": "trending", "daisy": "latest"}, "an item says which list it comes from"
    assert {(item.score, item.distance, item.reason) for item in answer.items} == {(None, None, None)}
    assert service.metric("source_total", source="trending") == 1 and service.metric("source_total", source="latest")
    longer = ids(await ask(service, user_id="stranger", k=21))
    assert longer[:10] == USUAL and len(set(longer)) == len(longer) == 21
    assert ids(await ask(service, user_id="stranger", k=4)) == USUAL[:4]


async def test_a_filter_that_leaves_nothing_of_a_ranking_leaves_the_list_full(service: Service) -> None:
    without: dict[str, Any] = {"filter": {"op": "not", "filter": {"kind": "flower"}}, "exclude": ["i15"]}
    answer = await ask(service, user_id="stranger", **without)
    assert ids(answer) == POPULAR_FIRST and not sources(answer)
    flowers = await ask(service, user_id="stranger", filter={"kind": "flower"})
    assert ids(flowers) == ["daisy"] and sources(flowers) == {}, "the first place is one of popular items"


async def test_an_answer_without_the_model_is_the_same_list_without_what_the_user_had(service: Service) -> None:
    async def fail(*args: Any, **options: Any) -> Any:
        raise RuntimeError("planted")

    service.engine.recommend = fail  # type: ignore[method-assign]
    answer = await ask(service, user_id="buyer0")
    assert answer.fallback == "engine_error" and ids(answer) == [*POPULAR_FIRST[:5], "daisy", *POPULAR_FIRST[5:9]]


async def test_the_arm_of_popular_items_and_a_server_that_wants_it_show_popular_items_alone(
    service: Service, make_bundle: Callable[..., Path], valkey: EmbeddedServer
) -> None:
    request = replace(to_request(RecommendRequest(user_id="stranger")), is_popular=True)
    control = await service.recommender.recommend(request)
    assert control.fallback is None and ids(control) == POPULAR_FIRST and not sources(control)
    settings = Settings.from_env({"AUTOMR_COLD_START": "1,0,0"}).cold_start
    for shares, expected in ((settings, POPULAR_FIRST), ((7, 2, 1), USUAL), ((1, 0, 1), ["i0", "daisy", "i1", "i2"])):
        async with open_service(make_bundle(), valkey.url, live_half_life_days=30, cold_start=shares) as replica:
            await replica.live_counts.catch_up()
            assert ids(await ask(replica, user_id="stranger"))[: len(expected)] == expected, "replicas agree"


@pytest.mark.parametrize("wrong", ["0,1,1", "7,2", "7,2,1,1", "popular", "7,2,-1", "7,2,101"])
def test_a_wrong_share_is_refused_by_name(wrong: str) -> None:
    with pytest.raises(Exception, match="AUTOMR_COLD_START"):
        Settings.from_env({"AUTOMR_COLD_START": wrong})
