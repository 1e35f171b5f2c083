"""Every option of a request over HTTP, on tiny bundles: random requests, and the laws of pages and of several users."""

import asyncio
import random
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi import FastAPI
from httpx2 import AsyncClient
from redis.asyncio import Redis

from model_store.manifest import Vocabulary
from service.store.embedded.server import EmbeddedServer
from service.usecases.ranking.order import marginal_order
from tests.conftest import TITLES, small_voices, write_bundle
from tests.service.options import Shop
from tests.service.real import history, interaction, open_app, parts_of

ALL = [f"i{row}" for row in range(len(TITLES))]
BOTH = pytest.mark.parametrize("vocabulary", ["titles", "items"])


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[Vocabulary, Path]:
    folder = tmp_path_factory.mktemp("options")
    voices = small_voices(len(TITLES), has_returns=False)
    write_bundle(folder / "titles", vocabulary="titles")
    write_bundle(folder / "items", vocabulary="items", voices=voices)
    return {"titles": folder / "titles", "items": folder / "items"}


@dataclass(frozen=True)
class Caller:
    client: AsyncClient
    app: FastAPI
    shop: Shop

    async def ask(self, path: str = "/recommend", status: int = 200, **body: Any) -> dict[str, Any]:
        response = await self.client.post(path, json=body)
        assert response.status_code == status, response.text
        found: dict[str, Any] = response.json()
        return found


def attributes(row: int) -> dict[str, Any]:
    found: dict[str, Any] = {
        "series": f"s{row % 5}",
        "price": row / 2,
        "tags": [row % 3, f"t{row % 2}"],
        "new": row > 15,
    }
    return found if row % 7 else {"price": row}


@asynccontextmanager
async def calling(path: Path, url: str, **settings: Any) -> AsyncIterator[Caller]:
    async with open_app(path, url, **settings) as (app, client):
        items: list[dict[str, Any]] = [
            {"item_id": f"i{row}", "title": title, "attributes": attributes(row)} for row, title in enumerate(TITLES)
        ]
        events = [*history(6), *(interaction(50 + n, "v", item_id=f"i{9 + n}") for n in range(3))]
        assert (await client.post("/items", json={"items": items})).status_code == 200
        assert (await client.post("/interactions", json={"interactions": events})).status_code == 202
        known: dict[str, dict[str, Any]] = {
            item["item_id"]: {**item["attributes"], "item_id": item["item_id"], "title": item["title"]}
            for item in items
        }
        seen = {user: {each["item_id"] for each in events if each["user_id"] == user} for user in ("u", "v")}
        yield Caller(client, app, Shop(known, seen))


@asynccontextmanager
async def calling_as_strangers(path: Path, url: str) -> AsyncIterator[Caller]:
    """Nothing is known of any user; two items trend, and three are new."""
    async with calling(path, url, live_half_life_days=30) as caller:
        new: dict[str, dict[str, Any]] = {
            f"new{n}": {"title": f"Wholly new {n}", "attributes": {"series": f"s{n}", "new": True, "price": n}}
            for n in range(3)
        }
        await caller.ask("/items", items=[{"item_id": name, **fields} for name, fields in new.items()])
        events = [interaction(n, f"buyer{n}", item_id=f"i{11 + n % 2}") for n in range(12)]
        await caller.ask("/interactions", 202, interactions=events)
        await parts_of(caller.app.state.resources, None).work_off()
        await caller.app.state.resources.live_counts.catch_up()
        known = {name: {**each["attributes"], "item_id": name, "title": each["title"]} for name, each in new.items()}
        yield Caller(caller.client, caller.app, Shop(caller.shop.items | known, {}))


def ids(answer: dict[str, Any]) -> list[str]:
    return [item["item_id"] for item in answer["items"]]


@BOTH
async def test_every_answer_obeys_its_request(
    vocabulary: Vocabulary, bundles: dict[Vocabulary, Path], valkey: EmbeddedServer, raw: Redis
) -> None:
    async with calling(bundles[vocabulary], valkey.url) as caller:
        for seed in range(75):
            request = caller.shop.some_request(random.Random(f"{vocabulary} {seed}"))
            answer = await caller.ask(**request)
            wrong = caller.shop.violations(request, answer, has_returns=False)
            assert not wrong, (request, ids(answer), wrong)
            caller.shop.remember(request.get("user_id"), answer)


@BOTH
async def test_every_answer_to_several_users_obeys_its_request(
    vocabulary: Vocabulary, bundles: dict[Vocabulary, Path], valkey: EmbeddedServer, raw: Redis
) -> None:
    async with calling(bundles[vocabulary], valkey.url) as caller:
        for seed in range(10):
            dice = random.Random(f"{vocabulary} {seed}")
            options = caller.shop.some_options(dice) | {"distinct": seed % 3 > 0}
            users = dice.sample(["u", "v", "w", "x"], k=dice.randint(1, 4))
            answers = (await caller.ask("/recommend/users", users=users, **options))["recommendations"]
            assert [answer["user_id"] for answer in answers] == users
            for place, (user, answer) in enumerate(zip(users, answers, strict=True)):
                others = {each for other in answers[:place] + answers[place + 1 :] for each in ids(other)}
                taken = frozenset(others if options["distinct"] else ())
                request = {**options, "user_id": user}
                wrong = caller.shop.violations(request, answer, has_returns=False, taken=taken)
                assert not wrong, (request, ids(answer), wrong)
                caller.shop.remember(user, answer)


async def test_every_answer_to_who_is_not_known_obeys_its_request(
    bundles: dict[Vocabulary, Path], valkey: EmbeddedServer, raw: Redis
) -> None:
    async with calling_as_strangers(bundles["items"], valkey.url) as caller:
        sources = set()
        for seed in range(75):
            request = caller.shop.some_request(random.Random(f"stranger {seed}"))
            request.pop("recent", None)
            answer = await caller.ask(**request)
            assert answer["fallback"] == "cold_start"
            wrong = caller.shop.violations(request, answer, has_returns=False)
            assert not wrong, (request, ids(answer), wrong)
            caller.shop.remember(request.get("user_id"), answer)
            sources |= {item["source"] for item in answer["items"]}
        assert sources == {"popular", "trending", "latest"}
        for seed in range(10):
            options = caller.shop.some_options(random.Random(f"strangers {seed}")) | {"distinct": True}
            answers = (await caller.ask("/recommend/users", users=["x", "y", "z"], **options))["recommendations"]
            for user, answer in zip(("x", "y", "z"), answers, strict=True):
                taken = frozenset(each for other in answers if other is not answer for each in ids(other))
                request = {**options, "user_id": user}
                wrong = caller.shop.violations(request, answer, has_returns=False, taken=taken)
                assert not wrong, (request, ids(answer), wrong)
                caller.shop.remember(user, answer)


async def test_who_is_not_known_pages_through_the_whole_list_and_boosts_what_is_new(
    bundles: dict[Vocabulary, Path], valkey: EmbeddedServer, raw: Redis
) -> None:
    async with calling_as_strangers(bundles["items"], valkey.url) as caller:
        pages = await pages_of(caller, user_id="stranger", k=4)
        order = [each for page in pages for each in ids(page)]
        assert sorted(order) == sorted(caller.shop.items), "each item once"
        assert ids(await caller.ask(user_id="stranger", k=24)) == order, "a long list is what the pages say"
        assert [item["source"] for page in pages for item in page["items"]][:10].count("latest") == 1
        boosted = await caller.ask(user_id="stranger", k=3, boosts=[{"filter": {"new": True}, "add": 14}])
        assert all(caller.shop.items[each]["new"] for each in ids(boosted))


async def test_several_users_get_what_each_gets_alone(
    bundles: dict[Vocabulary, Path], valkey: EmbeddedServer, raw: Redis
) -> None:
    async with calling(bundles["items"], valkey.url) as caller:
        together = (await caller.ask("/recommend/users", users=["u", "v", "w"], k=5))["recommendations"]
        alone = [await caller.ask(user_id=user, k=5) for user in ("u", "v", "w")]
        assert [ids(answer) for answer in together] == [ids(answer) for answer in alone]
        assert [answer["fallback"] for answer in together] == [None, None, "cold_start"]
        refused: list[dict[str, Any]] = [
            {"users": ["u", "u"]},
            {"users": []},
            {"users": [str(n) for n in range(50)], "k": 21},
        ]
        for wrong in refused:
            await caller.ask("/recommend/users", 422, **wrong)


# ---- pages


async def pages_of(caller: Caller, **body: Any) -> list[dict[str, Any]]:
    pages = [await caller.ask(**body, paged=True)]
    while pages[-1]["next_cursor"]:
        pages.append(await caller.ask(cursor=pages[-1]["next_cursor"]))
    return pages


@BOTH
async def test_pages_go_through_the_whole_list_whatever_happens_between_them(
    vocabulary: Vocabulary, bundles: dict[Vocabulary, Path], valkey: EmbeddedServer, raw: Redis
) -> None:
    async with calling(bundles[vocabulary], valkey.url) as caller:
        body: dict[str, Any] = {
            "user_id": "u",
            "k": 4,
            "diversity": 0.5,
            "boosts": [{"filter": {"new": True}, "factor": 3}],
        }
        whole = await pages_of(caller, **body)
        order = [each for page in whole for each in ids(page)]
        assert len(set(order)) == len(order) == 14 and len({page["recommendation_id"] for page in whole}) == 1
        assert [item["rank"] for page in whole for item in page["items"]] == list(range(1, 15))
        first = await caller.ask(**body, paged=True)
        assert ids(first) == order[:4] == ids(await caller.ask(**body)), "the first page is the answer without pages"
        cursor = first["next_cursor"]
        await caller.ask(
            "/interactions", 202, interactions=[interaction(90, item_id=order[5], timestamp=1_700_000_500)]
        )
        await caller.client.put("/items/fresh", json={"title": "Fresh Tea", "attributes": {"new": True}})
        second = await caller.ask(cursor=cursor)
        assert ids(second) == order[4:8], "neither an event nor a new item moves the list"
        assert second == {**await caller.ask(cursor=cursor), "timings_ms": second["timings_ms"]}, (
            "a page can be read again"
        )
        await caller.client.patch(f"/items/{order[9]}", json={"hidden": True})
        third = await caller.ask(cursor=second["next_cursor"])
        assert ids(third) == [order[8], *order[10:12]] and [each["field"] for each in third["warnings"]] == ["items"]
        assert [item["rank"] for item in third["items"]] == [9, 11, 12]
        fourth = await caller.ask(cursor=third["next_cursor"])
        assert ids(fourth) == order[12:] and fourth["next_cursor"] is None


async def test_a_cursor_that_is_foreign_or_over_says_so(
    bundles: dict[Vocabulary, Path], valkey: EmbeddedServer, raw: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with calling(bundles["items"], valkey.url) as caller:
        cursor = (await caller.ask(user_id="u", k=2, paged=True))["next_cursor"]
        for foreign in ("", "x", "é", "bnVsbA", "W10", cursor[:-8], cursor + "A"):
            await caller.ask("/recommend", 400, cursor=foreign)
        assert "cursor" in str(await caller.ask("/recommend", 422, cursor=cursor, k=3))
        anonymous = (await caller.ask(k=2, paged=True))["next_cursor"]
        await caller.client.delete("/users/u")
        assert not [key async for key in raw.scan_iter("*u}:pages")], "deleted with the user"
        gone = await caller.ask("/recommend", 410, cursor=cursor)
        assert gone["type"] == "urn:automr:problem:cursor-expired"
        await caller.ask(cursor=anonymous)
        (key,) = [key async for key in raw.scan_iter("*pages*")]
        (field, packed), *_ = (await raw.hgetall(key)).items()
        for damaged in (b"", b"\xff\x00", zlib.compress(b"[]"), zlib.compress(b'{"model": 1, "pages": [[], [[1]]]}')):
            await raw.hset(key, field, damaged)
            await caller.ask("/recommend", 410, cursor=anonymous)
        await raw.hset(key, field, packed)
        monkeypatch.setattr("service.store.pages.time.time", lambda: 2e9)
        await caller.ask("/recommend", 410, cursor=anonymous)


async def test_a_user_keeps_few_lists_for_a_short_time(
    bundles: dict[Vocabulary, Path], valkey: EmbeddedServer, raw: Redis
) -> None:
    async with calling(bundles["items"], valkey.url) as caller:
        cursors = [(await caller.ask(user_id="u", k=2, paged=True))["next_cursor"] for _ in range(23)]
        (key,) = [key async for key in raw.scan_iter("*u}:pages")]
        assert await raw.hlen(key) == 20 and 0 < await raw.ttl(key) <= 1800
        found = [(await caller.client.post("/recommend", json={"cursor": each})).status_code for each in cursors]
        assert found.count(200) == 20 and found[-1] == 200


# ---- single options


async def test_a_list_is_diversified_by_the_vectors_of_the_index(
    bundles: dict[Vocabulary, Path], valkey: EmbeddedServer, raw: Redis
) -> None:
    async with calling(bundles["items"], valkey.url) as caller:
        plain = await caller.ask(user_id="u", k=20)
        rows = [int(each[1:]) for each in ids(plain)]
        vectors = await caller.app.state.resources.engine.vectors(rows)
        scores = np.array([item["score"] for item in plain["items"]])
        relevance = (scores - scores.min()) / (scores.max() - scores.min())
        for weight in (0.3, 1.0):
            found = await caller.ask(user_id="u", k=20, diversity=weight)
            assert ids(found) == [f"i{rows[place]}" for place in marginal_order(relevance, vectors, weight)]


async def test_an_item_far_behind_can_be_lifted_to_the_top(
    bundles: dict[Vocabulary, Path], valkey: EmbeddedServer, raw: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.usecases.recommend.LEAST", 2)
    async with calling(bundles["titles"], valkey.url) as caller:
        worst = ids(await caller.ask(user_id="u", k=20))[-1]
        only = {"op": "eq", "attribute": "item_id", "value": worst}
        lifted = await caller.ask(user_id="u", k=1, boosts=[{"filter": only, "add": 14}, {"filter": only, "add": 14}])
        assert ids(lifted) == [worst], "it is not among the best four, which are all that the model was asked for"


async def test_what_was_just_shown_goes_last_in_the_next_answer_and_in_that_of_others_not(
    bundles: dict[Vocabulary, Path], valkey: EmbeddedServer, raw: Redis
) -> None:
    async with calling(bundles["items"], valkey.url) as caller:
        twin = [interaction(70 + n, "twin", item_id=f"i{9 + n}", timestamp=1_700_000_050 + n) for n in range(3)]
        await caller.ask("/interactions", 202, interactions=twin)
        order = ids(await caller.ask(user_id="twin", k=17))
        rotation: dict[str, Any] = {"user_id": "v", "k": 5, "rotation": {"rate": 1}}
        shown = [ids(await caller.ask(**rotation)) for _ in range(3)]
        assert [each for page in shown for each in page] == order[:15]
        assert ids(await caller.ask(user_id="v", k=5)) == order[:5], "only on request"
        assert not (await caller.ask(user_id="new", k=5, rotation={"rate": 1}))["warnings"]


async def test_explanations_tell_moves_and_silence_tells_none(
    bundles: dict[Vocabulary, Path], valkey: EmbeddedServer, raw: Redis
) -> None:
    async with calling(bundles["items"], valkey.url) as caller:
        body: dict[str, Any] = {"user_id": "u", "k": 3, "pins": [{"item_id": "i19", "position": 1}]}
        top = (await caller.ask(**body))["items"][0]
        assert top["item_id"] == "i19" and top["moves"][-1]["rule"] == "pins" and top["moves"][-1]["to_rank"] == 1
        assert all(item["moves"] == [] for item in (await caller.ask(**body, explain=False))["items"])


async def test_options_count_without_the_model(
    bundles: dict[Vocabulary, Path], valkey: EmbeddedServer, raw: Redis
) -> None:
    """Popular items in its place, by the same rules; what cannot be done is told."""
    async with calling(bundles["items"], valkey.url) as caller:

        async def fail(*args: Any, **options: Any) -> Any:
            await asyncio.sleep(0)
            raise RuntimeError("planted")

        engine = caller.app.state.resources.engine
        engine.recommend = engine.vectors = fail
        body: dict[str, Any] = {"user_id": "u", "k": 6, "diversity": 0.4}
        body |= {
            "caps": [{"attribute": "series", "at_most": 1}],
            "filter": {"op": "exists", "attribute": "series"},
        }
        answer = await caller.ask(**body)
        assert answer["fallback"] == "engine_error" and len(answer["items"]) == 5
        assert [each["field"] for each in answer["warnings"]] == ["diversity"]
