"""The store's main law: whatever happened on the way, memory equals a backfill of the log. And what is accepted."""

import asyncio
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from model_store.catalogue.items import Item
from service.commands import import_file
from service.errors import SettingsError, StoreCorrupt, StoreUnavailable
from service.store.durability import Durability
from service.store.embedded.server import EmbeddedServer
from service.store.events import Appended, Event
from service.usecases.encode import UserWork, backfill
from service.usecases.timeline import MissingState
from tests.conftest import BOTH_VOCABULARIES, TITLES, write_bundle
from tests.service.commands import calls
from tests.service.real import (
    NOW,
    K,
    M,
    Service,
    busy,
    history,
    in_order,
    interaction,
    open_service,
    states_from_scratch,
)

# Batch shapes change float32 sums, hence the last bits of a float16 state (11 bits of mantissa).
ROUNDING = 2e-3
POOL = [
    interaction(number, item_id=f"i{number * 5 % 8}", timestamp=NOW + random.Random(number).randrange(9))
    for number in range(34)
]
numbers = st.integers(0, len(POOL) - 1)
batches = st.lists(numbers, min_size=1, max_size=12)
steps = st.lists(
    st.tuples(st.just("send"), batches)
    | st.tuples(st.just("send visible"), batches)
    | st.tuples(st.just("forget"), numbers)
    | st.tuples(st.just("correct"), numbers)
    | st.tuples(st.just("work"), st.none())
    | st.tuples(st.just("crash"), st.integers(1, 3))
    | st.tuples(st.just("stall"), st.none()),
    min_size=1,
    max_size=14,
)


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module", params=[1, 16], ids=["one window at a time", "batched"])
def long_lived(
    request: pytest.FixtureRequest, runner: asyncio.Runner, bundle_path: Path, valkey: EmbeddedServer
) -> Iterator[Service]:
    context = open_service(bundle_path, valkey.url, max_batch=request.param)
    yield runner.run(context.__aenter__())
    runner.run(context.__aexit__(None, None, None))


class Play:
    """Runs steps against the service and remembers which events the log must hold."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.log: dict[str, Event] = {}
        self.stalled: list[tuple[list[MissingState], int]] = []

    async def step(self, kind: str, argument: Any) -> None:
        service = self.service
        if kind.startswith("send"):
            sent = [POOL[number] for number in argument]
            await service.submit(sent, "visible" if kind == "send visible" else "durable")
            self.log |= {each["event_id"]: Event(**each) for each in sent if each["event_id"] not in self.log}
            if kind == "send visible":
                assert not (await service.timeline("u")).missing_states(), "visible, yet not all is in memory"
        elif kind == "forget":
            identity = POOL[argument]["event_id"]
            forgotten = await service.users.forget_event("u", identity)
            assert forgotten == (self.log.pop(identity, None) is not None)
        elif kind == "correct":
            facts = POOL[argument]
            event = Event(**facts | {"item_id": f"i{argument % 5}", "timestamp": NOW + argument % 7, "type": "play"})
            await service.ingest.correct(event)
            self.log[event.event_id] = event
        elif kind == "work":
            await service.worker.work(block_ms=1)
        elif kind == "crash":  # a worker took these and died
            await service.store.next_encodings("dead", count=argument, block_ms=1)
        else:  # a worker recalled, and is slow to save: see `finish`
            timeline = await service.timeline("u")
            self.stalled.append((timeline.missing_states(), timeline.num_kept))

    async def finish(self) -> None:
        for todo, num_kept in self.stalled:
            if todo:
                await self.service.worker._encode([UserWork("u", todo, num_kept, b"")])
        await self.service.store.request_encoding(["u"])  # what a slow worker does when it looks again
        await self.service.work_off()


async def snapshot(service: Service) -> list[tuple[str, bytes | None]]:
    remembered = await service.store.recall("u", service.space, 1000)
    return [(each.event.event_id, each.record) for each in remembered]


@BOTH_VOCABULARIES
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps)
def test_memory_equals_a_backfill_of_the_log(
    long_lived: Service, runner: asyncio.Runner, monkeypatch: pytest.MonkeyPatch, plan: Sequence[tuple[str, Any]]
) -> None:
    monkeypatch.setattr("service.store.client.CLAIM_AFTER_MS", 0)
    service = long_lived

    async def play() -> None:
        await service.store._client.flushall()
        played = Play(service)
        for kind, argument in plan:
            await asyncio.wait_for(played.step(kind, argument), 5)
        await asyncio.wait_for(played.finish(), 5)
        events = list(played.log.values())
        found = await snapshot(service)
        assert [name for name, _ in found] == [event.event_id for event in in_order(events)]
        expected = states_from_scratch(events, service.bundle)
        records = {name: record for name, record in found if record is not None}
        assert records.keys() == expected.keys(), "states of exactly the newest K + M"
        for name, (state, fingerprint) in expected.items():
            kept = service.bundle.codec.decode_many([records[name]])
            assert kept.is_valid.all()
            assert kept.fingerprints.tobytes() == fingerprint, f"{name} has the state of another window"
            np.testing.assert_allclose(kept.states[0], state, err_msg=name, rtol=ROUNDING, atol=ROUNDING)
            if service.engine._options.max_batch == 1:
                assert records[name] == service.bundle.codec.encode(state, fingerprint), "not the same bytes"
        memory = (await service.timeline("u")).memory()
        assert memory.events == in_order(events)[:-K][-M:]

    runner.run(play())


async def test_a_backfill_from_nothing_gives_the_same(service: Service, raw: Redis) -> None:
    for number in random.Random(1).sample(range(60), 60):
        await service.submit([interaction(number, timestamp=NOW + number // 3)], "durable")
    await service.work_off()
    before = await snapshot(service)
    await raw.delete(*[key async for key in raw.scan_iter("*:states:*")])
    assert await backfill(service.worker) == {"users": 1, "states": K + M}
    after = await snapshot(service)
    assert [name for name, _ in after] == [name for name, _ in before]
    for (name, old), (_, new) in zip(before, after, strict=True):
        assert (old is None) == (new is None)
        if old and new:
            states, _, is_valid = service.bundle.codec.decode_many([old, new])
            assert is_valid.all()
            np.testing.assert_allclose(states[0], states[1], err_msg=name, rtol=ROUNDING, atol=ROUNDING)


@BOTH_VOCABULARIES
async def test_writers_at_once_leave_nothing_stale(bundle_path: Path, valkey: EmbeddedServer, raw: Redis) -> None:
    """Whoever saves last looks again: nobody has to ask for encoding afterwards."""
    async with (
        open_service(bundle_path, valkey.url, encode_in_process=True) as one,
        open_service(bundle_path, valkey.url, encode_in_process=True) as two,
    ):
        order = random.Random(3).sample(range(45), 45)
        sends = [
            (one, two)[number % 2].submit([interaction(number)], "visible" if number % 3 else "durable")
            for number in order
        ]
        await asyncio.gather(*sends)
        async with asyncio.timeout(20):
            while await one.store.backlog():
                await asyncio.sleep(0.01)
        assert (await one.timeline("u")).missing_states() == []


async def test_a_burst_of_many_users_is_one_round(service: Service, raw: Redis) -> None:
    users = [f"u{number}" for number in range(30)]
    await service.submit([interaction(number, user) for user in users for number in range(5)], "durable")
    await raw.config_resetstat()
    batches = service.metric("batch_size_count")
    assert await service.worker.work(block_ms=1) == len(users) and not await service.store.backlog()
    assert (await calls(raw))["eval"] < 2.5 * len(users), "each user is recalled and saved, not looked at again"
    assert service.metric("batch_size_count") - batches <= 5 * len(users) / 4, "windows were not encoded together"
    for user in users:
        assert not (await service.timeline(user)).missing_states()


async def test_a_slow_worker_sees_what_came_meanwhile(service: Service) -> None:
    await service.submit(history(12), "durable")
    async with busy(service) as release:
        slow = asyncio.create_task(service.worker.reconcile(["u"]))
        while service.metric("queue_depth") < 2:
            await asyncio.sleep(0.005)
        await service.submit([interaction(99, timestamp=NOW + 5)], "durable")
        release()
        await slow
    assert (await service.timeline("u")).missing_states() == []


async def test_a_late_event_re_encodes_only_the_windows_it_falls_into(service: Service) -> None:
    await service.submit(history(20), "visible")
    before = dict(await snapshot(service))
    stale = service.metric("stale_states_total")
    await service.submit([interaction(99, timestamp=NOW + 10, item_id="i19")], "durable")
    timeline = await service.timeline("u")
    assert 1 <= len(timeline.missing_states()) <= K, "the new one, and windows over it"
    known = {event.event_id for event in timeline.memory().events}
    assert not known & {todo.event.event_id for todo in timeline.missing_states()}, "a stale state was used"
    await service.work_off()
    after = dict(await snapshot(service))
    changed = {name for name in before if before[name] != after[name]}
    assert len(changed) == K - 1 == service.metric("stale_states_total") - stale


async def test_states_are_kept_for_the_newest_only(service: Service) -> None:
    await service.submit(history(K + M + 30), "visible")
    assert (await service.store.counts("u", service.space)).states == K + M
    await service.submit([interaction(1, event_id="old", timestamp=1)], "visible")
    assert (await service.store.counts("u", service.space)).states == K + M
    assert "old" not in [name for name, record in await snapshot(service) if record]


async def test_one_bad_element_never_sinks_the_others(service: Service) -> None:
    bad: list[Any] = [None, 7, {}, [], "x", interaction(1, item_id="nobody knows"), interaction(2, timestamp=-1)]
    elements = [interaction(3), *bad, interaction(4), interaction(3)]
    results = await service.submit(elements, "visible")
    assert [each.status for each in results] == ["accepted", *["rejected"] * len(bad), "accepted", "duplicate"]
    assert all(each.reason and each.event_id is None for each in results if each.status == "rejected")
    assert "catalogue" in str(results[6].reason) and "timestamp" in str(results[7].reason)
    assert [name for name, _ in await snapshot(service)] == ["e003", "e004"]


@pytest.mark.parametrize("wait", ["durable", "visible"])
async def test_a_user_with_a_damaged_key_costs_the_others_of_a_batch_nothing(
    wait: Literal["durable", "visible"], service: Service, raw: Redis
) -> None:
    await raw.set("automr:{b}:order", "not a sorted set")
    outcomes = await service.submit([interaction(number, user) for number, user in enumerate("abca")], wait)
    assert [each.status == "rejected" for each in outcomes] == [False, True, False, False]
    assert "damaged" in (outcomes[1].reason or "")
    assert [(await service.store.counts(user, service.space)).events for user in "ac"] == [2, 1]
    with pytest.raises(StoreCorrupt):
        await service.submit([interaction(7, "b")], wait)


async def test_a_large_write_beside_recommendations_is_stored_in_pieces(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reads run between the pieces; the outcomes are those of one piece."""
    sizes, store = [], service.ingest.store.append

    async def append(events: Sequence[Event], *, durability: Durability | None = None) -> list[Appended]:
        sizes.append(len(events))
        return await store(events, durability=durability)

    monkeypatch.setattr(service.ingest.store, "append", append)
    sent = [Event(f"e{number}", f"u{number % 9}", f"i{number % 8}", NOW + number) for number in range(120)]
    sent[60] = sent[10]
    assert {outcome.status for outcome in await service.ingest.submit(sent[:20], "durable")} == {"accepted"}
    with service.engine.admission.admitted(time.monotonic() + 60):
        outcomes = await service.ingest.submit([*sent, "refused"], "durable")
    assert sizes[0] == 20 and max(sizes[1:]) <= 50, f"pieces of {sizes[1:]} events"
    expected = ["duplicate" if place < 20 or place == 60 else "accepted" for place in range(120)]
    assert [outcome.status for outcome in outcomes] == [*expected, "rejected"]


async def test_an_event_without_an_id_is_known_by_its_facts(service: Service) -> None:
    facts = {"user_id": "u", "item_id": "i1", "timestamp": NOW}
    first, again, other = [
        (await service.submit([each], "durable"))[0] for each in (facts, facts, facts | {"type": "buy"})
    ]
    assert (first.status, again.status, other.status) == ("accepted", "duplicate", "accepted")
    assert first.event_id == again.event_id != other.event_id


async def test_a_retry_of_what_was_encoded_costs_nothing(service: Service) -> None:
    await service.submit(history(10), "visible")
    assert await service.worker.reconcile_all(["u"]) == 0
    again = await service.submit(history(10), "visible")
    assert {each.status for each in again} == {"duplicate"}
    assert await service.worker.reconcile_all(["u"]) == 0


@BOTH_VOCABULARIES
async def test_a_renamed_item_changes_the_states_of_its_windows_only(service: Service) -> None:
    await service.submit([interaction(number, item_id=f"i{number % 12}") for number in range(12)], "visible")
    await service.items.put(Item("i4", "Quite another title"))
    timeline = await service.timeline("u")
    assert [todo.event.event_id for todo in timeline.missing_states()] == ["e004", "e005", "e006"]
    assert timeline.is_incomplete
    assert await service.worker.reconcile_all(["u"]) == K
    assert not (await service.timeline("u")).missing_states()


async def test_a_new_space_leaves_the_old_one_intact(service: Service, tmp_path: Path, valkey: EmbeddedServer) -> None:
    await service.submit(history(15), "visible")
    before = await snapshot(service)
    write_bundle(tmp_path / "other", titles=TITLES, architecture="qwen2")
    async with open_service(tmp_path / "other", valkey.url) as other:
        assert other.space != service.space
        assert (await other.timeline("u")).memory().events == []
        await backfill(other.worker)
        assert len((await other.timeline("u")).memory().events) == 15 - K
    assert await snapshot(service) == before


async def test_a_store_that_is_away_promises_nothing(bundle_path: Path, tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path / "store") as server:
        async with open_service(bundle_path, server.url, store_timeout_s=0.3) as service:
            await service.submit([interaction(1)], "durable")
            server.stop()
            with pytest.raises(StoreUnavailable):
                await service.submit([interaction(2)], "durable")
            server.start()
        async with open_service(bundle_path, server.url) as service:
            retried = await service.submit([interaction(1), interaction(2)], "visible")
            assert [each.status for each in retried] == ["duplicate", "accepted"]


async def test_a_file_is_imported_and_may_be_imported_again(service: Service, tmp_path: Path) -> None:
    import json

    file = tmp_path / "events.jsonl"
    file.write_text("\n".join(json.dumps(each) for each in history(30)) + "\n\n")
    assert await import_file(service.ingest.submit, file) == 30
    assert await import_file(service.ingest.submit, file) == 30
    assert (await service.store.counts("u", service.space)).events == 30
    for line, word in (("{", "not JSON"), ('{"user_id": "u"}', "item_id"), (b"\xff\n".decode("latin-1"), "not JSON")):
        file.write_text(line, encoding="latin-1")
        with pytest.raises(SettingsError, match=f"events.jsonl:1: .*{word}"):
            await import_file(service.ingest.submit, file)


async def test_an_export_and_a_table_are_imported(service: Service, tmp_path: Path) -> None:
    """The same events as an export, as CSV, and as CSV of a spreadsheet: each of them is stored once."""
    import gzip
    import json
    from datetime import UTC, datetime

    events = [{name: each[name] for name in ("user_id", "item_id", "timestamp")} for each in history(3)]
    times = [datetime.fromtimestamp(each["timestamp"], UTC) for each in events]
    table = "".join(f"{each['user_id']},{each['item_id']},{each['timestamp']},\n" for each in events)
    sheet = "".join(
        f'NULL; {time:%Y-%m-%dT%H:%M:%S+00:00};"{each["item_id"]}";{each["user_id"]};x\r\n'
        for each, time in zip(events, times, strict=True)
    )
    files = {
        "export.jsonl": "".join(
            json.dumps(each | {"title": "Title", "type": "view", "value": None}) + "\n" for each in events
        ).encode(),
        "table.csv.gz": gzip.compress(f"user_id,item_id,timestamp,value\n{table}".encode()),
        "sheet.csv": f"Rating;Timestamp;itemId;User_ID;note\r\n{sheet}".encode("utf-8-sig"),
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        assert await import_file(service.ingest.submit, tmp_path / name) == 3
        assert (await service.store.counts("u", service.space)).events == 3, name


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"u,i1,soon", ":2: timestamp"),
        (b"u,i1", ":2: 2 fields instead of 3"),
        (b'u,"i1,1500000000', ":2: unexpected end of data"),
        (b",i1,1500000000", ":2: user_id"),
        (b"\xff,i1,1500000000", "not UTF-8"),
    ],
)
async def test_a_wrong_line_of_a_table_is_named(service: Service, tmp_path: Path, line: bytes, message: str) -> None:
    file = tmp_path / "events.csv"
    file.write_bytes(b"user_id,item_id,timestamp\n" + line + b"\n")
    with pytest.raises(SettingsError, match=message):
        await import_file(service.ingest.submit, file)


async def test_lines_that_differ_from_stored_events_are_reported_and_no_error(service: Service, tmp_path: Path) -> None:
    import json

    lines = [{**each, "event_id": f"x{number}", "value": 1.0} for number, each in enumerate(history(4))]
    await service.submit([{**lines[1], "value": 2.0}], "durable")
    await service.submit(history(1, "gone"), "durable")
    await service.users.forget("gone")
    file = tmp_path / "events.jsonl"
    file.write_text("\n".join(map(json.dumps, [*lines, *history(1, "gone")])))
    assert await import_file(service.ingest.submit, file) == 5
    written = (tmp_path / "events.jsonl.rejected.jsonl").read_text().splitlines()
    assert [(found := json.loads(each))["line"] for each in written] == [2, 5] and "deleted" in found["reason"]
    assert "another event is stored under this id" in json.loads(written[0])["reason"]
    assert json.loads(written[0])["interaction"] == lines[1]


async def test_refused_lines_keep_no_other_line_back_and_are_all_reported(service: Service, tmp_path: Path) -> None:
    import json

    lines = [json.dumps(each) for each in history(40)]
    lines[3::4] = ["{", '{"user_id": "u"}', json.dumps(interaction(1, item_id="nothing")), "[]", *lines[19::4]]
    for number in range(60):
        lines.append(json.dumps(interaction(100 + number, timestamp="soon")))
    (tmp_path / "in").mkdir()
    file = tmp_path / "in/events.jsonl"
    file.write_text("\n".join(lines))
    for path in (None, tmp_path / "elsewhere.jsonl"):
        with pytest.raises(SettingsError) as caught:
            await import_file(service.ingest.submit, file, path)
        assert (await service.store.counts("u", service.space)).events == 36, "a good line was not stored"
        told = caught.value.problems
        assert len(told) == 21 and "64 of 100 lines were refused" in told[-1], told
        assert "60 × timestamp" in told[-1] and told[0].startswith(f"{file}:4: not JSON")
        written = (path or file.with_name("events.jsonl.rejected.jsonl")).read_text()
        found = [json.loads(each) for each in written.splitlines()]
        assert len(found) == 64 and {"line", "reason", "interaction"} == found[0].keys()
        assert [each["line"] for each in found[:5]] == [4, 8, 12, 16, 41]
        assert found[-1]["interaction"] == json.loads(lines[-1]), "the line is not there as it was"


async def test_entries_are_renewed_while_a_round_lasts(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """A round may take longer than the time after which other workers claim entries."""
    monkeypatch.setattr("service.store.client.CLAIM_AFTER_MS", 200)
    monkeypatch.setattr("service.usecases.encode._RENEW_EVERY_S", 0.05)
    await service.submit(history(5), "durable")
    async with busy(service) as release:
        round_ = asyncio.create_task(service.worker.work(block_ms=1))
        await asyncio.sleep(0.6)
        assert not await service.store.next_encodings("another worker", count=9, block_ms=1), (
            "taken from a living worker"
        )
        release()
        assert await round_ == 1
    assert not await service.store.backlog()
