"""What is kept about a user can be seen page by page, taken along, and forgotten without a trace."""

import asyncio
import json
from pathlib import Path

import pytest
from redis.asyncio import Redis

from service.errors import StoreUnavailable, UnknownUser
from service.store.embedded.server import EmbeddedServer
from tests.conftest import TITLES
from tests.service.real import NOW, K, M, Service, history, interaction, open_app, open_service, states_from_scratch


async def keys_of(raw: Redis, user_id: str) -> list[bytes]:
    return [key async for key in raw.scan_iter(f"*{user_id}*")]


async def test_pages_show_everything_once_newest_first(service: Service) -> None:
    await service.submit(history(25, "someone"), "visible")
    found, cursor = [], None
    while True:
        page = await service.users.get("someone", cursor, 7)
        found += [event.event_id for event in page.recent]
        assert (page.counts.events, page.counts.states) == (25, K + M if K + M < 25 else 25)
        assert [element.event_id for element in page.memory] == [f"e{n:03}" for n in range(25 - K - M, 25 - K)]
        if (cursor := page.next_cursor) is None:
            break
    assert found == [f"e{number:03}" for number in reversed(range(25))]


async def test_an_export_has_every_event_whole(service: Service) -> None:
    sent = [
        interaction(number, "someone", type="buy", value=number / 2, query=f"a gift, no. {number} ☕")
        | {"session_id": f"visit {number % 3}", "context": {"place": number}, "recommendation_id": None}
        for number in range(12)
    ]
    await service.submit(sent, "durable")
    rows = [{"user_id": "someone", **row._asdict()} async for row in service.users.export("someone")]
    assert rows == [each | {"title": TITLES[number % 7]} for number, each in reversed(list(enumerate(sent)))]


async def test_strangers(service: Service) -> None:
    with pytest.raises(UnknownUser):
        await service.users.get("nobody", None, 5)
    with pytest.raises(UnknownUser):
        _ = [row async for row in service.users.export("nobody")]
    assert (await service.users.forget("nobody")).deleted.keys == 0
    assert not (await service.users.forget_event("nobody", "e"))


async def test_the_forgotten_leave_no_key_and_may_come_back(service: Service, raw: Redis) -> None:
    await service.submit(history(30, "someone"), "visible")
    await raw.set(f"automr:{{someone}}:retrieval:{service.space}", b"{}")  # as earlier versions wrote it
    receipt = (await service.users.forget("someone")).deleted
    assert (receipt.events, receipt.states, receipt.keys) == (30, K + M, 7)
    assert await keys_of(raw, "someone") == []
    await service.work_off()
    assert await keys_of(raw, "someone") == []
    (late, _) = await service.submit(history(2, "someone"), "visible")
    assert late.status == "rejected" and await keys_of(raw, "someone") == []
    assert await service.eraser.recreate("someone")
    await service.submit(history(2, "someone"), "visible")
    page = await service.users.get("someone", None, 10)
    assert (page.counts.events, page.counts.states, page.memory) == (2, 2, [])
    assert await service.seen("someone") == {"i0", "i1"}


async def test_who_is_forgotten_while_encoded_stays_forgotten(
    bundle_path: Path, valkey: EmbeddedServer, raw: Redis
) -> None:
    async with open_service(bundle_path, valkey.url, encode_in_process=True) as service:
        for attempt in range(8):
            await service.submit(history(30, "someone"), "durable")
            encoding = asyncio.create_task(service.worker.reconcile(["someone"]))
            await asyncio.sleep(attempt / 200)
            await service.users.forget("someone")
            await encoding
            assert await keys_of(raw, "someone") == []


async def test_a_deletion_that_failed_half_way_may_be_repeated(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    await service.submit(history(12), "visible")

    async def is_away(users: object) -> None:
        raise StoreUnavailable("away")

    monkeypatch.setattr(service.store, "request_encoding", is_away)
    with pytest.raises(StoreUnavailable):
        await service.users.forget_event("u", "e004")
    monkeypatch.undo()
    assert not await service.users.forget_event("u", "e004"), "it is gone already"
    await service.work_off()
    assert not (await service.timeline("u")).missing_states(), "nobody asked for the states that became stale"


async def test_forgetting_an_event_derives_memory_anew(service: Service) -> None:
    await service.submit(history(12), "visible")
    assert await service.users.forget_event("u", "e004")
    assert not (await service.users.forget_event("u", "e004"))
    used = [event.event_id for event in (await service.timeline("u")).memory().events]
    assert not {"e004", "e005", "e006"} & set(used), "states of windows over it are not used any more"
    await service.work_off()
    remembered = await service.store.recall("u", service.space, 100)
    expected = states_from_scratch([each.event for each in remembered], service.bundle)
    assert len(remembered) == len(expected) == 11
    kept = service.bundle.codec.decode_many([each.record for each in remembered])
    assert kept.is_valid.all()
    for each, fingerprint in zip(remembered, kept.fingerprints, strict=True):
        assert fingerprint.tobytes() == expected[each.event.event_id][1]
    assert "i4" in await service.seen("u"), "e011 is of the same item"
    await service.users.forget_event("u", "e011")
    assert "i4" not in await service.seen("u")


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e999", "1" + "0" * 400])
async def test_a_stored_value_that_json_cannot_express_is_shown_as_null(
    bundle_path: Path, valkey: EmbeddedServer, raw: Redis, number: str
) -> None:
    """Another program, or an earlier version, wrote it. Every route about the user goes on."""
    async with open_app(bundle_path, valkey.url) as (_, http):
        await http.post("/interactions", json={"interactions": history(3, "someone")})
        fields = f'{{"item_id":"i1","timestamp":{NOW + 1},"type":"view","value":{number}}}'
        await raw.hset("automr:{someone}:events", "e001", fields)
        page, export = await http.get("/users/someone"), await http.get("/users/someone/export")
        answer = await http.post("/recommend", json={"user_id": "someone"})
    assert [page.status_code, export.status_code, answer.status_code] == [200, 200, 200]
    assert [event["value"] for event in page.json()["recent"]] == [None] * 3
    assert [json.loads(line)["value"] for line in export.text.splitlines()] == [None] * 3
    assert answer.json()["fallback"] is None
