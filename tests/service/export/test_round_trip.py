"""Events of all types, in by HTTP and import, out by export, trained on and served: the counts agree to the event."""

from pathlib import Path

import pytest
from redis.asyncio import Redis

from service.store.embedded.server import EmbeddedServer
from tests.benchmarks.round_trip import round_trip
from tests.training.small import TINY
from training.run import recipes


async def test_no_event_is_lost_on_the_way_round(
    bundle_path: Path, valkey: EmbeddedServer, raw: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(recipes.RECIPES, "tiny", TINY)
    found = await round_trip(bundle_path, valkey.url, tmp_path, number=2000, recipe="tiny")
    assert found["sent"] == found["exported"] == found["trained"] == found["served"] == 2000
