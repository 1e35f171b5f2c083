"""Items for which exploration has ended: every server reads each of them once, and no request looks one up."""

from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from model_store.catalogue.items import Item
from model_store.view import BundleView
from service.feedback.explored import ExploredItems
from service.store.client import MemoryStore
from service.store.feedback.explored import ExploredStore
from service.store.keys import EXPLORED_ITEMS
from service.store.shown import ShownList, ShownStore

MOST = 3


@pytest.fixture
def few_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("service.store.feedback.explored", "service.feedback.explored"):
        monkeypatch.setattr(f"{module}.AT_ONCE", 10)


class Reading:
    """The items of a server, and what the store has answered it."""

    def __init__(self, store: MemoryStore, most: int = MOST) -> None:
        self._store = store
        self.num_commands = self.num_values = 0
        self.items = ExploredItems(ExploredStore(self._run, most=most))

    async def _run(self, commands: Any) -> list[Any]:
        answers = await self._store.run(commands)
        self.num_commands += len(commands)
        self.num_values += sum(len(each) for each in answers if isinstance(each, list))
        return answers

    async def catch_up(self) -> list[str]:
        """All that it knows afterwards."""
        self.num_commands = self.num_values = 0
        await self.items.catch_up()
        return self.items._item_ids


async def show(store: MemoryStore, *item_ids: str, times: int = MOST, most: int = MOST) -> None:
    lists = ShownStore(store.run, store.tombstones, kept_s=60, most_explored=most)
    for number in range(times):
        made = ShownList(f"r{number}", None, item_ids, "default", "b", 1, explored=item_ids, num_explored=len(item_ids))
        await lists.save([made])


def names(count: int, kind: str = "item") -> list[str]:
    return [f"{kind}-{number}" for number in range(count)]


@pytest.mark.usefixtures("few_at_once")
async def test_a_server_reads_only_what_is_new(store: MemoryStore, raw: Redis) -> None:
    reading = Reading(store)
    await show(store, *names(35))
    await show(store, "almost", times=MOST - 1)
    assert await reading.catch_up() == names(35)
    await show(store, *names(35))
    assert len(await reading.catch_up()) == 35 and (reading.num_commands, reading.num_values) == (1, 0)
    await show(store, "almost", times=1)
    assert (await reading.catch_up())[35:] == ["almost"]
    assert (reading.num_commands, reading.num_values) == (1, 2), "what was known is read again"


@pytest.mark.usefixtures("few_at_once")
async def test_what_ends_while_a_server_reads_is_not_lost(
    store: MemoryStore, raw: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading = Reading(store)
    await show(store, *names(25))
    ended, later = ExploredStore.ended, iter(names(2, "later"))

    async def meanwhile(self: ExploredStore, after: int) -> tuple[list[str], int]:
        found = await ended(self, after)
        if (item_id := next(later, None)) is not None:
            await show(store, item_id)
            await show(store, *names(25)[:7], times=1)
        return found

    monkeypatch.setattr(ExploredStore, "ended", meanwhile)
    await reading.catch_up()
    found = await reading.catch_up()
    assert sorted(found) == sorted(names(25) + names(2, "later")), "an item is lost, or read twice"


@pytest.mark.usefixtures("few_at_once")
async def test_the_counts_of_an_earlier_release_and_of_another_limit_are_taken_over(
    store: MemoryStore, raw: Redis
) -> None:
    await raw.zadd(EXPLORED_ITEMS, {name: MOST + number for number, name in enumerate(names(25))} | {"few": 1})
    assert sorted(await Reading(store).catch_up()) == sorted(names(25))
    assert len(await Reading(store, most=MOST + 20).catch_up()) == 5
    await show(store, "few", times=1, most=2)
    assert len(await Reading(store, most=2).catch_up()) == 26


async def test_an_item_that_an_earlier_release_has_counted_ends_when_it_is_shown_once_more(
    store: MemoryStore, raw: Redis
) -> None:
    """Releases that do not know places may run beside this one for a while."""
    reading = Reading(store)
    await reading.catch_up()
    await raw.zadd(EXPLORED_ITEMS, {"counted": MOST + 2})
    await show(store, "counted", times=1)
    assert await reading.catch_up() == ["counted"]


async def test_after_a_failover_that_lost_the_last_places_new_ones_are_read(store: MemoryStore, raw: Redis) -> None:
    reading = Reading(store)
    await show(store, "first", "lost", "lost as well")
    await reading.catch_up()
    assert await raw.zrem(f"{EXPLORED_ITEMS}:{MOST}", "lost", "lost as well") == 2
    await show(store, "new")
    assert "new" in await reading.catch_up()


async def test_without_a_limit_nothing_ends(store: MemoryStore, raw: Redis) -> None:
    await show(store, "a", times=5, most=0)
    assert await raw.keys(f"{EXPLORED_ITEMS}:*") == [] and await raw.zscore(EXPLORED_ITEMS, "a") == 5


async def test_the_rows_of_a_bundle_are_ready_before_a_request_asks(
    store: MemoryStore, raw: Redis, bundle_path: Path
) -> None:
    view = BundleView.open_view(bundle_path)
    reading = Reading(store)
    await show(store, "i3", "new-1", "nowhere")
    await reading.catch_up()
    rows = reading.items.add(view)
    assert rows.of(view.catalogue).tolist() == [3]
    before = view.catalogue
    view.catalogue = before.with_items([Item("new-1", "A new one")])
    await show(store, "i5")
    await reading.catch_up()
    assert sorted(rows.of(view.catalogue).tolist()) == [3, 5, len(before)]
    assert sorted(rows.of(before).tolist()) == [3, 5], "a row that this catalogue does not have"
    reading.items.remove(rows)
