"""A deletion meets everything else that is under way: nothing of the user comes back, and nobody else is harmed.

Workers, merges, answers and exports are held between what they read and what they write, so that every order of their
parts with a deletion is tried. After each step the store is compared with a plain model of what must be there.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from redis.asyncio import Redis

from service.ending import cancel_and_wait
from service.erasure.eraser import Eraser
from service.errors import UserDeleted
from service.metrics import Metrics
from service.store.client import MemoryStore
from service.store.deadletters import DeadLetter, DeadLetters
from service.store.embedded.server import EmbeddedServer
from service.store.erasure import deletions
from service.store.events import Deleted, Event, Recalled, UserStates
from service.store.feedback.merge import merge
from service.store.pages import PageStore
from service.store.shown import ShownList, ShownStore

DOOMED, OTHER, GUEST = "doomed", "other", "guest"
OLD, LATE = 1_700_000_000, 4_000_000_000  # before every deletion of this test, and after it
SPACE = "s"
numbers = st.integers(0, 9)
times = st.sampled_from([OLD, LATE])


def event(user_id: str, number: int, at: int) -> Event:
    return Event(f"{user_id}-{at}-{number}", user_id, f"i{number}", at + number, recommendation_id=f"r{number}")


class Races(RuleBasedStateMachine):
    url = ""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.store = self.run(MemoryStore.connect(self.url))
        self.store.tombstones.kept_s = 3600
        self.run(self.store.run([("FLUSHALL",)]))
        self.eraser = Eraser(self.store, Metrics(), minutes=0)
        self.shown = ShownStore(self.store.run, self.store.tombstones, kept_s=3600)
        self.pages = PageStore(self.store.run, self.store.tombstones)
        self.letters = DeadLetters(self.store.run, is_cluster=False)
        self.expected: dict[str, set[str]] = {DOOMED: set(), OTHER: set(), GUEST: set()}
        self.is_deleted, self.num_deletions = False, 0
        self.held: list[tuple[str, Recalled]] = []  # workers between reading and writing
        self.copied: list[tuple[Any, Any]] = []  # merges between reading and copying
        self.pages_left: list[AsyncIterator[Event]] = []

    def run(self, work: Any) -> Any:
        return self.runner.run(work)

    def teardown(self) -> None:
        self.run(self.eraser.stop())
        self.run(self.store.close())
        self.runner.close()

    # ---- what happens

    @rule(user=st.sampled_from([DOOMED, OTHER, GUEST]), number=numbers, at=times)
    def ingest(self, user: str, number: int, at: int) -> None:
        """Also a late retry: the events of a number and a time are the same each time."""
        sent = event(user, number, at)
        (status,) = self.run(self.store.append([sent]))
        is_refused = user == DOOMED and self.is_deleted and at == OLD
        assert (status == "deleted") == (is_refused and sent.event_id not in self.expected[user]), status
        if status == "accepted":
            self.expected[user].add(sent.event_id)

    @rule()
    def delete(self) -> None:
        receipt = self.run(self.eraser.delete(DOOMED))
        assert receipt.deleted.events == len(self.expected[DOOMED]), "the receipt has another number"
        self.expected[DOOMED], self.is_deleted = set(), True
        self.num_deletions += 1

    @precondition(lambda self: self.is_deleted)
    @rule()
    def recreate(self) -> None:
        assert self.run(self.eraser.recreate(DOOMED))
        self.is_deleted = False

    @precondition(lambda self: self.is_deleted)
    @rule(number=numbers)
    def late_retry(self, number: int) -> None:
        self.ingest(DOOMED, number, OLD)

    @rule(user=st.sampled_from([DOOMED, DOOMED, OTHER]))
    def worker_reads(self, user: str) -> None:
        self.held.append((user, self.run(self.store.recall_many([user], SPACE, 50))[0]))

    @precondition(lambda self: self.held)
    @rule(fails=st.booleans())
    def worker_writes(self, fails: bool) -> None:
        user, recalled = self.held.pop(0)
        if fails:
            self.run(self.letters.add(DeadLetter(user, "a reason", 1)))
            return
        records = {each.event.event_id: b"state" for each in recalled.events}
        self.run(self.store.save_states(SPACE, [UserStates(user, records, 50)], 50))
        self.run(self.store.count({user: b"19000" + b"x" * 16 if records else b""}))

    @rule(number=numbers)
    def answer_is_kept(self, number: int) -> None:
        """It was made at a time before every deletion."""
        made = ShownList(f"r{number}", DOOMED, (f"i{number}",), "default", "b", OLD)
        self.run(self.shown.save([made]))
        self.run(self.pages.save(DOOMED, f"r{number}", b"{}"))
        self.run(self.store.request_encoding([DOOMED], only_with_events=True))

    @rule()
    def guest_merges(self) -> None:
        """The doomed user takes the events of a guest; it must not take old ones after its deletion."""

        async def settle(users: Any) -> None:
            await self.store.run([("DEL", "automr:{guest}:outcomes")])

        old = {each for each in self.expected[GUEST] if f"-{OLD}-" in each}
        try:
            self.run(merge(self.store, GUEST, DOOMED, settle))
        except UserDeleted:
            assert self.is_deleted and old
            new = self.expected[GUEST] - old
            self.expected[DOOMED] |= {each for each in new if each in self.ids(DOOMED)}
        else:
            assert not (self.is_deleted and old)
            self.expected[DOOMED] |= self.expected[GUEST]
            self.expected[GUEST] = set()

    @rule()
    def export_begins(self) -> None:
        self.pages_left.append(self.export())

    @precondition(lambda self: self.pages_left)
    @rule()
    def export_goes_on(self) -> None:
        """Never shows an event that is not there at that moment."""
        found = self.run(anext(self.pages_left[0], None))
        if found is None:
            self.pages_left.pop(0)
        else:
            assert found.event_id in self.expected[DOOMED], "an export shows what was deleted"

    async def export(self) -> AsyncIterator[Event]:
        cursor = None
        while True:
            page, cursor = await self.store.events(DOOMED, before=cursor, limit=1)
            for each in page:
                yield each
            if cursor is None:
                return

    # ---- what must hold

    def ids(self, user: str) -> set[str]:
        return {each.event_id for each in self.run(self.store.events(user, limit=500))[0]}

    @invariant()
    def everybody_has_their_events(self) -> None:
        for user, expected in self.expected.items():
            assert self.ids(user) == expected, f"{user} has other events"

    @invariant()
    def a_deleted_user_is_nowhere(self) -> None:
        if self.num_deletions == 0 or self.expected[DOOMED] or not self.is_deleted:
            return
        keys = [key for key in self.run(self.store.run([("KEYS", "*")]))[0] if DOOMED.encode() in key]
        assert keys == [], "keys of a deleted user"
        commands: list[Any] = [("XRANGE", "automr:encode", "-", "+"), ("HGETALL", "automr:dead")]
        commands += [("ZRANGE", "automr:{+outcomes}:waiting", 0, -1), ("HGETALL", "automr:{automr:encode}:waiting")]
        commands += [("HGETALL", "automr:{automr:encode}:queued")]
        commands += [("ZRANGE", "automr:{+erasure}:users", 0, -1), ("HGETALL", "automr:{+live}:day:19000")]
        *shared, counts = self.run(self.store.run(commands))
        assert DOOMED.encode() not in repr(shared).encode(), f"a shared place names the user: {shared}"
        others = int(any(name.endswith(b"of:other") for name in self.run(self.store.run([("KEYS", "*of:*")]))[0]))
        assert sum(map(float, counts.values())) == others, "the live counts hold the deleted user"


def test_nothing_comes_back_whatever_a_deletion_meets(valkey: EmbeddedServer) -> None:
    Races.url = valkey.url
    chosen = settings(max_examples=20, stateful_step_count=25, suppress_health_check=list(HealthCheck), deadline=None)
    Races.TestCase.settings = chosen
    case = Races.TestCase()
    case.runTest()


async def append_late(store: MemoryStore) -> None:
    assert await store.append([event(DOOMED, 1, OLD)]) == ["deleted"]


async def correct_late(store: MemoryStore) -> None:
    assert await store.replace(event(DOOMED, 1, OLD)) == "deleted"


async def save_states_late(store: MemoryStore) -> None:
    await store.save_states(SPACE, [UserStates(DOOMED, {event(DOOMED, 1, OLD).event_id: b"x"}, 9)], 9)


async def count_late(store: MemoryStore) -> None:
    await store.count({DOOMED: b"19000" + b"x" * 16})


async def keep_a_list_late(store: MemoryStore) -> None:
    await ShownStore(store.run, store.tombstones, kept_s=99).save([ShownList("r", DOOMED, ("i",), "v", "b", OLD)])


async def keep_pages_late(store: MemoryStore) -> None:
    await PageStore(store.run, store.tombstones).save(DOOMED, "r", b"{}")


async def fail_late(store: MemoryStore) -> None:
    assert await DeadLetters(store.run, is_cluster=False).add(DeadLetter(DOOMED, "a reason", 1))


async def ask_for_encoding_late(store: MemoryStore) -> None:
    await store.request_encoding([DOOMED], only_with_events=True)


LATE_WRITES = [
    append_late, correct_late, save_states_late, count_late, keep_a_list_late, keep_pages_late, fail_late,
    ask_for_encoding_late,
]  # fmt: skip


@pytest.mark.parametrize("write", LATE_WRITES)
async def test_what_was_under_way_writes_nothing_after_a_deletion(store: MemoryStore, raw: Redis, write: Any) -> None:
    store.tombstones.kept_s = 3600
    await store.append([event(DOOMED, 1, OLD)])
    await store.forget_user(DOOMED)
    before = sorted(await raw.keys("*"))
    await write(store)
    totals = {b"automr:{+outcomes}:totals"}  # of answers of all users
    assert sorted({*await raw.keys("*")} - totals) == before
    assert not [key for key in before if DOOMED.encode() in key]


async def test_an_event_that_is_newer_than_the_deletion_is_a_new_beginning(store: MemoryStore, raw: Redis) -> None:
    store.tombstones.kept_s = 3600
    await store.append([event(DOOMED, 1, OLD)])
    at = (await store.forget_user(DOOMED)).at
    arrived = [event(DOOMED, 2, OLD), event(DOOMED, 0, at), event(DOOMED, 0, at + 1)]
    assert await store.append(arrived) == ["deleted", "deleted", "accepted"]
    assert not [key for key in await raw.keys("*gone*") if DOOMED.encode() in key], "a tombstone names the user"
    assert [await raw.ttl(key) for key in await raw.keys("*gone*")] == [pytest.approx(3600, abs=5)]
    assert await store.tombstones.lift(DOOMED) and not await store.tombstones.lift(DOOMED)
    assert await store.append(arrived) == ["accepted", "accepted", "duplicate"]


async def test_all_processes_use_the_same_secret(valkey: EmbeddedServer, store: MemoryStore) -> None:
    other = await MemoryStore.connect(valkey.url)
    assert await store.tombstones.key("u") == await other.tombstones.key("u") != await store.tombstones.key("v")
    await other.close()


async def test_a_guest_who_is_deleted_while_events_are_copied_leaves_none_with_the_user(store: MemoryStore) -> None:
    store.tombstones.kept_s = 3600
    await store.append([event(GUEST, number, OLD) for number in range(5)])
    await store.append([event(GUEST, 3, OLD)._replace(user_id=OTHER)])
    append, is_first = store.append, True

    async def deleted_meanwhile(events: Any, **options: Any) -> Any:
        nonlocal is_first
        if is_first and await store.forget_user(GUEST):
            is_first = False
        return await append(events, **options)

    async def settle(users: Any) -> None:
        await store.run([("DEL", "automr:{guest}:outcomes")])

    store.append = deleted_meanwhile  # type: ignore[method-assign]
    merged = await merge(store, GUEST, OTHER, settle)
    assert merged == (0, 0, True)
    assert [each.event_id for each in (await store.events(OTHER, limit=50))[0]] == [event(GUEST, 3, OLD).event_id]


async def test_a_deletion_that_takes_long_is_not_taken_up_by_another_process(
    store: MemoryStore, raw: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock goes on far beyond the time after which another process goes on with a deletion."""
    working, looking, late = (Eraser(store, Metrics(), minutes=0) for _ in range(3))
    now = [time.time()]
    monkeypatch.setattr(deletions, "time", SimpleNamespace(time=lambda: now[0]))
    monkeypatch.setattr("service.erasure.eraser.RENEW_EVERY_S", 0.01)
    forget_user, began, go_on = store.forget_user, asyncio.Event(), asyncio.Event()

    async def slowly(user_id: str) -> Deleted:
        began.set()
        await go_on.wait()
        return await forget_user(user_id)

    monkeypatch.setattr(store, "forget_user", slowly)
    await store.append([event(DOOMED, 1, OLD)])
    deleting = asyncio.create_task(working.delete(DOOMED))
    await began.wait()
    for _ in range(3):
        now[0] += deletions._GO_ON_AFTER_S + 1
        async with asyncio.timeout(10):
            while await looking.deletions.due(1):
                await asyncio.sleep(0.01)
    monkeypatch.setattr(store, "forget_user", forget_user)
    await looking.look()
    assert (await store.counts(DOOMED, SPACE)).events == 1, "two processes work on one deletion"
    await cancel_and_wait(deleting)
    now[0] += deletions._GO_ON_AFTER_S + 1
    await asyncio.gather(looking.look(), late.look())
    receipts, _ = await looking.deletions.receipts(None, 10)
    assert [each.deleted.events for each in receipts] == [1], "one of two processes goes on with a deletion"
    assert await looking.deletions.count() == 0
