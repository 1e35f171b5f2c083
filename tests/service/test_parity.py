"""HTTP answers rank as the evaluation does: what wins offline works online."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from httpx2 import AsyncClient
from redis.asyncio import Redis

from model_store.bundle import Bundle
from service.store.embedded.server import EmbeddedServer
from tests.conftest import TITLES, small_voices, write_bundle
from tests.service.real import open_app
from tests.training.evaluations import DATASET, SPLIT, small_evaluation
from training.data.splits import Target, time_split
from training.rows.memory_choices import retriever_choice

TARGETS = [Target(0, 2), Target(0, 9), Target(0, 25), *SPLIT.test[:8]]


def events_before(target: Target, user_id: str) -> list[dict[str, Any]]:
    history = SPLIT.histories[target.user]
    return [
        {"user_id": user_id, "item_id": SPLIT.item_ids[item], "timestamp": int(time)}
        for item, time in zip(history.items[: target.position], history.timestamps[: target.position], strict=True)
    ]


async def ask(client: AsyncClient, target: Target, user_id: str) -> list[str]:
    """Sends the events before the target, the newest first, and asks at the time of the target."""
    events = events_before(target, user_id)[::-1]
    sent = await client.post("/interactions", json={"interactions": events, "wait": "visible"})
    assert sent.status_code == 200, sent.text
    now = int(SPLIT.histories[target.user].timestamps[target.position])
    request = {"user_id": user_id, "k": 10, "timestamp": now, "candidates": SPLIT.item_ids}  # rare items are not ranked
    answer = (await client.post("/recommend", json=request)).json()
    assert answer["fallback"] is None
    return [item["item_id"] for item in answer["items"]]


@pytest.mark.parametrize("has_returns", [True, False])
async def test_answers_rank_as_the_evaluation_does(
    has_returns: bool, valkey: EmbeddedServer, raw: Redis, tmp_path: Path
) -> None:
    path = tmp_path / "bundle"
    write_bundle(path, vocabulary="items", voices=small_voices(len(TITLES), has_returns=has_returns))
    evaluation = small_evaluation(Bundle.open(path), tmp_path / "cache", targets=TARGETS, mask_seen=not has_returns)
    expected: Sequence[Sequence[int]] = evaluation.rank_with_memory(retriever_choice, "parity")
    async with open_app(path, valkey.url, encode_in_process=True) as (_, client):
        for number, (target, rows) in enumerate(zip(TARGETS, expected, strict=True)):
            # Events of equal time are ordered by a hash of user and item, so the user keeps the id of the data set.
            user_id = SPLIT.histories[target.user].user_id
            assert (await client.delete(f"/users/{user_id}")).status_code in (200, 404)
            await client.post(f"/users/{user_id}:recreate")  # events older than the deletion are stored again
            found = await ask(client, target, user_id)
            assert found == [SPLIT.item_ids[row] for row in rows], f"target {number}: {target}"


KINDS = ["purchase", "view", "skip", "play", "impression", "purchase", "interaction"]
TYPED = replace(
    DATASET,
    interactions=DATASET.interactions.with_row_index("row").select(
        pl.exclude("row"), type=(pl.col("row") * 5 % len(KINDS)).replace_strict(dict(enumerate(KINDS)))
    ),
)
TYPED_SPLIT = time_split(TYPED)


def typed_events_before(target: Target) -> list[dict[str, Any]]:
    """All events of the user before the time of the target, and those of the history at this time."""
    history = TYPED_SPLIT.histories[target.user]
    now = int(history.timestamps[target.position])
    in_basket = history.items[: target.position][history.timestamps[: target.position] == now]
    basket = {TYPED_SPLIT.item_ids[item] for item in in_basket}
    is_known = pl.col("item_id").is_in(TYPED_SPLIT.item_ids)  # the evaluation leaves out rare items
    own = TYPED.interactions.filter((pl.col("user_id") == history.user_id) & is_known)
    return [
        {name: row[name] for name in ("user_id", "item_id", "timestamp", "type")}
        for row in own.to_dicts()
        if row["timestamp"] < now
        or (row["timestamp"] == now and row["item_id"] in basket and row["type"] not in ("skip", "impression"))
    ]


@pytest.mark.parametrize("has_returns", [True, False])
async def test_answers_rank_as_the_evaluation_does_with_types(
    has_returns: bool, valkey: EmbeddedServer, raw: Redis, tmp_path: Path
) -> None:
    targets = [Target(0, 2), Target(0, 9), Target(1, 12), *TYPED_SPLIT.test[:6]]
    path = tmp_path / "bundle"
    write_bundle(path, vocabulary="items", voices=small_voices(len(TITLES), has_returns=has_returns))
    bundle = Bundle.open(path)
    evaluation = small_evaluation(bundle, tmp_path / "cache", TYPED_SPLIT, targets=targets, mask_seen=not has_returns)
    expected = evaluation.rank_with_memory(retriever_choice, "parity")
    pasts = [evaluation.past(target) for target in targets]
    assert any(past and past.against for past in pasts) and any(past and past.weights for past in pasts)
    async with open_app(path, valkey.url, encode_in_process=True) as (_, client):
        for number, (target, rows) in enumerate(zip(targets, expected, strict=True)):
            history = TYPED_SPLIT.histories[target.user]
            assert (await client.delete(f"/users/{history.user_id}")).status_code in (200, 404)
            await client.post(f"/users/{history.user_id}:recreate")
            body = {"interactions": typed_events_before(target)[::-1], "wait": "visible"}
            assert (await client.post("/interactions", json=body)).status_code == 200
            now = int(history.timestamps[target.position])
            request = {"user_id": history.user_id, "k": 10, "timestamp": now, "candidates": TYPED_SPLIT.item_ids}
            answer = (await client.post("/recommend", json=request)).json()
            found = [item["item_id"] for item in answer["items"]]
            assert found == [TYPED_SPLIT.item_ids[row] for row in rows], f"target {number}: {target}"
