"""The small version of `make chaos`: everything that can break in the store breaks under load, in a fixed order."""

import random
from pathlib import Path

from service.store.embedded.server import EmbeddedServer
from tests.chaos.faults import StoreFaults
from tests.chaos.traffic import Tally, Traffic
from tests.service.real import open_app

SEED = 4


async def test_nothing_is_lost_doubled_or_brought_back_whatever_happens_to_the_store(
    bundle_path: Path, tmp_path: Path
) -> None:
    tally = Tally()
    with EmbeddedServer(tmp_path / "store") as server:
        async with open_app(bundle_path, server.url, encode_in_process=True, store_timeout_s=0.5) as (_, client):
            traffic = Traffic(client, tally, SEED, "u")
            faults = StoreFaults(server, traffic).all()
            traffic.start()
            for name in random.Random(SEED).sample(sorted(faults), len(faults)):
                await faults[name]()
                tally.faults[name] += 1
                await traffic.until_more(3)
            await traffic.stop()
            await traffic.look()
    assert not any(tally.bad.values()), tally.bad
