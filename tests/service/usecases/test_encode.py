"""Workers of the encode queue: no user stops the others, and nothing that was begun waits for long."""

import asyncio
import json
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from pydantic import SecretStr
from redis.asyncio import Redis

from service.commands import run_deadletters
from service.errors import StoreUnavailable
from service.settings import Settings
from service.store.deadletters import DeadLetter, DeadLetters
from service.store.embedded.server import EmbeddedServer
from service.store.events import Saved
from service.usecases.encode import UserWork
from tests.service.real import Service, history, interaction


async def letters_of(service: Service) -> list[DeadLetter]:
    return await DeadLetters(service.store.run, is_cluster=False).all()


async def test_one_user_that_cannot_be_encoded_stops_no_other(
    service: Service, bundle_path: Path, valkey: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    await service.submit([interaction(number, user) for user in "abc" for number in range(5)], "durable")
    encode = service.worker._encode

    async def fails(todo: Sequence[UserWork]) -> list[Saved]:
        if "b" in {each.user_id for each in todo}:
            raise RuntimeError("cannot encode b")
        return await encode(todo)

    monkeypatch.setattr(service.worker, "_encode", fails)
    monkeypatch.setattr("service.store.client.CLAIM_AFTER_MS", 1)
    assert await service.worker.work(block_ms=1) == 2 and await service.store.backlog() == 1, "tried once, kept"
    assert [bool((await service.timeline(user)).missing_states()) for user in "abc"] == [False, True, False]
    for _ in range(2):
        assert not await letters_of(service)
        await asyncio.sleep(0.005)
        await service.worker.work(block_ms=1)
    assert not await service.store.backlog()
    (letter,) = await letters_of(service)
    assert (letter.user_id, letter.reason) == ("b", "RuntimeError") and abs(letter.time - time.time()) < 60
    monkeypatch.undo()
    settings = Settings(bundle=bundle_path, store=SecretStr(valkey.url))
    (listed,) = await run_deadletters(settings, "list")
    assert json.loads(listed)["user_id"] == "b"
    assert await run_deadletters(settings, "replay") == ['{"replay": 1}'] and not await letters_of(service)
    await service.work_off()
    assert not (await service.timeline("b")).missing_states()


@pytest.mark.parametrize("damage", ["a wrong type", "no number"])
async def test_a_user_with_a_damaged_key_stops_no_other_and_is_forgotten_with_the_letter(
    damage: str, service: Service, raw: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    disliked = interaction(9, "b", type="dislike")
    await service.submit([*(interaction(number, user) for user in "abc" for number in range(5)), disliked], "durable")
    if damage == "no number":  # the events are to be sorted again, and a script cannot add to the revision
        await raw.hset("automr:{b}:facts", mapping={"revision": "many", "seen": "0"})
    else:
        await raw.delete("automr:{b}:order")
        await raw.set("automr:{b}:order", "not a sorted set")
    monkeypatch.setattr("service.store.client.CLAIM_AFTER_MS", 1)
    for _ in range(3):
        await service.worker.work(block_ms=1)
        await asyncio.sleep(0.005)
    assert [bool((await service.timeline(user)).missing_states()) for user in "ac"] == [False, False]
    (letter,) = await letters_of(service)
    assert letter.user_id == "b" and letter.reason.startswith("StoreCorrupt: ")
    await service.store.forget_user("b")
    assert not await letters_of(service)


async def test_a_user_who_never_rests_lets_others_through(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """Events of one user that come faster than they are encoded: the round ends, and the user waits in the queue."""
    await service.submit([interaction(number, user) for user in "ab" for number in range(5)], "durable")
    encode, numbers = service.worker._encode, iter(range(100, 200))

    async def while_events_come(todo: Sequence[UserWork]) -> list[Saved]:
        await service.submit([interaction(next(numbers), "a")], "durable")
        return await encode(todo)

    monkeypatch.setattr(service.worker, "_encode", while_events_come)
    async with asyncio.timeout(10):
        assert await service.worker.work(block_ms=1) == 2
    assert not (await service.timeline("b")).missing_states()
    monkeypatch.undo()
    await service.work_off()
    assert not (await service.timeline("a")).missing_states() and not await service.store.backlog()


async def test_a_round_that_was_broken_off_starts_again_at_once(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    await service.submit(history(5), "durable")

    async def is_away(*arguments: object) -> None:
        raise StoreUnavailable("away")

    monkeypatch.setattr(service.store, "save_states", is_away)
    with pytest.raises(StoreUnavailable):
        await service.worker.work(block_ms=1)
    monkeypatch.undo()
    assert await service.worker.work(block_ms=1) == 1, "not only after other workers may claim the entry"
    assert not (await service.timeline("u")).missing_states() and not await service.store.backlog()


async def test_a_worker_that_left_is_removed_from_the_queue(
    service: Service, raw: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    await service.submit(history(5), "durable")
    await service.store.next_encodings("owns an entry", count=1, block_ms=1)
    await service.store.next_encodings("owns nothing", count=1, block_ms=1)
    assert await service.store.remove_idle_consumers() == 0, "both were there a moment ago"
    monkeypatch.setattr("service.store.client.CONSUMER_IDLE_MS", 0)
    assert await service.store.remove_idle_consumers() == 1
    left = {each["name"] for each in await raw.xinfo_consumers("automr:encode", "encoders")}
    assert left == {b"owns an entry"}


async def test_users_who_failed_once_are_not_remembered_for_ever(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another worker may encode them, and this one never hears of it."""
    monkeypatch.setattr("service.usecases.encode._MOST_FAILING", 5)

    async def fails(todo: object) -> list[Saved]:
        raise RuntimeError("cannot encode")

    monkeypatch.setattr(service.worker, "_encode", fails)
    await service.submit([interaction(0, f"u{number}") for number in range(9)], "durable")
    for number in range(9):
        assert await service.worker.settle([f"u{number}"]) == {f"u{number}"}
    assert list(service.worker._failures) == [f"u{number}" for number in range(4, 9)]
    assert [await service.worker.settle(["u8"]) for _ in range(2)] == [{"u8"}, set()], "a dead letter comes too late"
    assert "u8" not in service.worker._failures
