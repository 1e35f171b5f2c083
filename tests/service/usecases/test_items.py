"""The catalogue changes while the service runs, for good, and for every replica."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from model_store.bundle import Bundle
from model_store.catalogue.items import Item
from service.engine import knowledge
from service.errors import BadRequest, UnknownItem
from service.store.embedded.server import EmbeddedServer
from service.usecases import records
from tests.conftest import BOTH_VOCABULARIES, TITLES
from tests.service.real import Service, ask, history, interaction, open_service


async def shown(service: Service, *, k: int = 100) -> list[str]:
    answer = await ask(service, k=k, recent=[{"item_id": "i1"}], exclude_seen=False)
    return [item.item_id for item in answer.items]


async def title_in(service: Service, item_id: str) -> str | None:
    try:
        return (await service.items.get(item_id)).title
    except UnknownItem:
        return None


async def within(seconds: float, condition: Callable[[], Awaitable[bool]], what: str) -> None:
    deadline = time.monotonic() + seconds
    while not await condition():
        assert time.monotonic() < deadline, f"waited {seconds} s in vain for: {what}"
        await asyncio.sleep(0.05)


@BOTH_VOCABULARIES
async def test_a_new_item_is_recommended_at_once_and_after_a_restart(
    service: Service, bundle_path: Path, valkey: EmbeddedServer
) -> None:
    await service.items.put(Item("new", "Some New Thing", attributes={"genre": ["a", "b"]}))
    assert len(await shown(service)) == len(TITLES) + 1 and "new" in await shown(service)
    answer = await ask(service, recent=[{"item_id": "i1"}], candidates=["new"])
    assert answer.items[0].source == "generated"
    accepted = await service.submit([interaction(1, item_id="new")], "visible")
    assert accepted[0].status == "accepted"
    async with open_service(bundle_path, valkey.url) as restarted:
        assert "new" in await shown(restarted)
        assert (await restarted.items.get("new")).attributes == {"genre": ["a", "b"]}
        assert not (await restarted.timeline("u")).missing_states()


@BOTH_VOCABULARIES
async def test_replicas_follow(service: Service, bundle_path: Path, valkey: EmbeddedServer) -> None:
    async with open_service(bundle_path, valkey.url) as other:
        await service.items.put(Item("new", "New"))
        at_once = await other.submit([interaction(1, item_id="new")], "durable")
        assert at_once[0].status == "accepted", "an event may be faster than the news of its item"
        await service.items.patch("i2", {"title": "Renamed"})
        await service.items.delete("i3")

        async def has_followed() -> bool:
            return await title_in(other, "i2") == "Renamed" and await title_in(other, "i3") is None

        await within(2.5, has_followed, "the other replica")
        assert "i3" not in await shown(other) and "new" in await shown(other)


async def test_two_replicas_change_different_fields(
    service: Service, bundle_path: Path, valkey: EmbeddedServer
) -> None:
    async with open_service(bundle_path, valkey.url) as other:
        await service.items.patch("i2", {"title": "Renamed"})
        changed = await other.items.patch("i2", {"attributes": {"new": 1, "even": None, "none": None}})
        assert (changed.title, changed.attributes) == ("Renamed", {"new": 1}), "attributes are merged, null removes one"


async def test_changes_at_once_undo_nothing(service: Service) -> None:
    changes = [service.items.patch("i1", {"attributes": {"n": 1}}), service.items.catch_up()]
    changes += [service.items.patch("i1", {"title": "T"}), service.items.catch_up()]
    await asyncio.gather(*changes)
    item = await service.items.get("i1")
    assert (item.title, item.attributes) == ("T", {"even": False, "n": 1})


@BOTH_VOCABULARIES
async def test_hidden_deleted_and_back(service: Service) -> None:
    await service.submit(history(6), "visible")
    await service.items.patch("i2", {"hidden": True})
    await service.items.delete("i4")
    assert not {"i2", "i4"} & set(await shown(service))
    assert await title_in(service, "i2") == TITLES[2] and await title_in(service, "i4") is None
    with pytest.raises(UnknownItem):
        await service.items.delete("i4")
    page = await service.users.get("u", None, 10)
    assert [event.title for event in page.recent] == TITLES[5::-1], "histories keep the title"
    assert not (await service.timeline("u")).missing_states()
    await service.items.put(Item("i4", "Back Again"))
    assert "i4" in await shown(service) and await title_in(service, "i4") == "Back Again"


async def test_half_of_a_window_of_availability_cannot_contradict_the_other(service: Service) -> None:
    await service.items.patch("i1", {"available_from": 100})
    with pytest.raises(BadRequest):
        await service.items.patch("i1", {"available_until": 50})
    assert (await service.items.get("i1")).available_until is None


@BOTH_VOCABULARIES
async def test_many_at_once_and_one_of_them_twice(service: Service) -> None:
    names = [f"n{number % 30}" for number in range(40)]
    items = [Item(name, f"Number {number}") for number, name in enumerate(names)]
    assert len(await service.items.put_many(items)) == 30
    assert await title_in(service, "n5") == "Number 35", "the last one counts"
    assert len(service.bundle.index) == len(service.bundle.catalogue) == len(TITLES) + 30


async def test_neighbors_are_available_and_near_first(service: Service) -> None:
    await service.items.put(Item("twin", "The same"))
    await service.items.put(Item("other twin", "The same"))
    await service.items.put(Item("third twin", "The same", hidden=True))
    found = await service.items.neighbors("twin", 4)
    assert found[0].item_id == "other twin" and found[0].distance < 1e-3
    assert [each.distance for each in found] == sorted(each.distance for each in found)
    assert not {"twin", "third twin"} & {each.item_id for each in found} and len(found) == 4
    assert len(await service.items.neighbors("twin", 100)) == len(TITLES) + 1
    with pytest.raises(UnknownItem):
        await service.items.neighbors("nothing", 3)


async def test_what_others_wrote_into_the_overlay_is_input(
    bundle_path: Path, valkey: EmbeddedServer, raw: Redis
) -> None:
    bodies = [
        b"",
        b'{"title": "Huge", "popularity": ' + b"9" * 31 + b"}",
        b'{"title": "T", "attributes": {"a": 1e999}}',
    ]
    bodies += [
        b'{"title": "T", "available_from": ' + b"9" * 31 + b"}",
        b'{"title": "T", "attributes": ' + b"[" * 99_999,
    ]
    bodies += [b"\xff", b"[]", b"{}", b'{"title": 7, "deleted": false}', b'{"title": "T", "available_from": "soon"}']
    for number, body in enumerate([*bodies, b'{"title": " ", "deleted": false}', b'{"title": "Good"}']):
        await raw.hset("automr:items", f"x{number}", body)
    async with open_service(bundle_path, valkey.url) as service:
        assert [name for name in await shown(service) if name.startswith("x")] == ["x11"]
        assert service.metric("unusable_items_total") == 11
        await service.items.put(Item("x3", "Mended"))
        assert (await service.items.get("x3")).title == "Mended"


async def test_an_item_that_the_model_cannot_take_in_costs_itself_only(
    service: Service, bundle_path: Path, valkey: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    await service.items.put_many([Item("good", "Good"), Item("bad", "Bad"), Item("too", "Good too")])
    put = knowledge.put_items

    def choosy(bundle: Bundle, items: Sequence[Item], *others: Any) -> None:
        if any(item.title == "Bad" for item in items):
            raise ArithmeticError("this title")
        put(bundle, items, *others)

    monkeypatch.setattr(knowledge, "put_items", choosy)
    async with open_service(bundle_path, valkey.url) as other:
        assert {"good", "too"} <= set(await shown(other)) and await title_in(other, "bad") is None
        await service.items.put(Item("later", "Later"))
        await other.items.catch_up()
        assert "later" in await shown(other), "the bad item is tried again and again"


async def test_two_replicas_change_one_item_at_once(
    service: Service, bundle_path: Path, valkey: EmbeddedServer
) -> None:
    async with open_service(bundle_path, valkey.url) as other:
        changes = [
            replica.items.patch("i1", {"attributes": {f"{name}{number}": number}})
            for number in range(10)
            for name, replica in (("a", service), ("b", other))
        ]
        await asyncio.gather(*changes)
        await service.items.catch_up()
        assert len((await service.items.get("i1")).attributes) == 21, "a change undid another one"


async def test_a_change_reads_what_changed_and_no_more(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    await service.items.put_many([Item(f"n{number}", f"Number {number}") for number in range(300)])
    await service.items.catch_up()
    read: list[str] = []
    decode = records.read_change

    def seen(item_id: str, record: bytes) -> records.Change | None:
        read.append(item_id)
        return decode(item_id, record)

    monkeypatch.setattr("service.usecases.items.read_change", seen)
    await service.items.patch("n7", {"hidden": True})
    await service.items.catch_up()
    await service.items.catch_up()
    assert read == ["n7"]
