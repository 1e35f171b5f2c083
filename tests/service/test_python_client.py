"""The Python client and the real application."""

from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from automr import errors as client_errors
from automr.client import AsyncClient
from service.app import create_app
from service.resources import open_resources
from service.store.embedded.server import EmbeddedServer
from tests.service.real import ModelThread, interaction, settings_for


async def test_events_change_recommendations_and_a_repeated_event_counts_once(
    bundle_path: Path, valkey: EmbeddedServer, raw: Redis
) -> None:
    app = create_app(settings_for(bundle_path, valkey.url), partial(open_resources, spawn=ModelThread()))
    async with (
        app.router.lifespan_context(app),
        AsyncClient("http://test", transport=httpx.ASGITransport(app=app)) as client,
    ):
        events: Any = [interaction(number) for number in range(5)]
        for status in ("accepted", "duplicate"):
            stored = await client.add_interactions(interactions=events, wait="visible")
            assert {each["status"] for each in stored["results"]} == {status}
        answer = await client.recommend(user_id="u", k=3)
        seen = {event["item_id"] for event in events}
        assert len(answer["items"]) == 3 and not seen & {item["item_id"] for item in answer["items"]}
        assert [event["event_id"] async for event in client.export_user("u")] == [
            "e004",
            "e003",
            "e002",
            "e001",
            "e000",
        ]
        assert (await client.forget_user("u"))["events"] == 5
        with pytest.raises(client_errors.NotFound) as raised:
            await client.get_user("u")
        assert raised.value.kind == "unknown-user"
        with pytest.raises(client_errors.Invalid) as wrong:
            await client.recommend(k=1000)
        assert [each["field"] for each in wrong.value.errors] == ["k"]
