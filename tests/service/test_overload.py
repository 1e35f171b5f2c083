"""A flood of requests: each is answered in time or refused at once, and the flood leaves nothing behind."""

import asyncio
import statistics
import time
from pathlib import Path

from service.errors import Overloaded
from service.store.embedded.server import EmbeddedServer
from service.usecases.ranking.requests import Recommendation
from tests.service.engine.test_shares import acting
from tests.service.real import Service, ask, history, open_service

DEADLINE_S = 0.4
LONG_S = 2.0  # where it is compared who waits for longer
SLACK_S = 0.2  # the flood's own tasks share the event loop with what is measured


async def asked(service: Service, deadline_s: float = DEADLINE_S) -> tuple[Recommendation | None, float]:
    """The answer, None if the request was refused, and the seconds that it took."""
    started = time.monotonic()
    try:
        answer = await ask(service, user_id="flooded", k=5, deadline_ms=int(1000 * deadline_s))
    except Overloaded as error:
        assert error.retry_after_s
        return None, time.monotonic() - started
    return answer, time.monotonic() - started


async def test_a_flood_is_answered_in_time_or_refused_at_once(bundle_path: Path, valkey: EmbeddedServer) -> None:
    async with open_service(bundle_path, valkey.url, in_process=True, max_batch=2) as service:
        await service.submit(history(9, "flooded"), "visible")
        asking = []
        for _ in range(40):
            asking += [asyncio.create_task(asked(service)) for _ in range(10)]
            await asyncio.sleep(0.01)
        outcomes = await asyncio.gather(*asking)
        afterwards, _ = await asked(service)
    refused = [seconds for answer, seconds in outcomes if answer is None]
    answered = [seconds for answer, seconds in outcomes if answer is not None]
    assert any(answer is not None and answer.fallback is None for answer, _ in outcomes)
    assert refused, "nobody was refused: this was no flood"
    assert max(answered) < DEADLINE_S + SLACK_S, "an answer came after its deadline"
    assert max(refused) < SLACK_S, "a refusal took its time"
    assert afterwards is not None and afterwards.fallback is None, "the flood is over, but its traces are not"


async def test_a_quiet_key_is_answered_and_does_not_wait_for_the_flood_of_another(
    bundle_path: Path, valkey: EmbeddedServer
) -> None:
    async with open_service(bundle_path, valkey.url, in_process=True, max_batch=2) as service:
        await service.submit(history(9, "flooded"), "visible")
        loud: list[asyncio.Task[tuple[Recommendation | None, float]]] = []
        quiet: list[asyncio.Task[tuple[Recommendation | None, float]]] = []
        for number in range(100):
            with acting("loud"):
                loud += [asyncio.create_task(asked(service, LONG_S)) for _ in range(10)]
            if number % 4 == 0:
                with acting("quiet"):
                    quiet.append(asyncio.create_task(asked(service, LONG_S)))
            await asyncio.sleep(0.01)
        of_loud, of_quiet = await asyncio.gather(*loud), await asyncio.gather(*quiet)
    answered = [seconds for answer, seconds in of_loud if answer is not None]
    assert len(answered) < len(of_loud), "nobody was refused: this was no flood"
    # At the start the flood takes more places than it would get when it is known how long an answer takes.
    waits = [seconds for answer, seconds in of_quiet[len(of_quiet) // 2 :] if answer is not None]
    assert waits, "the flood takes its places"
    assert statistics.median(waits) < 0.7 * statistics.median(answered), "it waits behind the flood"
