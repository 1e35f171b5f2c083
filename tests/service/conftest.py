"""A real server for the tests of the store: started here, in its own directory, durable as the service's."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from redis.asyncio import Redis

from service.store.client import MemoryStore
from service.store.embedded.server import EmbeddedServer
from tests.service.real import Service, open_service


@pytest.fixture(scope="session")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    with EmbeddedServer(Path(tmp_path_factory.mktemp("valkey"))) as server:
        yield server


@pytest.fixture
async def raw(valkey: EmbeddedServer) -> AsyncIterator[Redis]:
    """A plain client, to look behind the store. Empties the server, which is ours alone."""
    client = Redis.from_url(valkey.url)
    await client.flushall()
    yield client
    await client.aclose()


@pytest.fixture
async def store(valkey: EmbeddedServer, raw: Redis) -> AsyncIterator[MemoryStore]:
    memory = await MemoryStore.connect(valkey.url)
    yield memory
    await memory.close()


@pytest.fixture
async def service(bundle_path: Path, valkey: EmbeddedServer, raw: Redis) -> AsyncIterator[Service]:
    """Every part real, the store empty; encoding happens when the test says so."""
    async with open_service(bundle_path, valkey.url) as opened:
        yield opened
