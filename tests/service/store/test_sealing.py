"""Sealed records: the store's files hold nothing that can be read without the keys, and nothing else changes."""

import asyncio
import base64
import json
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.asyncio import Redis

from model_store.event_types import EventTypes, TypeRule, ValueRule
from service.doctor.store import examine_store
from service.errors import RecordsSealed, SettingsError, StartupError, StoreUnavailable
from service.event_types.table import EventTable
from service.resources import open_store
from service.settings import Settings
from service.store.client import MemoryStore
from service.store.embedded.server import EmbeddedServer
from service.store.events import SEEN, Event, UserStates, decode_event, encode_event
from service.store.keys import SEALED_WITH, facts_key
from service.store.sealing.master import MasterKeys
from service.store.sealing.records import PLAIN, Sealed, is_sealed, label
from service.store.sealing.walk import seal_all, seal_user
from tests.service.commands import calls
from tests.service.real import NOW, K, M, Service, ask, history, interaction, open_app, open_service, settings_for

KEYS = {name: f"{name}={base64.b64encode(bytes([number]) * 32).decode()}" for number, name in enumerate(("k1", "k2"))}
TYPES = EventTypes()
values = st.none() | st.floats(-10, 10)


def event(number: int = 1, **fields: Any) -> Event:
    facts = {"event_id": f"e{number}", "user_id": "u", "item_id": f"i{number}", "timestamp": NOW + number}
    return Event(**{**facts, **fields})


def sealed(user_id: str = "u", data_key: bytes = bytes(32)) -> Sealed:
    return Sealed(user_id, data_key, b"k1:wrapped")


@asynccontextmanager
async def opened(url: str, keys: str = "") -> AsyncIterator[MemoryStore]:
    async with open_store(Settings.from_env({}, store=url, encryption_keys=keys)) as store:
        yield store


def _entries(seen: bytes) -> list[bytes]:
    return [seen[start : start + SEEN.itemsize] for start in range(0, len(seen), SEEN.itemsize)]


# ---- records


@given(values, st.sampled_from(["rating", "view", "dislike", "unheard of"]))
def test_a_sealed_event_opens_as_it_was_and_is_sorted_by_the_same_rule(value: float | None, kind: str) -> None:
    own, whole = sealed(), event(type=kind, value=value, query="sad songs", context={"shop": "north"})
    body = own.body(whole, TYPES)
    (opened_body,) = own.open_bodies([b"e1"], [body])
    assert opened_body == encode_event(whole) and decode_event("u", b"e1", opened_body) == whole
    head = json.loads(body)
    assert head.keys() <= {"sealed", "item", "type", "value"} and head["type"] == kind
    assert TYPES.rule(kind, head.get("value")) is TYPES.rule(kind, value)
    assert own.body(whole, TYPES) == body, "equal events must have equal bytes"


@given(st.floats(-1e6, 1e6), st.lists(st.tuples(st.floats(-9, 9), st.floats(-9, 9)), min_size=1, max_size=4))
def test_a_label_holds_the_rule_of_its_value_in_any_table(value: float, ranges: list[tuple[float, float]]) -> None:
    rules = [ValueRule(at_least=min(pair), at_most=max(pair), weight=0.1 * n) for n, pair in enumerate(ranges)]
    types = EventTypes(types={"rating": TypeRule(by_value=rules)})
    found = label(event(type="rating", value=value), types)
    assert found is not None and types.rule("rating", found) is types.rule("rating", value)
    steps = {end for pair in ranges for end in pair}
    assert found == value or found in steps or abs(found) <= 10, "a label must not follow the value"


def test_what_belongs_elsewhere_or_was_changed_does_not_open() -> None:
    own = sealed()
    body, state = own.body(event(), TYPES), own.state("e1", b"Zm-record")
    assert own.open_states([b"e1"], [state]) == [b"Zm-record"]
    assert own.open_states([b"e2"], [state]) == [None], "the state of another event"
    assert own.open_bodies([b"e2"], [body]) == [None], "the body of another event"
    assert sealed("v").open_bodies([b"e1"], [body]) == [None], "the event of another user"
    assert sealed("u", b"\1" * 32).open_bodies([b"e1"], [body]) == [None], "another data key"
    for place in range(len(body.split(b'"')[3])):
        changed = bytearray(body)
        changed[11 + place] ^= 1
        assert own.open_bodies([b"e1"], [bytes(changed)]) == [None], f"byte {place} may be changed"
    assert own.open_bodies([b"e1", b"e2"], [encode_event(event()), None]) == [encode_event(event()), None]


@pytest.mark.parametrize("line", ["", "k1", "k1=abc", "k 1=" + KEYS["k1"][3:], "=" + KEYS["k1"][3:]])
def test_wrong_master_keys_are_named_without_their_text(line: str) -> None:
    with pytest.raises(ValueError, match="key 2 is not ID=KEY with 32 bytes") as caught:
        MasterKeys.read([KEYS["k2"], line])
    assert not line or line not in str(caught.value)


def test_master_keys_come_from_a_file_or_from_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# newest first\n{KEYS['k2']}\n{KEYS['k1']}\n")
    assert Settings.from_env({}, encryption_keys_file=file).plain_encryption_keys == (KEYS["k2"], KEYS["k1"])
    both = Settings.from_env({"AUTOMR_ENCRYPTION_KEYS": KEYS["k1"]}, encryption_keys_file=file)
    with pytest.raises(SettingsError, match="use one of them"):
        assert both.plain_encryption_keys
    assert KEYS["k1"][3:] not in repr(both)


# ---- the store


async def test_all_that_can_be_done_with_events_gives_the_same_sealed(valkey: EmbeddedServer, raw: Redis) -> None:
    found = []
    for keys in ("", KEYS["k1"]):
        await raw.flushall()
        async with opened(valkey.url, keys) as store:
            first = [event(n, value=n % 6, type="rating") for n in range(8)] + [event(9, user_id="v", query="q")]
            steps: list[Any] = [await store.append(first), await store.append([*first[:2], event(3, value=9.0)])]
            steps += [await store.replace(event(2, item_id="i5")), await store.replace(event(2, item_id="i5"))]
            steps += [await store.replace(event(20)), await store.forget_event("u", "e4")]
            steps += [await store.forget_event("u", "e4"), await store.events("u", limit=3)]
            recalled = await store.recall_and_seen("u", "space", 10)
            saved = [UserStates("u", {"e2": b"Zm-two", "e5": b"Zm-five"}, 10)]
            steps += [recalled, await store.save_states("space", saved, 10), await store.recall("u", "space", 10)]
            found.append(steps)
            bodies: list[Any] = await raw.hvals("automr:{u}:events")
            assert all(is_sealed(body) == bool(keys) for body in bodies)
    assert found[0] == found[1]


async def test_a_user_with_plain_events_is_read_and_then_sealed(valkey: EmbeddedServer, raw: Redis) -> None:
    async with opened(valkey.url) as plain:
        await plain.append([event(n, type="rating", value=n % 6) for n in range(300)])
        await plain.save_states("space", [UserStates("u", {"e299": b"Zm-record"}, 10)], 10)
        before = await plain.recall_and_seen("u", "space", 400)
        async with opened(valkey.url, KEYS["k1"]) as store:
            assert await store.recall_and_seen("u", "space", 400) == before
            assert await store.append([event(5, type="rating", value=5)]) == ["duplicate"]
            assert await seal_all(store) == {"users": 1, "events": 300, "states": 1, "keys": 0}
            assert await seal_all(store) == {"users": 1, "events": 0, "states": 0, "keys": 0}
            after = await store.recall_and_seen("u", "space", 400)
            assert after.events == before.events and after.against == before.against
            assert Counter(_entries(after.seen)) == Counter(_entries(before.seen))
        with pytest.raises(RecordsSealed, match="no AUTOMR_ENCRYPTION_KEYS"):
            await plain.append([event(400)])
    bodies: list[Any] = await raw.hvals("automr:{u}:events")
    states: list[Any] = await raw.hvals("automr:{u}:states:space")
    assert all(map(is_sealed, bodies)) and states[0].startswith(b"Zs")


async def test_a_walk_that_is_killed_after_any_step_is_repeated(
    valkey: EmbeddedServer, raw: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At every moment all records can be read, and a kill costs no more than another walk."""
    for last in range(1, 60):
        await raw.flushall()
        async with opened(valkey.url) as plain:
            await plain.append([event(n, type="rating", value=n % 6) for n in range(260)])
            await plain.save_states("space", [UserStates("u", {"e259": b"Zm-record"}, 10)], 10)
            before = await plain.recall_and_seen("u", "space", 300)
        async with opened(valkey.url, f"{KEYS['k2']},{KEYS['k1']}") as store:
            is_done, died = False, False
            with monkeypatch.context() as patch:
                patch.setattr(store, "run", dying(store.run, last))
                patch.setattr(store.sealing, "_run", store.run)
                try:
                    await seal_all(store)
                    is_done = True
                except StoreUnavailable:
                    died = True
        async with opened(valkey.url, f"{KEYS['k2']},{KEYS['k1']}") as other:
            assert (await other.recall_and_seen("u", "space", 300)).events == before.events, f"killed at {last}"
            assert await other.append([event(7, type="rating", value=1)]) == ["duplicate"]
            await seal_all(other)
            after = await other.recall_and_seen("u", "space", 300)
            assert after.events == before.events and after.against == before.against
        assert all(map(is_sealed, list[Any](await raw.hvals("automr:{u}:events"))))
        assert is_done != died
        if is_done:
            return
    raise AssertionError("a walk over one user takes very many commands")


async def test_a_user_of_many_events_is_sealed_in_small_steps_beside_readers(
    valkey: EmbeddedServer, raw: Redis
) -> None:
    async with opened(valkey.url) as plain:
        for start in range(0, 3000, 1000):
            await plain.append([event(n, type="rating", value=n % 6) for n in range(start, start + 1000)])
    async with opened(valkey.url, KEYS["k1"]) as store, opened(valkey.url, KEYS["k1"]) as reader:
        before = await reader.recall_and_seen("u", "space", 50)
        walk = asyncio.create_task(seal_user(store, "u"))
        await raw.config_resetstat()
        num_reads = 0
        while not walk.done():
            assert await reader.recall_and_seen("u", "space", 50) == before, "a reader meets half of a change"
            num_reads += 1
        used = await calls(raw)
        assert (await walk).events == 3000
        assert num_reads > 3 and "rename" not in used, "the events are sorted anew though none has another meaning"
        assert used["hscan"] >= 3000 / 400, "many events are read in one command"
        assert await reader.recall_and_seen("u", "space", 50) == before
        assert (await reader.forget_user("u")).shredded == 1


def dying(run: Callable[[Any], Awaitable[list[Any]]], last: int) -> Callable[[Any], Awaitable[list[Any]]]:
    """The process is killed after so many round trips."""
    left = last

    async def limited(commands: Any) -> list[Any]:
        nonlocal left
        left -= 1
        if left < 0:
            raise StoreUnavailable("killed")
        return await run(commands)

    return limited


async def test_keys_are_rotated_with_an_overlap(valkey: EmbeddedServer, raw: Redis) -> None:
    async with opened(valkey.url, KEYS["k1"]) as old, opened(valkey.url, f"{KEYS['k2']},{KEYS['k1']}") as both:
        await old.append([event(1), event(1, user_id="v")])
        assert len(await both.recall("u", "space", 9)) == 1
        await both.append([event(2), event(2, user_id="w")])
        await old.append([event(3)])
        with pytest.raises(RecordsSealed, match="master key"):
            await old.recall("w", "space", 9)
        assert (await seal_all(both))["keys"] == 2
        assert await raw.hkeys(SEALED_WITH) == [b"k2"]
    async with opened(valkey.url, KEYS["k2"]) as new:
        assert [each.event.event_id for each in await new.recall("u", "space", 9)] == ["e1", "e2", "e3"]
        assert await new.append([event(3), event(4)]) == ["duplicate", "accepted"]
        assert await new.sealing.problem() is None


async def test_a_deleted_key_never_comes_back(valkey: EmbeddedServer, raw: Redis) -> None:
    """A server that remembers the key of a user writes after another one has deleted the user."""
    async with opened(valkey.url, KEYS["k1"]) as one, opened(valkey.url, KEYS["k1"]) as other:
        await one.append([event(1)])
        await other.recall("u", "space", 9)
        before, body = await raw.hget(facts_key("u"), "key"), await raw.hget("automr:{u}:events", "e1")
        deleted = await other.forget_user("u")
        assert deleted.shredded == 1 and (await other.forget_user("u")).shredded == 0
        late = event(2, timestamp=2**40)  # not refused by the tombstone
        assert await one.append([late]) == ["accepted"]
        assert await one.replace(event(3, timestamp=2**40)) == "created"
        assert await raw.hget(facts_key("u"), "key") not in (None, before)
        events, _ = await other.events("u", limit=9)
        assert {each.event_id for each in events} == {"e2", "e3"}
        await raw.hset("automr:{u}:events", "e1", body)  # from an old copy
        await raw.zadd("automr:{u}:order", {f"{'0' * 16}:e1": NOW})
        assert len(await one.recall("u", "space", 9)) == 2, "an event of before the deletion can be read"


async def test_values_of_events_follow_a_new_table(valkey: EmbeddedServer, raw: Redis) -> None:
    async with opened(valkey.url, KEYS["k1"]) as store:
        await store.append([event(n, type="rating", value=n) for n in range(1, 6)])
        rule = TypeRule(by_value=[ValueRule(at_most=3.5, weight=-1.0)])
        table = EventTable(store)
        await table.put(EventTypes(types={"rating": rule}))
        await table._count_all()
        recalled = await store.recall_and_seen("u", "space", 9)
        assert [each.event.value for each in recalled.events] == [4, 5]
        assert [each.value for each in recalled.against] == [3, 2, 1]


async def test_a_lost_or_damaged_key_costs_the_events_of_its_user_only(valkey: EmbeddedServer, raw: Redis) -> None:
    async with opened(valkey.url, KEYS["k1"]) as store:
        await store.append([event(1), event(1, user_id="v")])
        wrapped: Any = await raw.hget(facts_key("u"), "key")
        await raw.hset(facts_key("u"), "key", wrapped[:-1] + b"x")
        with pytest.raises(RecordsSealed, match="does not open"):
            await store.recall("u", "space", 9)
        await raw.hset(facts_key("u"), "key", await raw.hget(facts_key("v"), "key"))
        with pytest.raises(RecordsSealed, match="does not open"):
            await store.recall("u", "space", 9)
        assert len(await store.recall("v", "space", 9)) == 1


# ---- the service


async def did_everything(service: Service) -> list[Any]:
    """What users see of a history that is added, recommended from, corrected, merged and exported."""
    events = [{**each, "value": 4.0, "type": "rating", "query": "sad songs"} for each in history(K + M + 4)]
    seen: list[Any] = [await service.submit(events[:10], "visible"), await service.submit(events, "visible")]
    seen.append(await service.submit([interaction(50, "guest")], "visible"))
    seen.append(await service.users.merge("u", "guest"))
    seen.append(await service.store.forget_event("u", "e003"))
    await service.work_off()
    answer = await ask(service, user_id="u", deadline_ms=20_000)
    seen += [[(item.item_id, item.score, item.source) for item in answer.items], answer.memory, answer.fallback]
    page = await service.users.get("u", None, 500)
    seen += [page, [each async for each in service.users.export("u")], await service.store.users().__anext__()]
    memory = (await service.timeline("u")).memory()
    seen.append(memory.events)
    for space in [service.space]:
        await service.store.run([("DEL", f"automr:{{u}}:states:{space}")])
    await service.worker.reconcile(["u"])
    again = (await service.timeline("u")).memory()
    assert np.array_equal(again.states, memory.states), "a backfill gives another memory"
    return [*seen, memory.states.tobytes(), (await service.users.forget("u")).deleted.events]


async def test_answers_memory_export_merge_and_backfill_are_the_same_sealed(
    bundle_path: Path, valkey: EmbeddedServer, raw: Redis
) -> None:
    found = []
    for keys in ("", KEYS["k1"]):
        await raw.flushall()
        async with open_service(bundle_path, valkey.url, encryption_keys=keys) as service:
            found.append(await did_everything(service))
            assert service.metric("fallback_total", reason="memory_unavailable") == 0
    for number, (plain, hidden) in enumerate(zip(*found, strict=True)):
        assert plain == hidden, f"step {number} differs: {plain} is not {hidden}"


SECRETS = ("very-private-query", "north-entrance", "4.4375", "session-of-somebody")


@pytest.mark.parametrize("keys", ["", KEYS["k1"]])
async def test_no_file_of_the_store_has_a_word_or_value_of_an_event(
    keys: str, bundle_path: Path, tmp_path: Path
) -> None:
    """Without the setting they are there: the search finds what is to be found."""
    with EmbeddedServer(tmp_path / "store") as server:
        async with open_service(bundle_path, server.url, encryption_keys=keys, shown_hours=0) as service:
            words = {"query": SECRETS[0], "context": {"door": SECRETS[1]}, "value": 4.4375, "session_id": SECRETS[3]}
            events = [{**each, **words, "type": "rating"} for each in history(K + 5)]
            outcomes = await service.submit(events, "visible")
            assert {each.status for each in outcomes} == {"accepted"}
            await ask(service, user_id="u")
            states = await service.store.run([("HVALS", f"automr:{{u}}:states:{service.space}")])
            await service.store.run([("BGREWRITEAOF",)])
    files = b"".join(file.read_bytes() for file in (tmp_path / "store").rglob("*") if file.is_file())
    assert b"automr:{u}:events" in files, "nothing was written"
    for secret in SECRETS:
        assert (secret.encode() in files) == (not keys), f"{secret} is {'' if keys else 'not '}in the files"
    assert any(state[:2] == b"Zm" for state in states[0]) == (not keys)


async def test_a_missing_or_wrong_master_key_is_named_everywhere_and_loses_nothing(
    bundle_path: Path, valkey: EmbeddedServer, raw: Redis
) -> None:
    async with open_app(bundle_path, valkey.url, encryption_keys=KEYS["k1"]) as (_, client):
        body = {"interactions": history(K + 2), "wait": "visible"}
        assert (await client.post("/interactions", json=body)).status_code == 200
        assert (await client.get("/readyz")).status_code == 200
    wrong = "k1=" + KEYS["k2"][3:]
    stored = [key for key in await raw.keys("automr:{u}:*") if await raw.type(key) == b"hash"]
    before = {key: await raw.hgetall(key) for key in stored}
    for keys, reason in (("", "is not set"), (KEYS["k2"], "lacks"), (wrong, "is not the one")):
        async with open_app(bundle_path, valkey.url, encryption_keys=keys) as (app, client):
            ready = await client.get("/readyz")
            assert ready.status_code == 503 and reason in ready.json()["detail"], ready.text
            answer = await client.post("/recommend", json={"user_id": "u"})
            assert answer.status_code == 200 and answer.json()["fallback"] == "memory_unavailable"
            for method, path, sent in (
                ("GET", "/users/u", None),
                ("GET", "/users/u/export", None),
                ("POST", "/interactions", {"interactions": [interaction(70)]}),
                ("DELETE", "/users/u/interactions/e001", None),
            ):
                refused = await client.request(method, path, json=sent)
                assert refused.status_code == 503, f"{method} {path}: {refused.text}"
                assert refused.json()["title"] == "Records are sealed" and "Retry-After" in refused.headers
            await app.state.resources.ingest.worker.settle(["u"])
        settings = settings_for(bundle_path, valkey.url, encryption_keys=keys)
        async with opened(valkey.url, keys) as store:
            with pytest.raises(StartupError, match=reason):
                await examine_store(settings, store)
    assert {key: await raw.hgetall(key) for key in stored} == before
    async with open_app(bundle_path, valkey.url, encryption_keys=KEYS["k1"]) as (_, client):
        assert (await client.get("/readyz")).status_code == 200
        assert len((await client.get("/users/u")).json()["recent"]) == K + 2
        receipt = (await client.delete("/users/u")).json()
        assert receipt["shredded"] is True
        assert (await client.get("/deletions")).json()["deletions"][0]["shredded"] is True


async def test_plain_records_cost_no_command(valkey: EmbeddedServer, raw: Redis) -> None:
    async with opened(valkey.url) as store:
        assert await store.sealing.for_writing(["u"]) == {"u": PLAIN}
        await store.append([event(1)])
        await raw.config_resetstat()
        await store.recall("u", "space", 9)
        await seal_user(store, "u")
        stats = await raw.info("commandstats")
    assert "cmdstat_hget" not in stats or stats["cmdstat_hget"]["calls"] <= 1
