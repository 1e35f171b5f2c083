"""HTTP answers rank as the evaluation does: what wins offline works online."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from httpx2 import AsyncClient
from redis.asyncio import Redis

from model_store.bundle import Bundle
from service.store.embedded.server import EmbeddedServer
from tests.conftest import TITLES, small_voices, write_bundle
from tests.service.real import open_app
from tests.training.evaluations import SPLIT, small_evaluation
from training.data.splits import Target
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
            found = await ask(client, target, user_id)
            assert found == [SPLIT.item_ids[row] for row in rows], f"target {number}: {target}"
