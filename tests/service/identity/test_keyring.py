"""Keys of the store: only hashes at rest, expiry, rotation with overlap, revocation everywhere, no store at times."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from redis.asyncio import Redis

from service.errors import KeyConflict, StoreUnavailable, UnknownKey
from service.identity import keyring as module
from service.identity.keyring import LOOK_EVERY_S, MOST_AGE_S, Keyring, NewKey
from service.identity.keys import hashed
from service.identity.principal import Principal
from service.store.client import MemoryStore

SHOP = NewKey("shop", ("recommend", "ingest"))


class Clock:
    now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


@asynccontextmanager
async def replica(run: Any, clock: Clock | None = None, **options: Any) -> AsyncIterator[Keyring]:
    keyring = Keyring(run, **options) if clock is None else Keyring(run, clock=clock, **options)
    await keyring.start()
    try:
        yield keyring
    finally:
        await keyring.stop()


def who(keyring: Keyring, key: str) -> Principal | None:
    return keyring.principal(hashed(key))


async def test_a_key_has_its_scopes_and_the_store_has_only_its_hash(store: MemoryStore, raw: Redis) -> None:
    async with replica(store.run) as keyring:
        key, record = await keyring.create(SHOP)
        found = who(keyring, key)
        assert found is not None and found.scopes == {"recommend", "ingest"} and found.key_id == record.id
        assert who(keyring, key + "x") is None
    for name in await raw.keys("*"):
        held = await (raw.hgetall(name) if await raw.type(name) == b"hash" else raw.get(name))
        assert key[8:].encode() not in repr(held).encode(), f"{name!r} holds the key"
    assert record.secrets[0].shown == key[:8]


async def test_other_replicas_learn_of_new_and_revoked_keys_in_time(store: MemoryStore) -> None:
    async with replica(store.run) as one, replica(store.run) as other:
        key, record = await one.create(SHOP)
        await asyncio.sleep(LOOK_EVERY_S + 0.9)
        assert who(other, key) is not None
        await one.revoke(record.id)
        assert who(one, key) is None
        await asyncio.sleep(LOOK_EVERY_S + 0.9)
        assert who(other, key) is None, "a revoked key works 3 seconds later"
        with pytest.raises(UnknownKey):
            await other.revoke(record.id)


async def test_after_a_rotation_both_keys_work_until_the_overlap_ends(store: MemoryStore) -> None:
    clock = Clock()
    async with replica(store.run, clock) as keyring:
        old, record = await keyring.create(SHOP)
        new, rotated = await keyring.rotate(record.id, overlap_s=60)
        assert rotated.id == record.id and len(rotated.secrets) == 2
        assert who(keyring, old) == who(keyring, new) != None  # noqa: E711
        clock.now += 61
        assert who(keyring, old) is None and who(keyring, new) is not None
        third, rotated = await keyring.rotate(record.id, overlap_s=0)
        assert who(keyring, new) is None and who(keyring, third) is not None
        for _ in range(5):
            _, rotated = await keyring.rotate(record.id, overlap_s=3600)
        assert len(rotated.secrets) == 3, "old keys pile up"


async def test_a_further_rotation_does_not_lengthen_the_life_of_an_old_key(store: MemoryStore) -> None:
    clock = Clock()
    async with replica(store.run, clock) as keyring:
        old, record = await keyring.create(SHOP)
        await keyring.rotate(record.id, overlap_s=60)
        await keyring.rotate(record.id, overlap_s=3600)
        clock.now += 61
        assert who(keyring, old) is None


async def test_a_key_expires(store: MemoryStore) -> None:
    clock = Clock()
    async with replica(store.run, clock) as keyring:
        key, _ = await keyring.create(NewKey("short", ("users",), expires_at=clock.now + 10))
        assert who(keyring, key) is not None
        clock.now += 10
        assert who(keyring, key) is None


async def test_the_last_use_is_known_coarsely(store: MemoryStore) -> None:
    clock = Clock()
    async with replica(store.run, clock) as keyring:
        key, record = await keyring.create(SHOP)
        assert (await keyring.listed())[0][1] is None
        who(keyring, key)
        ((listed, used),) = await keyring.listed()
        assert listed == record and used is not None and 0 <= clock.now - used < 60
        await keyring.revoke(record.id)
        assert await keyring.listed() == []


async def test_a_look_up_asks_the_store_nothing_and_survives_its_absence(store: MemoryStore) -> None:
    clock, is_away = Clock(), False

    async def run(commands: Any) -> Any:
        if is_away:
            raise StoreUnavailable("away")
        return await store.run(commands)

    async with replica(run, clock) as keyring:
        key, record = await keyring.create(SHOP)
        is_away = True
        clock.now += MOST_AGE_S - 1
        assert who(keyring, key) is not None
        for change in (keyring.create(SHOP), keyring.rotate(record.id, overlap_s=1), keyring.revoke(record.id)):
            with pytest.raises(StoreUnavailable):
                await change
        clock.now += 2
        with pytest.raises(StoreUnavailable):
            who(keyring, key)
        is_away = False
        await asyncio.sleep(LOOK_EVERY_S + 0.5)
        assert who(keyring, key) is not None


async def test_changes_at_the_same_time_are_not_lost(store: MemoryStore) -> None:
    async with replica(store.run) as one, replica(store.run) as other:
        made = await asyncio.gather(*(each.create(SHOP) for each in (one, other) * 4))
        assert {record.id for _, record in made} == {record.id for record, _ in await one.listed()}


async def test_a_damaged_record_costs_its_own_key_only(store: MemoryStore, raw: Redis) -> None:
    async with replica(store.run) as keyring:
        good, _ = await keyring.create(SHOP)
        bad, record = await keyring.create(SHOP)
        for damage in (b"\xff", b"[]", b"{}", json.dumps({"id": record.id, "secrets": [{}]}).encode()):
            await raw.hset("automr:{+keys}:records", record.id, damage)
            await raw.incr("automr:{+keys}:version")
            await keyring._following.once()
            assert who(keyring, good) is not None and who(keyring, bad) is None
        await keyring.revoke((await keyring.create(SHOP))[1].id)


async def test_the_number_of_keys_is_bounded(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_KEYS", 2)
    async with replica(store.run) as keyring:
        await keyring.create(SHOP)
        await keyring.create(SHOP)
        with pytest.raises(KeyConflict, match="revoke"):
            await keyring.create(SHOP)


async def test_a_key_of_a_tenant_cannot_have_what_concerns_all(store: MemoryStore) -> None:
    async with replica(store.run) as keyring:
        with pytest.raises(KeyConflict, match="admin"):
            await keyring.create(NewKey("t", ("recommend", "admin"), tenant="shop-a"))
