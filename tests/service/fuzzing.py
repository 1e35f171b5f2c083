"""Requests that schemathesis makes from the OpenAPI document, sent to the real application with a real store.

`opened` gives an application that may be called from any event loop, because schemathesis makes a new one for each
call. `fuzz` tries every operation with requests that are nearly right, and holds each answer against the document.
`follow` tries chains of operations whose answers lead to one another, and looks for answers of the status 500 or more.
"""

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import FlakyStrategyDefinition
from hypothesis.stateful import run_state_machine_as_test
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.service.real import open_app

_START_S = 60
_CHAINS_OF_A_RUN = 10
_AS_DOCUMENTED = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    response_headers_conformance,
]
_PATIENCE_S = 60.0  # a store that is slow because the machine is busy would be answered with 503


class OnItsLoop:
    """The application on an event loop of its own. `statuses` counts its answers."""

    def __init__(self, app: FastAPI, loop: asyncio.AbstractEventLoop) -> None:
        self.app, self._loop = app, loop
        self.statuses: Counter[int] = Counter()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        waiting, sent = [await receive()], list[Any]()

        async def receive_here() -> Any:
            if waiting:
                return waiting.pop()
            await asyncio.sleep(60)

        async def send_here(message: Any) -> None:
            sent.append(message)

        call = self.app(scope, receive_here, send_here)
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(call, self._loop))
        self.statuses[sent[0]["status"]] += 1
        for message in sent:
            await send(message)


@contextmanager
def opened(bundle: Path, url: str, **chosen: Any) -> Iterator[OnItsLoop]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    context = open_app(bundle, url, encode_in_process=True, store_timeout_s=_PATIENCE_S, **chosen)
    app, _ = asyncio.run_coroutine_threadsafe(context.__aenter__(), loop).result(_START_S)
    try:
        yield OnItsLoop(app, loop)
    finally:
        asyncio.run_coroutine_threadsafe(context.__aexit__(None, None, None), loop).result(_START_S)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def fuzz(app: OnItsLoop, *, each: int, within_s: float, number: int = 0) -> None:
    """At most `each` requests to every operation. `number`: the seed.

    Raises for a status of 500 or more, and for a status, header, media type or body that the document does not have.
    """
    stop_at = time.monotonic() + within_s
    for result in _schema(app).get_all_operations():
        operation = result.ok()

        @seed(number)
        @_examples(each)
        @given(case=operation.as_strategy())
        def call(case: Any) -> None:
            if time.monotonic() < stop_at:
                case.call_and_validate(app=app, checks=_AS_DOCUMENTED)

        call()


def follow(app: OnItsLoop, *, chains: int, steps: int, number: int = 0) -> None:
    """`chains` of at most `steps` requests each. Raises for an answer of the status 500 or more."""
    schema = _schema(app)
    schema.app = app

    class Chains(schema.as_state_machine()):  # type: ignore[misc]
        def validate_response(self, response: Any, case: Any, *arguments: Any, **options: Any) -> None:
            case.validate_response(response, checks=[not_a_server_error])

    for first in range(0, chains, _CHAINS_OF_A_RUN):
        size = min(_CHAINS_OF_A_RUN, chains - first)
        with suppress(FlakyStrategyDefinition):  # answers depend on what earlier chains have stored: it ends this run
            chosen = settings(_examples(size), stateful_step_count=steps)
            run_state_machine_as_test(seed(number + first)(Chains), settings=chosen)


def _schema(app: OnItsLoop) -> Any:
    return schemathesis.openapi.from_dict(app.app.openapi())


def _examples(number: int) -> settings:
    return settings(
        max_examples=number, deadline=None, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
