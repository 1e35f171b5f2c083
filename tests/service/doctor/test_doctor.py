"""`python -m service doctor`: each part of a set-up that does not work, or that is not safe, fails with its reason."""

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from service.__main__ import main
from service.doctor.access import examine_issuer, examine_keys, examine_rates
from service.doctor.checks import Check, examine, table
from service.doctor.store import SHARED, examine_clock, examine_durability, examine_store
from service.errors import InsecureBind, StartupError, StoreUnavailable
from service.identity.keyring import Keyring, NewKey
from service.identity.keys import new_key
from service.settings import Settings
from service.store.client import MemoryStore
from service.store.embedded.server import EmbeddedServer
from tests.service.identity.test_tokens import AUDIENCE, ISSUER, document

KEY, ENTRY = new_key()
ASKS = Settings.from_env({}, require_keys=True)


def with_issuer(source: str, **more: Any) -> Settings:
    return Settings.from_env({}, jwt_issuer=ISSUER, jwt_audience=AUDIENCE, jwt_keys=source, **more)


@asynccontextmanager
async def made(store: MemoryStore, *keys: NewKey) -> AsyncIterator[Keyring]:
    keyring = Keyring(store.run)
    await keyring.start()
    for each in keys:
        await keyring.create(each)
    yield keyring
    await keyring.stop()


async def test_a_good_set_up_has_no_failure_and_shows_no_key(
    tmp_path: Path, valkey: EmbeddedServer, raw: Redis
) -> None:
    """All but the model, which takes seconds to start."""
    (tmp_path / "keys.json").write_text(json.dumps(document(only=["RS256"])))
    settings = with_issuer(str(tmp_path / "keys.json"), api_keys=ENTRY, bundle=tmp_path, store=valkey.url, port=0)
    checks = await examine(settings)
    assert [each.name for each in checks] == [
        "bundle",
        "store",
        "rights",
        "files",
        "durable",
        "clock",
        "keys",
        "rates",
        "port",
        "issuer",
    ]
    assert [each.name for each in checks if not each.is_ok] == ["bundle"], table(checks)
    assert KEY not in table(checks) and ENTRY not in table(checks)


@pytest.mark.parametrize("is_ok", [False, True])
def test_the_command_fails_if_one_part_does(
    is_ok: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def found(settings: Settings) -> list[Check]:
        return [Check("store", True, "is well"), Check("keys", is_ok, "three keys")]

    monkeypatch.setattr("service.doctor.checks.examine", found)
    monkeypatch.setattr("service.logs.configure", lambda **_: None)  # it would keep the output of this test
    assert main(["doctor"]) == (0 if is_ok else 1)
    assert capsys.readouterr().out.splitlines() == [
        "ok    store   is well",
        f"{'ok  ' if is_ok else 'FAIL'}  keys    three keys",
    ]


async def test_without_its_store_every_other_part_is_examined(tmp_path: Path) -> None:
    settings = Settings.from_env({}, bundle=tmp_path, store=f"unix://{tmp_path / 'none'}", port=0, api_keys="short")
    checks = {each.name: each for each in await examine(settings)}
    assert [name for name, each in checks.items() if each.is_ok] == ["port"]
    assert "cannot be reached" in checks["store"].finding and "fewer than" in checks["keys"].finding


# ---- who may call


async def test_a_server_that_nobody_can_call_is_told(store: MemoryStore) -> None:
    with pytest.raises(StartupError, match="nobody can call"):
        await examine_keys(ASKS, store)
    async with made(store, NewKey("root", ("admin",))):
        assert await examine_keys(ASKS, store) == "0 in the settings, 1 in the store, 1 with the scope admin"


async def test_expired_keys_and_a_missing_admin_are_told(store: MemoryStore) -> None:
    expired = NewKey("old", ("admin",), expires_at=time.time() - 1)
    async with made(store, expired, NewKey("shop", ("recommend",))):
        finding = await examine_keys(ASKS, store)
    assert "1 in the store and 1 that have expired" in finding and "0 with the scope admin" in finding


async def test_an_old_key_of_a_rotation_that_still_works_counts(store: MemoryStore) -> None:
    async with made(store, NewKey("root", ("admin",))) as keyring:
        ((record, _),) = await keyring.listed()
        await keyring.rotate(record.id, overlap_s=0)
        assert "1 in the store, 1 with" in await examine_keys(ASKS, store)


async def test_keys_of_the_store_that_nobody_asks_for_are_told(store: MemoryStore) -> None:
    async with made(store, NewKey("root", ("admin",))):
        with pytest.raises(StartupError, match="AUTOMR_REQUIRE_KEYS"):
            await examine_keys(Settings.from_env({}), store)


async def test_damaged_keys_are_told(store: MemoryStore, raw: Redis) -> None:
    async with made(store, NewKey("root", ("admin",))):
        await raw.hset("automr:{+keys}:records", "key_1", "nonsense")
        with pytest.raises(StartupError, match="1 keys of the store cannot be read"):
            await examine_keys(ASKS, store)


async def test_an_open_server_and_short_keys_are_told(store: MemoryStore) -> None:
    with pytest.raises(InsecureBind):
        await examine_keys(Settings.from_env({}, host="0.0.0.0"), store)
    with pytest.raises(StartupError, match="fewer than 16 characters"):
        await examine_keys(Settings.from_env({}, api_keys="short"), store)
    assert "everyone" in await examine_keys(Settings.from_env({}), store)


async def test_rates_are_counted_in_the_store(store: MemoryStore, raw: Redis) -> None:
    assert "any number of requests" in await examine_rates(Settings.from_env({}), store)
    assert "the store counts them" in await examine_rates(Settings.from_env({}, rate_limit="5/second"), store)
    (name,) = await raw.keys("automr:{+rate:*")
    assert 0 < await raw.ttl(name) < 10
    await raw.set(name, "damaged")
    with pytest.raises(StartupError, match="does not count"):
        await examine_rates(Settings.from_env({}), store)


# ---- the issuer of tokens


@asynccontextmanager
async def served(body: Any, *, status: int = 200, clock_off_s: float = 0.0) -> AsyncIterator[str]:
    """URL of an issuer whose clock is off."""
    text = json.dumps(body).encode()
    date = formatdate(time.time() + clock_off_s, usegmt=True)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        head = f"HTTP/1.1 {status} OK\r\nDate: {date}\r\nContent-Length: {len(text)}\r\nConnection: close\r\n\r\n"
        writer.write(head.encode() + text)
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/keys"


async def test_an_issuer_that_is_reached_is_named_with_its_algorithms() -> None:
    async with served(document(only=["RS256", "EdDSA"])) as url:
        assert await examine_issuer(with_issuer(url)) == f"{ISSUER}: 2 keys, for RS256"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ({"body": {}, "status": 404}, "status 404"), ({"body": {"keys": []}}, "no key that signs tokens"),
        ({"body": document(only=["EdDSA"])}, "sign by EdDSA, and AUTOMR_JWT_ALGORITHMS allows ES256, RS256"),
        ({"body": document(), "clock_off_s": 100}, "this machine is -"),
        ({"body": document(), "clock_off_s": -100}, "this machine is +"),
    ],
)  # fmt: skip
async def test_an_issuer_whose_tokens_would_be_refused_is_told(answer: dict[str, Any], reason: str) -> None:
    async with served(**answer) as url:
        with pytest.raises(StartupError) as caught:
            await examine_issuer(with_issuer(url))
    assert reason in str(caught.value)


async def test_an_issuer_that_is_not_reached_is_told(tmp_path: Path) -> None:
    for source in (str(tmp_path / "none"), "http://127.0.0.1:1/keys"):
        with pytest.raises(StartupError, match=r"cannot be read: [A-Z]"):
            await examine_issuer(with_issuer(source))


# ---- the store


class Answering:
    """A store of two servers that answer so."""

    def __init__(self, **answers: Any) -> None:
        self.answers = answers

    async def node_names(self) -> list[str]:
        return ["one:1", "two:2"]

    async def ask_node(self, name: str, *command: str) -> Any:
        answer = self.answers["_".join(command).lower()]
        if isinstance(answer, Exception):
            raise answer
        return answer


KEEPS = {
    "info_persistence": {"aof_enabled": 1},
    "info_memory": {"maxmemory_policy": "noeviction"},
    "config_get_appendfsync": {b"appendfsync": b"always"},
}


async def test_a_store_that_may_lose_events_is_told() -> None:
    async def finding(**answers: Any) -> str:
        return await examine_durability(ASKS, Answering(**{**KEEPS, **answers}))  # type: ignore[arg-type]

    assert await finding() == "2 servers with an append-only file and no eviction"
    with pytest.raises(StartupError, match="one:1 has no append-only file"):
        await finding(info_persistence={"aof_enabled": 0})
    with pytest.raises(StartupError, match="allkeys-lru"):
        await finding(info_memory={"maxmemory_policy": "allkeys-lru"})
    assert "cannot be told" in await finding(info_memory=StoreUnavailable("no rights"))


@pytest.mark.parametrize("off_s", [-100, 100])
async def test_a_clock_that_differs_from_that_of_the_store_is_told(off_s: int) -> None:
    with pytest.raises(StartupError, match=r"differ by (9\d|10\d) s"):
        await examine_clock(Answering(time=(int(time.time()) + off_s, 0)))  # type: ignore[arg-type]


@pytest.mark.parametrize("key", sorted(SHARED))
async def test_a_shared_key_of_a_wrong_type_is_named(store: MemoryStore, raw: Redis, key: str) -> None:
    await examine_store(Settings.from_env({}), store)
    await (raw.set(key, "x") if SHARED[key] != "string" else raw.lpush(key, "x"))
    with pytest.raises(StartupError, match=re.escape(key)):
        await examine_store(Settings.from_env({}), store)


async def test_a_store_that_syncs_late_is_told(store: MemoryStore, raw: Redis) -> None:
    assert "appendfsync" not in await examine_durability(Settings.from_env({}), store)
    try:
        await raw.config_set("appendfsync", "everysec")
        assert "appendfsync everysec" in await examine_durability(Settings.from_env({}), store)
    finally:
        await raw.config_set("appendfsync", "always")
