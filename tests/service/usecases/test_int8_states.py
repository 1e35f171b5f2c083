"""The service with a bundle that stores its states as int8: half the bytes, nearly the same memory."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from redis.asyncio import Redis

from service.store.embedded.server import EmbeddedServer
from service.store.events import Event
from tests.service.real import K, ask, history, open_service, states_from_scratch


async def test_memory_is_what_a_backfill_would_make_up_to_half_a_step(
    make_bundle: Callable[..., Path], valkey: EmbeddedServer, raw: Redis
) -> None:
    async with open_service(make_bundle(state_dtype="int8"), valkey.url) as service:
        await service.submit(history(K + 9), "visible")
        timeline = await service.timeline("u")
        assert not timeline.is_incomplete, "a state is missing or stale"
        events: list[Event] = timeline.events
        scratch = states_from_scratch(events, service.bundle)
        found = timeline.memory()
        assert len(found.events) == 9
        for event, state in zip(found.events, found.states, strict=True):
            exact = scratch[event.event_id][0]
            steps = np.abs(exact).max() / 127
            np.testing.assert_allclose(state, exact, atol=0.51 * steps + 2e-3, err_msg=event.event_id)
        answer = await ask(service, user_id="u", k=5, deadline_ms=20_000)
        assert answer.fallback is None and len(answer.items) == 5
