"""Why a store does not serve: each cause is told apart, to callers and in the log. On a real server."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
from redis.asyncio import Redis
from structlog.testing import capture_logs

from service.doctor.checks import examine
from service.errors import StoreUnavailable
from service.logs import RepeatedWarnings
from service.store import connection
from service.store.client import MemoryStore
from service.store.embedded.server import EmbeddedServer
from tests.service.real import open_app, settings_for


class Cause(NamedTuple):
    """Commands that make the server refuse, user and password, the reason in the log, the words for callers."""

    commands: list[str]
    user: str
    name: str
    words: str


LIMITED = "ACL SETUSER limited on >pw ~* +@all"
CAUSES = [
    Cause(["CONFIG SET maxmemory 1"], "", "full", "is full"),
    Cause(["REPLICAOF 127.0.0.1 1"], "", "read-only", "is a read-only replica"),
    Cause([f"{LIMITED} -eval"], "limited:pw", "no rights", "does not allow"),
    Cause([f"{LIMITED} -set"], "limited:pw", "no rights", "does not allow"),
    Cause([LIMITED], "limited:wrong", "wrong password", "refuses the user or the password"),
    Cause([], "nobody:pw", "wrong password", "refuses the user or the password"),
]


@pytest.fixture(autouse=True)
def log_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test sees its line, although another test had the same one a moment ago."""
    monkeypatch.setattr(connection, "repeated", RepeatedWarnings(connection.log))


@asynccontextmanager
async def refusing(raw: Redis, cause: Cause) -> AsyncIterator[None]:
    """The server after the commands of the cause; afterwards as before."""
    for command in cause.commands:
        await raw.execute_command(*command.split())
    try:
        yield
    finally:
        for command in ("CONFIG SET maxmemory 0", "REPLICAOF NO ONE", "ACL DELUSER limited"):
            await raw.execute_command(*command.split())


async def why_not(url: str, *, timeout_s: float = 2.0) -> tuple[str, list[str]]:
    """What the error says, and the reasons in the log."""
    store = await MemoryStore.connect(url, timeout_s=timeout_s)
    with capture_logs() as lines, pytest.raises(StoreUnavailable) as caught:
        await store.ping()
    await store.close()
    return str(caught.value), [line["reason"] for line in lines if line["event"] == "the store does not serve"]


@pytest.mark.parametrize("cause", CAUSES, ids=lambda cause: f"{cause.name} {cause.user}")
async def test_a_store_that_refuses_writes_is_told_with_its_reason(
    valkey: EmbeddedServer, raw: Redis, cause: Cause
) -> None:
    user, _, password = cause.user.partition(":")
    url = valkey.url.replace("unix://", f"unix://{user}@") + f"?password={password}" if user else valkey.url
    async with refusing(raw, cause):
        words, reasons = await why_not(url)
    assert cause.words in words and reasons == [cause.name]


async def test_a_store_that_serves_again_is_taken_at_once(store: MemoryStore, raw: Redis) -> None:
    async with refusing(raw, CAUSES[0]):
        with pytest.raises(StoreUnavailable):
            await store.ping()
    await store.ping()


async def test_a_store_that_does_not_speak_tls_is_told() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"-ERR this is no TLS\r\n")
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        words, reasons = await why_not(f"rediss://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    assert "over TLS" in words and reasons == ["TLS"]


async def test_a_store_that_nobody_serves_is_told(tmp_path: Path) -> None:
    words, reasons = await why_not(f"unix://{tmp_path / 'none'}")
    assert "cannot be reached" in words and reasons == ["away"]


async def test_a_slow_store_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        words, reasons = await why_not(f"redis://127.0.0.1:{silent.getsockname()[1]}", timeout_s=0.1)
    assert "did not answer in time" in words and reasons == ["slow"]


async def test_readyz_and_doctor_name_the_reason(
    bundle_path: Path, valkey: EmbeddedServer, raw: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.store.connection.PROBED_FOR_S", 0)
    async with open_app(bundle_path, valkey.url) as (_, http):
        assert (await http.get("/readyz")).is_success
        async with refusing(raw, CAUSES[0]):
            answer = await http.get("/readyz")
            checks = await examine(settings_for(bundle_path / "none", valkey.url, port=0))  # no model: it is slow
        assert (answer.status_code, answer.json()["title"]) == (503, "Memory store unavailable")
        assert "is full" in answer.json()["detail"]
        assert [(check.is_ok, "is full" in check.finding) for check in checks if check.name == "store"] == [
            (False, True)
        ]
        assert (await http.get("/readyz")).is_success
