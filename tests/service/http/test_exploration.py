"""Exploration over HTTP: a new item gets impressions, the share is met, named and counted, and 0 is as without."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from httpx2 import AsyncClient
from redis.asyncio import Redis

from service.feedback import explored as module
from service.http.requests.bodies import RecommendRequest
from service.http.routes.recommend import to_request
from service.store.embedded.server import EmbeddedServer
from service.store.keys import EXPLORED_ITEMS
from service.usecases.ranking.requests import Recommendation
from tests.conftest import TITLES, small_voices, write_bundle
from tests.service.real import history, interaction, open_app

FRESH = [f"fresh{number}" for number in range(3)]
FEW = {"max_events": 0}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exploration") / "items"
    write_bundle(path, vocabulary="items", voices=small_voices(len(TITLES), has_returns=False))
    return path


@pytest.fixture
async def client(bundle: Path, valkey: EmbeddedServer, raw: Redis) -> AsyncIterator[AsyncClient]:
    async with open_app(bundle, valkey.url, live_half_life_days=30, store_timeout_s=30) as (_, client):
        known = [
            {"item_id": f"i{row}", "title": title, "attributes": {"shelf": row % 3}} for row, title in enumerate(TITLES)
        ]
        await client.post("/items", json={"items": known})
        fresh = [{"item_id": each, "title": f"Wholly {each}", "attributes": {"shelf": 7}} for each in FRESH]
        await client.post("/items", json={"items": fresh})
        await client.post("/interactions", json={"interactions": history(6), "wait": "visible"})
        yield client


async def ask(client: AsyncClient, path: str = "/recommend", **body: Any) -> dict[str, Any]:
    response = await client.post(path, json=body if "cursor" in body else {"deadline_ms": 60_000, **body})
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


def explored(answer: dict[str, Any]) -> list[str]:
    return [item["item_id"] for item in answer["items"] if item["explored"]]


def ids(answer: dict[str, Any]) -> list[str]:
    return [item["item_id"] for item in answer["items"]]


def as_it_was(answer: dict[str, Any]) -> dict[str, Any]:
    return answer | {"recommendation_id": "", "timings_ms": {}}


async def test_a_new_item_without_events_gets_impressions_and_the_share_is_met(client: AsyncClient) -> None:
    body: dict[str, Any] = {"user_id": "u", "k": 5, "explain": True}
    plain = await ask(client, **body)
    answers = await asyncio.gather(*(ask(client, **body, exploration={"share": 0.2, **FEW}) for _ in range(60)))
    assert all(len(answer["items"]) == 5 and len(explored(answer)) == 1 for answer in answers)
    assert {each for answer in answers for each in explored(answer)} == set(FRESH) - set(ids(plain))
    for answer in answers:
        others = [each for each in ids(answer) if each not in explored(answer)]
        assert others == ids(plain)[:4], "the other places are as they were"
        (item,) = (item for item in answer["items"] if item["explored"])
        assert item["moves"][-1] == {"rule": "exploration", "from_rank": None, "to_rank": item["rank"]}
    metrics = (await client.get("/metrics")).text
    assert "automr_explored_total 60.0" in metrics


@pytest.mark.parametrize("options", [{}, {"paged": True}, {"caps": [{"attribute": "shelf", "at_most": 1}]}])
async def test_with_a_share_of_0_nothing_changes_to_the_byte(client: AsyncClient, options: dict[str, Any]) -> None:
    body: dict[str, Any] = {"user_id": "u", "k": 5, **options}
    without = await client.post("/recommend", json=body)
    none = await client.post("/recommend", json={**body, "exploration": {"share": 0}})
    assert without.headers["content-type"] == none.headers["content-type"]
    one, other = as_it_was(without.json()), as_it_was(none.json())
    if "paged" in options:
        one["next_cursor"] = other["next_cursor"] = None
    assert list(one) == list(other) and one == other


async def test_filters_exclude_seen_and_pins_hold(client: AsyncClient) -> None:
    share: dict[str, Any] = {"exploration": {"share": 0.5, **FEW}}
    for _ in range(8):
        assert not explored(await ask(client, user_id="u", k=4, filter={"shelf": [0, 1, 2]}, **share))
        assert set(explored(await ask(client, user_id="u", k=4, exclude=FRESH[1:], **share))) <= {FRESH[0]}
        pinned = await ask(client, user_id="u", k=4, pins=[{"item_id": FRESH[2], "position": 2}], **share)
        assert ids(pinned)[1] == FRESH[2] and FRESH[2] not in explored(pinned)
        capped = await ask(client, user_id="u", k=4, caps=[{"attribute": "shelf", "at_most": 1}], **share)
        assert len(explored(capped)) <= 1, "all new items are on one shelf"
    had = [interaction(80, item_id=FRESH[0], timestamp=1_700_000_500)]
    await client.post("/interactions", json={"interactions": had, "wait": "visible"})
    found = [explored(await ask(client, user_id="u", k=4, **share)) for _ in range(8)]
    assert FRESH[0] not in {each for few in found for each in few}, "it was seen"


async def test_who_is_not_known_explores_as_well_and_many_known_items_are_not_explored(client: AsyncClient) -> None:
    found = await ask(client, user_id="stranger", k=4, exploration={"share": 0.5, **FEW})
    assert found["fallback"] == "cold_start" and len(explored(found)) == 2 and set(explored(found)) <= set(FRESH)
    old = await ask(client, user_id="u", k=4, exploration={"share": 0.5, **FEW, "max_age_days": 1})
    assert set(explored(old)) <= set(FRESH)


async def test_pages_and_several_users_keep_their_laws(client: AsyncClient) -> None:
    share: dict[str, Any] = {"exploration": {"share": 0.3, **FEW}}
    page = await ask(client, user_id="u", k=4, paged=True, **share)
    whole, shown = ids(page), explored(page)
    while page["next_cursor"]:
        again = await ask(client, cursor=page["next_cursor"])
        page = await ask(client, cursor=page["next_cursor"])
        assert ids(again) == ids(page) and explored(again) == explored(page), "a page can be read again"
        whole, shown = whole + ids(page), shown + explored(page)
    assert len(set(whole)) == len(whole) == len(TITLES) - 6 + len(FRESH) and shown
    answers = (await ask(client, "/recommend/users", users=["u", "v", "w"], k=4, distinct=True, **share))[
        "recommendations"
    ]
    together = [each for answer in answers for each in ids(answer)]
    assert len(set(together)) == len(together) == 12
    assert 3 <= sum(len(explored(answer)) for answer in answers) == len({e for a in answers for e in explored(a)})


async def test_an_answer_can_be_drawn_again_from_its_id(bundle: Path, valkey: EmbeddedServer, raw: Redis) -> None:
    async with open_app(bundle, valkey.url, store_timeout_s=30) as (app, client):
        await client.post("/items", json={"items": [{"item_id": each, "title": f"Wholly {each}"} for each in FRESH]})
        await client.post("/interactions", json={"interactions": history(6), "wait": "visible"})
        recommender = app.state.resources.recommender
        request = to_request(RecommendRequest.model_validate({"user_id": "u", "k": 4, "exploration": {"share": 0.4}}))

        async def drawn(name: str) -> Recommendation:
            progress = await recommender.begin(request)
            progress.recommendation_id = name
            found: Recommendation = recommender.finish(progress)
            return found

        lists = [tuple(item.item_id for item in (await drawn(f"{number}")).items) for number in range(12)]
        again = [tuple(item.item_id for item in (await drawn(f"{number}")).items) for number in range(12)]
        assert lists == again and len(set(lists)) > 3


async def test_an_item_that_was_shown_often_enough_is_not_explored_any_more(
    bundle: Path, valkey: EmbeddedServer, raw: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also by a server that showed it never, and for whoever asks. Each page of an answer counts its own items once."""
    monkeypatch.setattr(module, "_LOOK_EVERY_S", 0.1)
    share, only = {"share": 0.5, **FEW}, ["i8", "i9", FRESH[0]]

    async def drawn(asked: AsyncClient) -> set[str]:
        answers = [await ask(asked, user_id="stranger", k=4, exploration=share) for _ in range(8)]
        return {each for answer in answers for each in explored(answer)}

    async with open_app(bundle, valkey.url, explored_times=3, store_timeout_s=30) as (_, client):
        await client.post("/items", json={"items": [{"item_id": each, "title": f"Wholly {each}"} for each in FRESH]})
        await client.post("/interactions", json={"interactions": history(6), "wait": "visible"})
        page = await ask(client, user_id="u", k=2, candidates=only, paged=True, exploration=share)
        shown = len(explored(page)) + len(explored(await ask(client, cursor=page["next_cursor"])))
        while shown < 4:
            shown += len(explored(await ask(client, user_id="u", k=2, candidates=only, exploration=share)))
        await asyncio.sleep(0.2)  # lists are written together, within a twentieth of a second
        assert await raw.zscore(EXPLORED_ITEMS, FRESH[0]) == 4 and await raw.zcard(EXPLORED_ITEMS) == 1
        async with open_app(bundle, valkey.url, explored_times=3, store_timeout_s=30) as (_, other):
            for asked in (client, other):
                async with asyncio.timeout(20):
                    while FRESH[0] in (found := await drawn(asked)):
                        await asyncio.sleep(0.2)
                assert found == set(FRESH[1:]), "others are explored as before"


async def test_experiments_count_what_explored_items_lead_to(client: AsyncClient) -> None:
    variants = [{"name": "explores", "share": 1.0, "exploration": 0.4}]
    body = {"experiment": {"name": "e", "control": "explores", "variants": variants}}
    assert (await client.put("/experiments", json=body)).status_code == 200
    answer = await ask(client, user_id="u", k=5)
    plain = next(item["item_id"] for item in answer["items"] if not item["explored"])
    first, *_ = explored(answer)
    events = [
        interaction(
            number, item_id=each, type=kind, timestamp=1_700_000_600, recommendation_id=answer["recommendation_id"]
        )
        for number, (each, kind) in enumerate([(first, "click"), (first, "purchase"), (plain, "click")], start=90)
    ]
    await asyncio.sleep(0.2)  # lists are written together, within a twentieth of a second
    await client.post("/interactions", json={"interactions": events, "wait": "visible"})
    async with asyncio.timeout(10):
        while True:
            (row,) = (await client.get("/experiments")).json()["results"]
            if row["clicks"] == 2:
                break
            await asyncio.sleep(0.1)
    assert (row["explored"], row["explored_clicks"], row["explored_conversions"]) == (2, 1, 1)
    await client.put(
        "/experiments", json={"experiment": {**body["experiment"], "variants": [{**variants[0], "exploration": 0}]}}
    )
    assert not explored(await ask(client, user_id="u", k=5, exploration={"share": 0.5})), "the variant decides"
