"""What is acknowledged as `replicated` survives the loss of the primary; two real servers, one of which lags."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from redis.asyncio import Redis

from service.doctor.checks import examine
from service.errors import NotDurable, StoreUnavailable
from service.store.client import MemoryStore
from service.store.embedded.server import EmbeddedServer
from service.store.events import Event
from tests.service.real import history, open_app, settings_for


@pytest.fixture
def primary(tmp_path: Path) -> Iterator[EmbeddedServer]:
    with EmbeddedServer(tmp_path / "primary") as server:
        yield server


@pytest.fixture
async def replica(primary: EmbeddedServer, tmp_path: Path, free_tcp_port: int) -> AsyncIterator[EmbeddedServer]:
    """Follows the primary over TCP, on loopback only."""
    with EmbeddedServer(tmp_path / "replica") as server:
        async with Redis.from_url(primary.url) as first, Redis.from_url(server.url) as second:
            await first.config_set("bind", "127.0.0.1")
            await first.config_set("protected-mode", "no")
            await first.config_set("port", free_tcp_port)
            await first.config_set("repl-diskless-sync-delay", 0)
            await second.replicaof("127.0.0.1", free_tcp_port)
            async with asyncio.timeout(20):
                while (await second.info("replication"))["master_link_status"] != "up":
                    await asyncio.sleep(0.05)
        yield server


async def stored_ids(store: MemoryStore) -> set[str]:
    return {each.event_id for each in (await store.events("u", limit=500))[0]}


async def test_no_acknowledged_event_is_lost_when_a_lagging_replica_takes_over(
    primary: EmbeddedServer, replica: EmbeddedServer
) -> None:
    """The replica stands still for a while; what comes meanwhile is not acknowledged, and is lost with the primary."""
    store = await MemoryStore.connect(primary.url, timeout_s=2)
    acknowledged, refused = set[str](), set[str]()

    async def send(number: int) -> None:
        name = f"e{number}"
        try:
            await store.append([Event(name, "u", "i", number)], durability="replicated")
            acknowledged.add(name)
        except NotDurable:
            refused.add(name)

    for start in range(0, 100, 20):
        await asyncio.gather(*(send(number) for number in range(start, start + 20)))
    os.kill(replica.pid, signal.SIGSTOP)
    await asyncio.gather(*(send(number) for number in range(100, 150)))
    assert len(acknowledged) == 100 and len(refused) == 50
    assert len(await stored_ids(store)) == 150, "a refusal says that the write is done"
    os.kill(primary.pid, signal.SIGKILL)
    os.kill(replica.pid, signal.SIGCONT)
    async with Redis.from_url(replica.url) as promoted:
        await promoted.replicaof("NO", "ONE")
    after = await MemoryStore.connect(replica.url)
    found = await stored_ids(after)
    assert acknowledged <= found, f"{len(acknowledged - found)} acknowledged events are lost"
    events = [Event(name, "u", "i", int(name[1:])) for name in sorted(refused)]
    assert set(await after.append(events)) <= {"accepted", "duplicate"}, "a retry is not safe"
    assert len(await stored_ids(after)) == 150
    await after.close()
    await store.close()


async def test_a_retry_over_another_connection_is_not_acknowledged_before_the_replica_has_it(
    primary: EmbeddedServer, replica: EmbeddedServer
) -> None:
    """The retry finds the event stored and writes nothing of it, so its own connection has nothing to wait for."""
    stores = [await MemoryStore.connect(primary.url, timeout_s=0.4) for _ in range(2)]
    event = Event("e1", "u", "i", 1)
    os.kill(replica.pid, signal.SIGSTOP)
    for store in stores:
        with pytest.raises(NotDurable, match="0 of 1 replicas"):
            await store.append([event], durability="replicated")
    os.kill(replica.pid, signal.SIGCONT)
    for store in stores:
        store.breaker.answered()
        assert await store.append([event], durability="replicated") == ["duplicate"]
        await store.close()


async def test_the_disk_confirms_what_is_asked_for(primary: EmbeddedServer) -> None:
    store = await MemoryStore.connect(primary.url)
    assert await store.append([Event("e1", "u", "i", 1)], durability="fsync") == ["accepted"]
    async with Redis.from_url(primary.url) as client:
        await client.config_set("appendonly", "no")
    with pytest.raises(NotDurable, match="cannot promise"):
        await store.append([Event("e2", "u", "i", 2)], durability="fsync")
    assert await stored_ids(store) == {"e1", "e2"}
    with pytest.raises(NotDurable, match="0 of 1 replicas"):
        await store.append([Event("e3", "u", "i", 3)], durability="replicated")
    await store.close()


async def test_the_setting_counts_for_deletions_and_corrections_too(primary: EmbeddedServer, bundle_path: Path) -> None:
    async with open_app(bundle_path, primary.url, durability="replicated", store_timeout_s=0.3) as (_, http):
        body = {"interactions": history(2, "someone")}
        refused = await http.post("/interactions", json=body)
        assert refused.status_code == 503 and "Send it again" in refused.json()["detail"]
        stored = await http.post("/interactions", json=body | {"durability": "stored"})
        assert [each["status"] for each in stored.json()["results"]] == ["duplicate"] * 2
        assert (await http.delete("/users/someone/interactions/e000")).status_code == 503
        assert (await http.delete("/users/someone")).status_code == 503
        assert (await http.get("/users/someone")).status_code == 404, "the deletion is done, but not confirmed"


async def test_the_doctor_tells_that_the_setting_cannot_be_kept(primary: EmbeddedServer, bundle_path: Path) -> None:
    for durability, finding in (("fsync", "changes are fsync"), ("replicated", "0 of 1 replicas")):
        asked = settings_for(bundle_path / "none", primary.url, port=0, durability=durability, store_timeout_s=0.3)
        (found,) = [each for each in await examine(asked) if each.name == "durable"]  # no model: it is slow
        assert found.is_ok is (durability == "fsync") and finding in found.finding


async def test_a_primary_that_is_gone_is_told_as_before(primary: EmbeddedServer) -> None:
    store = await MemoryStore.connect(primary.url, timeout_s=0.3)
    primary.stop()
    with pytest.raises(StoreUnavailable) as error:
        await store.append([Event("e1", "u", "i", 1)], durability="replicated")
    assert not isinstance(error.value, NotDurable)
    await store.close()
