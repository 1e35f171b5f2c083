"""Stored values that another program has damaged: they are told from a store that is away, and cost nobody else."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from service.errors import StoreCorrupt, StoreUnavailable
from service.event_types.stored import EventTypeStore
from service.feedback.experiments import Experiment, Shadow, Variant, experiment_of
from service.http.schemas.keys import Key
from service.identity.keyring import shown
from service.identity.rates import parse
from service.identity.stored import KeyRecord, KeyStore, Secret, record_of
from service.store.bundles import BundleState, BundleStore, Fill, Source
from service.store.client import MemoryStore
from service.store.counts import cell, record
from service.store.erasure.rewrite import StoreFiles
from service.store.erasure.tombstones import Tombstones
from service.store.events import item_digest, read_json
from service.store.feedback.outcomes import OutcomeStore
from service.store.keys import (
    DAY_PREFIX,
    DAYS,
    ENCODE,
    EVENT_TYPES,
    EVENTS_COUNTED,
    ITEM_KEYS,
    QUEUED,
    SECRET,
    WAITING,
)
from service.store.overlay import NewRecord
from service.store.reasons import is_about_data
from tests.service.store.test_client import make_events, recalled

NUMBERS = (b"no number", b"", b"9" * 400, b"\xff\x00")
RECORDS, CHANGES, VERSION = ITEM_KEYS


@pytest.mark.parametrize("raw_value", NUMBERS)
async def test_a_number_that_is_none_is_damage_and_not_a_store_that_is_away(
    store: MemoryStore, raw: Redis, raw_value: bytes
) -> None:
    await store.append(make_events(2))
    await store.append([make_events(3)[2]._replace(type="dislike")])
    await raw.hset("automr:{u}:facts", "revision", raw_value)
    with pytest.raises(StoreCorrupt):
        await store.forget_event("u", "e0002")


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("hash value is not an integer script: 1, on @user_script:5.", True),
        ("user_script:5: attempt to compare nil with number script: 1, on @user_script:5.", True),
        ("WRONGTYPE Operation against a key holding the wrong kind of value", True),
        ("value is not an integer or out of range", True),
        ("OOM command not allowed when used memory > 'maxmemory'. script: 1, on @user_script:5.", False),
        ("MISCONF Errors writing to the AOF file: No space left on device script: 1, on @user_script:5.", False),
        ("ACL failure in script: User a has no permissions to run it script: 1, on @user_script:5.", False),
        ("Script attempted to access a non local key in a cluster node script: 1, on @user_script:5.", False),
        ("Unknown Redis command called from script script: 1, on @user_script:5.", False),
        ("upstream failure", False),
    ],
)  # fmt: skip
def test_only_replies_about_stored_values_are_about_data(reply: str, expected: bool) -> None:
    assert is_about_data(ResponseError(reply)) is expected


@pytest.mark.parametrize("raw_value", NUMBERS)
async def test_a_damaged_number_of_the_queue_stops_no_user(store: MemoryStore, raw: Redis, raw_value: bytes) -> None:
    await store.request_encoding(["u"])
    await raw.hset(WAITING, mapping={"u": raw_value, "other": raw_value})
    await raw.hset(QUEUED, "other", raw_value)
    await store.append(make_events(1, "other"))
    entries = await store.next_encodings("c", count=9, block_ms=1)
    assert {user for _, user in entries} == {"u", "other"}
    await store.encoded([entry for entry, _ in entries])
    assert await store.backlog() == 0 and not await store.next_encodings("c", count=9, block_ms=1)


@pytest.mark.parametrize("name", [WAITING, QUEUED])
async def test_hashes_beside_the_queue_of_a_wrong_type_are_made_anew(store: MemoryStore, raw: Redis, name: str) -> None:
    await store.request_encoding(["u"])
    await raw.set(name, "text")
    await store.append(make_events(1, "other"))
    entries = await store.next_encodings("c", count=9, block_ms=1)
    assert {user for _, user in entries} == {"u", "other"}
    await store.encoded([entry for entry, _ in entries])
    assert await store.backlog() == 0


async def test_a_queue_of_a_wrong_type_begins_anew(store: MemoryStore, raw: Redis) -> None:
    await store.request_encoding(["lost"])
    await raw.set(ENCODE, "text")
    assert not await store.next_encodings("c", count=9, block_ms=1), "a worker finds no entry, and no error"
    await store.request_encoding(["lost"])
    await raw.delete(ENCODE)
    await raw.set(ENCODE, "text")
    await store.append(make_events(1, "u"))
    assert await store.backlog() == 1
    entries = await store.next_encodings("c", count=9, block_ms=1)
    assert [user for _, user in entries] == ["u"]
    await store.encoded([entry for entry, _ in entries])
    assert await store.backlog() == 0


async def test_a_secret_of_a_wrong_type_is_that_of_the_process_again(store: MemoryStore, raw: Redis) -> None:
    """So tombstones stay where they are, and other processes find them."""
    await store.tombstones.load()
    place = await store.tombstones.key("u")
    await raw.delete(SECRET)
    await raw.lpush(SECRET, "x")
    await store.tombstones.load()
    other = Tombstones(store.run)
    assert await store.tombstones.key("u") == await other.key("u") == place


async def test_a_lack_of_rights_is_no_damage(store: MemoryStore, raw: Redis) -> None:
    """What cannot be added to is not replaced."""
    await store.request_encoding(["u"])
    await raw.execute_command("ACL", "SETUSER", "default", "-hincrby")
    try:
        with pytest.raises(StoreUnavailable, match="hincrby"):
            await store.append(make_events(1, "other"))
    finally:
        await raw.execute_command("ACL", "SETUSER", "default", "+hincrby")
    assert await raw.hgetall(WAITING) == {b"u": b"1"}


def counted(*items: str, day: int = 19_000) -> bytes:
    return record({cell(day, item_digest(item), item_digest(item)) or b"": 1.0 for item in items})


@pytest.mark.parametrize("raw_value", NUMBERS)
async def test_a_damaged_count_costs_this_count_alone(store: MemoryStore, raw: Redis, raw_value: bytes) -> None:
    await store.append(make_events(1, "u") + make_events(1, "other"))
    assert await store.count({"u": counted("a", "b")}) == [2]
    day, damaged = f"{DAY_PREFIX}19000", 2 * item_digest("a")
    await raw.hset(day, damaged, raw_value)
    await raw.hset(DAYS, mapping={b"19000": raw_value, raw_value: b"1", b"99999999999": b"1"})
    assert await store.count({"other": counted("a", "b")}) == [2]
    found = await store.counts_of(19_000)
    by_item = {int(pair[0]): float(count) for pair, count in zip(found.pairs, found.counts, strict=True)}
    assert by_item[int.from_bytes(item_digest("b"), "little")] == 2.0, "the count of another item is lost"
    assert all(count < 100 for count in by_item.values())
    assert set(await store.counted_days()) == {19_000}


async def test_a_damaged_record_of_counts_is_forgotten_with_its_user(store: MemoryStore, raw: Redis) -> None:
    for value in (b"\xff" * 21, b"w" + b"x" * 25):
        await store.append(make_events(1))
        await raw.set("automr:{+live}:of:u", value)
        await store.count({"u": counted("a")})
        await store.forget_user("u")
    await raw.hset("automr:{+live}:of:u", "a", "b")
    await store.append(make_events(1))
    await store.forget_user("u")
    assert not [key async for key in raw.scan_iter() if key.endswith(b":u") or b"{u}" in key]


@pytest.mark.parametrize("score", ["inf", "-inf", 1e308, 9e15, 3e15])
async def test_a_damaged_version_of_an_item_hides_no_change_of_others(
    store: MemoryStore, raw: Redis, score: float | str
) -> None:
    assert await store.put_items([NewRecord("a", b"{}")], loaded=0)
    await raw.zadd(CHANGES, {"a": float(score), "strange": float(score)})
    known = max((each.version for each in await store.changed_items(0)), default=0)
    assert await store.put_items([NewRecord("b", b"{}", is_based_on_last=True)], loaded=known)
    assert "b" in {each.item_id for each in await store.changed_items(known)}, "the change of another item is not seen"


@pytest.mark.parametrize("raw_value", [*NUMBERS, b"-5"])
async def test_a_damaged_last_version_does_not_stop_changes(store: MemoryStore, raw: Redis, raw_value: bytes) -> None:
    first = await store.put_items([NewRecord("a", b"{}")], loaded=0)
    await raw.set(VERSION, raw_value)
    second = await store.put_items([NewRecord("a", b"{}", is_based_on_last=True)], loaded=first or 0)
    assert first and second and second > first
    assert [each.version for each in await store.changed_items(first)] == [second]


async def test_a_start_does_not_fail_because_of_the_table_of_event_types(store: MemoryStore, raw: Redis) -> None:
    puts = EventTypeStore(store.run)
    number = await puts.put(store.types, 0)
    await raw.delete(EVENTS_COUNTED)
    await raw.lpush(EVENTS_COUNTED, "x")
    assert (await puts.read()).types is not None, "a sound table is not read because of another key"
    await raw.delete(EVENT_TYPES)
    await raw.lpush(EVENT_TYPES, "x")
    assert (await puts.read()).types is None
    assert await puts.put(store.types, number) > number, "servers that know the last table would not take the new one"


@pytest.mark.parametrize("body", ['{"version": "x"}', '{"version": 1e999}', '{"version": null}', "[]", '{"loaded": 3}'])
async def test_a_start_does_not_fail_because_of_the_list_of_bundles(store: MemoryStore, raw: Redis, body: str) -> None:
    await raw.set("automr:bundles", body)
    assert not (await BundleStore(store.run).read()).loaded


@pytest.mark.parametrize("value", [None, 1e308, -1, 10**30, [1], {"a": 1}, True])
async def test_damaged_facts_of_bundles_cost_this_bundle_alone(store: MemoryStore, raw: Redis, value: Any) -> None:
    sound = {"directory": "new", "precision": "int8"}
    loaded = {"new": sound, "a": {"directory": value}, "b": {"directory": "b", "precision": value}, "c": value}
    await raw.set("automr:bundles", json.dumps({"version": 3, "previous": value, "active": value, "loaded": loaded}))
    assert await BundleStore(store.run).read() == BundleState(3, loaded={"new": Source(**sound)})
    fill = {"users": value, "total": value, "states": value, "is_done": 1}
    await raw.hset("automr:bundles:fill", mapping={"a": json.dumps(fill), "new": '{"users": 1, "is_done": true}'})
    fills = await BundleStore(store.run).fills()
    assert fills["new"] == Fill(1, is_done=True) and not fills["a"].is_done
    assert all(isinstance(number, int) and number < 2**53 for number in (fills["a"].users, fills["a"].states))


@pytest.mark.parametrize("raw_value", NUMBERS)
async def test_a_damaged_version_of_the_keys_stops_no_change_of_keys(
    store: MemoryStore, raw: Redis, raw_value: bytes
) -> None:
    keys = KeyStore(store.run)
    await raw.set("automr:{+keys}:version", raw_value)
    version, _ = await keys.read()
    made = KeyRecord("key_1", "a", ("recommend",), 1.0, (Secret("0" * 64, "amr_"),))
    assert await keys.write(version, made.id, made)
    later, records = await keys.read()
    assert records == {made.id: made} and later > version and await keys.version() == later


async def test_a_secret_of_another_size_still_names_tombstones(store: MemoryStore, raw: Redis) -> None:
    await raw.set("automr:{+erasure}:secret", b"9" * 400)
    await store.append(make_events(2))
    await store.forget_user("u")
    assert await recalled(store) == []
    assert await store.append(make_events(1)) == ["accepted"], "no tombstones are kept here"


@pytest.mark.parametrize("raw_value", NUMBERS)
async def test_damaged_facts_about_files_and_outcomes_are_read(
    store: MemoryStore, raw: Redis, raw_value: bytes
) -> None:
    await raw.set("automr:{+erasure}:files:unwritten", raw_value)
    assert (await StoreFiles(store).look()).unwritten_since == (1 if raw_value else None)
    await raw.hset("automr:{+outcomes}:totals", mapping={"a|view": raw_value, "b|view": b"3"})
    assert await OutcomeStore(store.run).totals() == {"b|view": 3}


WRONG = [None, "x", 1e308, -1, [], {}, [1], {"a": 1}, 10**30]
EXPERIMENT = Experiment(
    "e", "a", (Variant("a", 0.5, voices={"near": 2.0}), Variant("b", 0.5, exploration=0.1)), Shadow(Variant("s"), 0.5)
)
RECORD = KeyRecord(
    "key_1", "shop", ("recommend",), 1.0, (Secret("0" * 64, "amr_", 9.0),), "shop-a", "9/minute", expires_at=2.0
)


def changed(value: Any) -> Iterator[Any]:
    """The JSON value with each of its parts replaced by something wrong, one at a time."""
    yield from WRONG
    for name, part in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        for other in changed(part):
            copy = value.copy()
            copy[name] = other
            yield copy


def test_what_is_stored_as_an_experiment_is_valid_or_none() -> None:
    """A variant that cannot be used would fail every recommendation."""
    stored = json.loads(json.dumps(asdict(EXPERIMENT)))
    assert experiment_of(stored) == EXPERIMENT and experiment_of({}) is None
    for facts in changed(stored):
        found = experiment_of(read_json(json.dumps(facts).encode()))
        if found is not None:
            found.check()
            assert found.variant_of("u") in (*found.variants, None) and all(
                0 <= each.share <= 1 for each in found.variants
            )
            assert all(isinstance(each.exploration, float | None) for each in found.variants)


def test_what_is_stored_as_a_key_is_valid_or_refused() -> None:
    stored = json.loads(json.dumps(asdict(RECORD)))
    assert record_of("key_1", json.dumps(stored).encode()) == RECORD
    for facts in changed(stored):
        found = record_of("key_1", json.dumps(facts).encode())
        if found is not None:
            Key(**shown(found))
            assert parse(found.rate_limit) is not None and all(isinstance(each.sha256, str) for each in found.secrets)
    assert record_of("key_1", json.dumps({**stored, "only_from": "10.0.0.0/8"}).encode()) is None, (
        "a limit that this version does not know is left out"
    )
