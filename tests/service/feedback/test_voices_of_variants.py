"""Variants of an experiment may weigh the voices in another way, over HTTP and on every replica."""

from pathlib import Path
from typing import Any

import pytest
from httpx2 import AsyncClient
from redis.asyncio import Redis

from service.store.embedded.server import EmbeddedServer
from tests.conftest import write_bundle
from tests.service.real import open_app
from tests.service.shop import TITLES, voices_that_follow_the_mixture

LAMP, AFTER_LAMP = "i9", "i10"  # the table `near` has this pair alone
SILENT: dict[str, float] = {"language_model": 0, "near": 0, "alike": 0, "return": 0, "popularity": 0}


@pytest.fixture(scope="module")
def shop_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("variants") / "shop"
    write_bundle(path, vocabulary="items", titles=TITLES, voices=voices_that_follow_the_mixture())
    return path


async def listed(client: AsyncClient, voices: dict[str, float] | None) -> list[dict[str, Any]]:
    """What a user of a variant with these weights is shown; None: without an experiment."""
    experiment: dict[str, Any] | None = None
    if voices is not None:
        experiment = {"name": "x", "control": "a", "variants": [{"name": "a", "share": 1.0, "voices": voices}]}
    put = await client.put("/experiments", json={"experiment": experiment})
    assert put.status_code == 200, put.text
    if voices is not None:
        assert put.json()["experiment"]["variants"][0]["voices"] == voices
    answer = await client.post("/recommend", json={"user_id": "u", "k": 10, "recent": [{"item_id": LAMP}]})
    assert answer.json()["fallback"] is None, answer.text
    items: list[dict[str, Any]] = answer.json()["items"]
    return items


def place(items: list[dict[str, Any]], item_id: str) -> int:
    return [*(item["item_id"] for item in items), item_id].index(item_id)


async def test_a_variant_multiplies_the_weights_of_voices(shop_path: Path, valkey: EmbeddedServer, raw: Redis) -> None:
    async with open_app(shop_path, valkey.url) as (_, client):
        plain = await listed(client, None)
        same = await listed(client, {})
        assert [(i["item_id"], i["score"]) for i in plain] == [(i["item_id"], i["score"]) for i in same]
        assert place(plain, AFTER_LAMP) == 0 and plain[0]["reason"]["voice"] == "near"
        silenced = await listed(client, {"near": 0})
        assert all(item["reason"]["voice"] != "near" for item in silenced if item["reason"])
        assert place(silenced, AFTER_LAMP) > 0, "a silenced voice is heard"
        alone = await listed(client, SILENT | {"near": 1})
        assert alone[0]["item_id"] == AFTER_LAMP and alone[0]["reason"]["share"] == 1.0
        popular = await listed(client, SILENT | {"popularity": 1})
        assert {item["reason"]["voice"] for item in popular if item["reason"]} == {"popularity"}


@pytest.mark.parametrize("voices", [{"nobody": 1}, {"near": -1}, {"near": "much"}, {"near": 101}])
async def test_wrong_weights_are_refused(
    shop_path: Path, valkey: EmbeddedServer, raw: Redis, voices: dict[str, Any]
) -> None:
    async with open_app(shop_path, valkey.url) as (_, client):
        body = {"name": "x", "control": "a", "variants": [{"name": "a", "share": 1.0, "voices": voices}]}
        answer = await client.put("/experiments", json={"experiment": body})
        assert answer.status_code == 422 and "voices" in answer.text
