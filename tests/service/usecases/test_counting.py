"""Live counts are those of the events in the log, whoever counted them, in whatever order, and whatever went wrong."""

import asyncio
from collections.abc import Iterator, Sequence
from copy import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from model_store.catalogue.items import Item
from model_store.event_types import EventTypes, TypeRule
from service.errors import StoreUnavailable
from service.store.client import MemoryStore
from service.store.counts import KEPT_DAYS, PARTS, SECONDS_PER_DAY, cell
from service.store.embedded.server import EmbeddedServer
from service.store.events import Event, item_digest
from service.usecases.counting import NUM_COUNTED, SPAN, record_of
from service.usecases.encode import backfill
from tests.conftest import TITLES, small_voices, write_bundle
from tests.service.real import NOW, Service, in_order, interaction, open_service

USERS = ("ann", "bob")
ITEMS = [f"i{row}" for row in range(4)] + ["new0", "new1"]
DAY = SECONDS_PER_DAY
TODAY = NOW // DAY
KINDS = ("interaction", "view", "purchase", "skip", "cart", "impression", "interaction")
POOL = [
    interaction(
        number,
        USERS[number % 2],
        item_id=ITEMS[number * 7 % 6],
        timestamp=NOW + number * 5 % 4 * DAY,
        type=KINDS[number % 7],
    )
    for number in range(30)
]
numbers = st.integers(0, len(POOL) - 1)
steps = st.lists(
    st.tuples(st.just("send"), st.lists(numbers, min_size=1, max_size=12))
    | st.tuples(st.just("send visible"), st.lists(numbers, min_size=1, max_size=12))
    | st.tuples(st.just("forget"), numbers)
    | st.tuples(st.just("forget user"), st.integers(0, 1))
    | st.tuples(st.sampled_from(["work", "die before", "die after", "stall"]), st.none()),
    min_size=1,
    max_size=14,
)
Counted = dict[tuple[int, frozenset[str]], float]  # (day, one item or two) -> sum of the weights of users


@pytest.fixture(scope="module")
def bundle_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("counting") / "tiny"
    write_bundle(path, vocabulary="items", voices=small_voices(len(TITLES)))
    return path


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def replicas(runner: asyncio.Runner, bundle_path: Path, valkey: EmbeddedServer) -> Iterator[list[Service]]:
    contexts = [open_service(bundle_path, valkey.url, live_half_life_days=30, tombstone_days=0) for _ in range(2)]
    yield [runner.run(context.__aenter__()) for context in contexts]
    for context in contexts:
        runner.run(context.__aexit__(None, None, None))


@pytest.fixture
async def counting(bundle_path: Path, valkey: EmbeddedServer, raw: Redis) -> Any:
    async with open_service(bundle_path, valkey.url, live_half_life_days=30) as opened:
        yield opened


async def stored_counts(store: MemoryStore) -> Counted:
    names = {int.from_bytes(item_digest(item), "little"): item for item in ITEMS}
    found: Counted = {}
    for day in await store.counted_days():
        pairs, counts = await store.counts_of(day)
        for pair, count in zip(pairs.tolist(), counts.tolist(), strict=True):
            found[day, frozenset(names[code] for code in pair)] = count
    return found


def counts_of_log(events: Sequence[Event]) -> Counted:
    """The definition, stated once more: of each user the newest events of interest, each day once, by the weights."""
    found: Counted = {}
    weight_of = {kind: max(EventTypes().rule(kind, None).weight, 0) for kind in KINDS}
    for user in {event.user_id for event in events}:
        own = in_order([event for event in events if event.user_id == user and weight_of[event.type]])[-NUM_COUNTED:]
        cells: Counted = {}
        for place, event in enumerate(own):
            weights = [((event.timestamp // DAY, frozenset([event.item_id])), weight_of[event.type])]
            for other in own[place + 1 : place + 1 + SPAN]:
                pair = frozenset([event.item_id, other.item_id])
                if len(pair) == 2 and any(item.startswith("new") for item in pair):
                    both = (weight_of[event.type] * weight_of[other.type]) ** 0.5
                    weights.append(((other.timestamp // DAY, pair), round(PARTS * both) / PARTS))
            for name, weight in weights:
                cells[name] = max(cells.get(name, 0.0), weight)
        for name, weight in cells.items():
            found[name] = found.get(name, 0.0) + weight
    return found


class Died(Exception):
    pass


class Play:
    """Runs steps, alternating between two replicas, and remembers which events the log must hold."""

    def __init__(self, replicas: Sequence[Service]) -> None:
        self.replicas, self.turn = replicas, 0
        self.log: dict[tuple[str, str], Event] = {}
        self.go_on = asyncio.Event()
        self.stalled: list[asyncio.Task[int]] = []

    async def step(self, kind: str, argument: Any) -> None:
        self.turn += 1
        service = self.replicas[self.turn % 2]
        if kind.startswith("send"):
            sent = [POOL[number] for number in argument]
            await service.submit(sent, "visible" if kind == "send visible" else "durable")
            for each in sent:
                self.log.setdefault((each["user_id"], each["event_id"]), Event(**each))
        elif kind == "forget":
            user, identity = POOL[argument]["user_id"], POOL[argument]["event_id"]
            await service.users.forget_event(user, identity)
            self.log.pop((user, identity), None)
        elif kind == "forget user":
            await service.users.forget(USERS[argument])
            self.log = {key: event for key, event in self.log.items() if event.user_id != USERS[argument]}
        elif kind == "work":
            await service.worker.work(block_ms=1)
        elif kind == "stall":
            await self.stall(service)
        else:
            await self.die(service, before=kind == "die before")

    async def die(self, service: Service, *, before: bool) -> None:
        """The worker ends right before or right after it counted: its entries of the queue are not acknowledged."""
        count = service.store.count

        async def last_words(records: Any) -> list[int]:
            if not before:
                await count(records)
            raise Died

        worker = copy(service.worker)
        worker.store = _With(service.store, count=last_words)  # type: ignore[assignment]
        entries = await service.store.next_encodings("dead", count=3, block_ms=1)
        if entries:
            with pytest.raises(Died):
                await worker.reconcile({user for _, user in entries})

    async def stall(self, service: Service) -> None:
        """A worker has read the events, and counts them when others have counted newer ones."""
        has_read = asyncio.Event()

        async def slow_count(records: Any) -> list[int]:
            has_read.set()
            await self.go_on.wait()
            return await service.store.count(records)

        worker = copy(service.worker)
        worker.store = _With(service.store, count=slow_count)  # type: ignore[assignment]
        self.stalled.append(asyncio.create_task(worker.reconcile(USERS)))
        await has_read.wait()

    async def finish(self) -> None:
        for service in self.replicas:
            await service.work_off()
        self.go_on.set()
        await asyncio.gather(*self.stalled)


class _With:
    """A store with one method replaced."""

    def __init__(self, store: MemoryStore, **methods: Any) -> None:
        self.__dict__.update(methods)
        self._store = store

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps)
def test_counts_are_those_of_the_log_whatever_happened(
    replicas: list[Service], runner: asyncio.Runner, monkeypatch: pytest.MonkeyPatch, plan: Sequence[tuple[str, Any]]
) -> None:
    monkeypatch.setattr("service.store.client.CLAIM_AFTER_MS", 0)

    async def play() -> None:
        store = replicas[0].store
        await store._client.flushall()
        await replicas[0].items.put_many([Item(item, f"Title of {item}") for item in ITEMS[4:]])
        player = Play(replicas)
        for step in plan:
            await player.step(*step)
        await player.finish()
        expected = counts_of_log(list(player.log.values()))
        assert await stored_counts(store) == expected, "counts differ from the log"
        await backfill(replicas[1].worker)
        assert await stored_counts(store) == expected, "counting again changes counts"

    runner.run(play())


async def test_duplicates_count_nothing(counting: Service) -> None:
    for _ in range(3):
        await counting.submit(POOL[:8], "durable")
        await counting.work_off()
    known = [Event(**each) for each in POOL[:8] if each["item_id"][0] == "i"]
    assert await stored_counts(counting.store) == counts_of_log(known), (
        "items of the bundle have no pairs; unknown items are rejected"
    )
    assert counting.metric("live_counts_changed_total") == len(await stored_counts(counting.store))


async def test_a_user_counts_once_for_an_item_and_a_day(counting: Service) -> None:
    many = [interaction(number, "loud", item_id="i1", timestamp=NOW + number) for number in range(90)]
    await counting.submit([*many, interaction(0, "quiet", item_id="i2")], "visible")
    assert await stored_counts(counting.store) == {(TODAY, frozenset(["i1"])): 1, (TODAY, frozenset(["i2"])): 1}


async def test_nothing_of_a_user_is_left(counting: Service, raw: Redis) -> None:
    await counting.submit(POOL[:9], "visible")
    await counting.store.forget_user("ann")
    assert [key async for key in raw.scan_iter("*ann*")] == []
    await counting.store.forget_user("bob")
    assert not await stored_counts(counting.store)


async def test_a_deletion_that_broke_half_way_is_repaired_by_its_retry(
    counting: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    await counting.submit(POOL[:9], "visible")

    async def fail(records: Any) -> list[int]:
        raise StoreUnavailable("away")

    with monkeypatch.context() as patch:
        patch.setattr(counting.store, "count", fail)
        with pytest.raises(StoreUnavailable):
            await counting.users.forget("ann")
    assert (await counting.users.forget("ann")).deleted.events == 0
    left = [Event(**each) for each in POOL[:9] if each["user_id"] == "bob" and each["item_id"] in ITEMS[:4]]
    assert await stored_counts(counting.store) == counts_of_log(left)


@pytest.mark.parametrize("newest_first", [False, True])
async def test_old_days_leave_whatever_comes_first(counting: Service, newest_first: bool, raw: Redis) -> None:
    ages = [0, 1, KEPT_DAYS - 1, KEPT_DAYS, KEPT_DAYS + 300]
    events = [
        interaction(age, f"user{age}", item_id=f"i{place}", timestamp=NOW - age * DAY) for place, age in enumerate(ages)
    ]
    for event in events if newest_first else events[::-1]:
        await counting.submit([event], "visible")
    kept = {(TODAY - age, frozenset([f"i{place}"])): 1 for place, age in enumerate(ages) if age < KEPT_DAYS}
    assert await stored_counts(counting.store) == kept
    assert len([key async for key in raw.scan_iter("automr:{+live}:day:*")]) == len(kept)
    await counting.users.forget_event("user480", "e480")
    await counting.work_off()
    assert await stored_counts(counting.store) == kept, "a day that is gone takes nothing back"


async def test_an_event_of_the_far_future_takes_no_counts_away(counting: Service) -> None:
    await counting.submit([interaction(0, "ann", item_id="i0", timestamp=NOW)], "visible")
    await counting.submit([interaction(1, "bob", item_id="i1", timestamp=40_000 * DAY)], "visible")
    await counting.submit([interaction(2, "bob", item_id="i2", timestamp=NOW)], "visible")
    expected = {(TODAY, frozenset(["i0"])): 1, (TODAY, frozenset(["i2"])): 1}
    assert await stored_counts(counting.store) == expected
    await counting.users.forget("bob")
    assert await stored_counts(counting.store) == {(TODAY, frozenset(["i0"])): 1}


@given(st.lists(st.tuples(st.sampled_from(ITEMS), st.integers(0, 3)), max_size=30))
def test_a_record_is_bounded_and_has_no_duplicates(facts: list[tuple[str, int]]) -> None:
    events = [Event(str(place), "u", item, day * DAY) for place, (item, day) in enumerate(facts)]
    cells = record_of(events, lambda item: True, EventTypes()).removeprefix(b"w")
    found = [cells[start : start + 21] for start in range(0, len(cells), 25)]
    assert len(set(found)) == len(found) and len(cells) % 25 == 0
    many = [Event(str(place), "u", f"x{place}", place * DAY) for place in range(500)]
    assert len(record_of(many, lambda item: True, EventTypes())) <= 1 + 25 * NUM_COUNTED * (1 + SPAN)


async def test_records_of_earlier_versions_weigh_one(counting: Service, raw: Redis) -> None:
    one = cell(TODAY, item_digest("i1"), item_digest("i1"))
    assert one is not None
    await raw.set("automr:{+live}:of:ann", one)
    await raw.hset(f"automr:{{+live}}:day:{TODAY}", mapping={one[5:]: "1"})
    await raw.hset("automr:{+live}:days", mapping={str(TODAY): "1"})
    await counting.submit([interaction(1, "ann", item_id="i1", type="view")], "visible")
    assert await stored_counts(counting.store) == {(TODAY, frozenset(["i1"])): 0.25}
    await counting.users.forget("ann")
    assert await stored_counts(counting.store) == {}


async def test_a_weight_below_zero_counts_nothing(counting: Service) -> None:
    rule = TypeRule(weight=-3.0, popularity=True, neighbors=True)
    counting.view.event_types = EventTypes(types={"hate": rule})
    event = Event("e", "u", "i1", NOW, "hate")
    assert record_of([event, event._replace(item_id="i2")], lambda item: True, counting.view.event_types) == b""


async def test_what_others_wrote_is_input(store: MemoryStore, raw: Redis) -> None:
    await raw.hset("automr:{+live}:days", mapping={"20000": "1", "soon": "x"})
    await raw.hset("automr:{+live}:day:20000", mapping={"short": "1", "sixteen bytes !!": "many"})
    assert await store.counted_days() == {20000: 1}
    pairs, counts = await store.counts_of(20000)
    assert pairs.shape == (0, 2) and np.array_equal(counts, [])
