"""POST /interactions with `wait: visible`: its deadline, and callers who leave."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from service.errors import DeadlineExceeded
from service.store.embedded.server import EmbeddedServer
from service.store.events import Event
from tests.service.real import NOW, busy, history, interaction, open_app, open_service
from tests.service.standins import shell, status_after_leaving

BODY = {"interactions": [{"user_id": "u", "item_id": "i", "timestamp": NOW}], "wait": "visible"}


async def test_the_work_for_a_caller_who_leaves_is_cancelled() -> None:
    async with shell() as opened, asyncio.timeout(5):
        opened.ingest.hook = lambda: asyncio.sleep(60)
        status = await status_after_leaving(opened.app, "/interactions", json.dumps(BODY).encode())
        assert opened.ingest.cancelled == 1
        assert len(opened.ingest.events) == 1
    assert status == 499


async def test_a_passed_deadline_is_a_504_that_says_the_events_are_stored() -> None:
    async with shell() as opened:

        def fail() -> None:
            raise DeadlineExceeded("The events are durable.")

        opened.ingest.hook = fail
        answer = await opened.client.post("/interactions", json=BODY)
        assert answer.status_code == 504 and answer.json()["detail"] == "The events are durable."


async def test_the_deadline_comes_from_the_settings_and_the_events_are_stored(
    bundle_path: Path, valkey: EmbeddedServer, raw: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(user_ids: Any) -> None:
        await asyncio.sleep(60)

    async with open_app(bundle_path, valkey.url, visible_timeout_s=0.1) as (app, client):
        monkeypatch.setattr(app.state.resources.ingest.worker, "reconcile", never)
        body = {"interactions": history(60, "late"), "wait": "visible"}
        answer = await client.post("/interactions", json=body)
        assert answer.status_code == 504 and "durable" in answer.json()["detail"]
        assert (await client.get("/users/late")).json()["counts"]["events"] == 60
        body["wait"] = "durable"
        answer = await client.post("/interactions", json=body)
        assert {each["status"] for each in answer.json()["results"]} == {"duplicate"}


async def test_memory_follows_after_the_deadline(bundle_path: Path, valkey: EmbeddedServer, raw: Any) -> None:
    async with open_service(bundle_path, valkey.url) as service:
        async with busy(service):
            with pytest.raises(DeadlineExceeded):
                await service.ingest.submit([Event("e1", "late", "i1", NOW)], "visible", timeout_s=0.1)
        assert (await service.timeline("late")).missing_states()
        await service.work_off()
        assert not (await service.timeline("late")).missing_states()


async def test_large_bodies_and_waits_for_memory_take_turns(
    bundle_path: Path, valkey: EmbeddedServer, raw: Any
) -> None:
    """A flood of either leaves time to others, however many callers send it."""
    async with open_app(bundle_path, valkey.url, visible_timeout_s=0.2) as (app, client):
        ingest = app.state.resources.ingest
        ingest.reading._has_readers = ingest._showing._has_readers = lambda: True
        small, large = {"interactions": history(1)}, {"interactions": history(500)}
        assert len(json.dumps(large)) > 1 << 15
        large["interactions"][0]["query"] = "long " * 20_000  # refused, after it was read
        async with ingest.reading.turn(1 << 20):
            reading = asyncio.create_task(client.post("/interactions", json=large))
            assert (await client.post("/interactions", json=small)).status_code == 202
            assert not (await asyncio.wait([reading], timeout=0.1))[0], "a large body did not wait for its turn"
        statuses = [each["status"] for each in (await reading).json()["results"]]
        assert statuses[0] == "rejected" and set(statuses[1:]) == {"accepted"}
        async with ingest._showing.turn(1 << 20):
            shown = await client.post("/interactions", json=small | {"wait": "visible"})
            assert shown.status_code == 504, "making memory visible did not wait for its turn"
            assert (await client.post("/interactions", json=small)).status_code == 202
        async with asyncio.timeout(5):  # the place rests for a moment
            while (await client.post("/interactions", json=small | {"wait": "visible"})).status_code != 200:
                pass


async def test_every_element_has_its_index() -> None:
    async with shell() as opened:
        elements = [interaction(1), 7, interaction(2), {}]
        answer = await opened.client.post("/interactions", json={"interactions": elements})
        assert [each["index"] for each in answer.json()["results"]] == [0, 1, 2, 3]
