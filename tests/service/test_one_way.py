"""From handler to answer, a recommendation takes few different ways from one of our modules into another.

A way counts once, however often it is taken: the events of a user are looked up one by one, like in a dict.
"""

import asyncio
import contextvars
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from httpx2 import AsyncClient
from redis.asyncio import Redis

from service.store.embedded.server import EmbeddedServer
from tests.conftest import TITLES, small_voices, write_bundle
from tests.service.real import K, M, history, open_app

ROOT = Path(__file__).resolve().parents[2]
OURS = tuple(str(ROOT / package) for package in ("service", "model_store"))
HANDLER = str(ROOT / "service" / "http" / "routes" / "recommend.py"), "recommend"
# Four of them are for spans, four ask whether records are sealed, two let a greedy key wait, one writes the list later.
MAX_CROSSINGS = 50

is_recorded: contextvars.ContextVar[bool] = contextvars.ContextVar("is_recorded", default=False)


class Recorder:
    """The first entries of our functions in this thread, in tasks of the recorded request, after the handler began."""

    def __init__(self) -> None:
        self.crossings: dict[tuple[str, str], None] = {}  # in order, each once: modules of the caller and the called
        self._frames: list[FrameType] = []  # kept, so that no two have one id
        self._known: set[int] = set()
        self._has_begun = False

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        if event != "call" or not is_recorded.get() or not is_ours(frame) or id(frame) in self._known:
            return  # a coroutine that goes on is entered again: only its first entry is a call
        self._known.add(id(frame))
        self._frames.append(frame)
        if not self._has_begun:
            self._has_begun = (frame.f_code.co_filename, frame.f_code.co_name) == HANDLER
            return
        caller = our_caller(frame)
        if caller is not None and caller.f_code.co_filename != frame.f_code.co_filename:
            self.crossings[name_of(caller), name_of(frame)] = None


def is_ours(frame: FrameType) -> bool:
    return frame.f_code.co_filename.startswith(OURS)


def our_caller(frame: FrameType) -> FrameType | None:
    """The nearest frame of ours below: libraries in between (pydantic, asyncio, contextlib) do not count."""
    below = frame.f_back
    while below is not None and not is_ours(below):
        below = below.f_back
    return below


def name_of(frame: FrameType) -> str:
    return f"{Path(frame.f_code.co_filename).relative_to(ROOT)}:{frame.f_code.co_name}"


@contextmanager
def recording() -> Iterator[Recorder]:
    recorder = Recorder()
    token = is_recorded.set(True)
    sys.setprofile(recorder)
    try:
        yield recorder
    finally:
        sys.setprofile(None)
        is_recorded.reset(token)


async def recommend(client: AsyncClient) -> dict[str, Any]:
    answer = await client.post("/recommend", json={"user_id": "u", "k": 5, "deadline_ms": 20_000})
    assert answer.status_code == 200
    return dict(json.loads(answer.content))


@pytest.mark.parametrize("has_voices", [False, True])
async def test_a_recommendation_crosses_few_modules(
    has_voices: bool, tmp_path: Path, valkey: EmbeddedServer, raw: Redis
) -> None:
    voices = small_voices(len(TITLES), recent_length=K, past_length=40) if has_voices else None
    write_bundle(tmp_path / "bundle", vocabulary="items" if has_voices else "titles", voices=voices)
    async with open_app(tmp_path / "bundle", valkey.url) as (_, client):
        body = {"interactions": history(K + M + 5), "wait": "visible"}
        assert (await client.post("/interactions", json=body)).status_code == 200
        await recommend(client)
        with recording() as recorder:
            answer = await asyncio.create_task(recommend(client))
    assert answer["fallback"] is None and len(answer["items"]) == 5
    assert all((item["reason"] is not None) == has_voices for item in answer["items"])
    listed = "\n".join(f"{caller} -> {called}" for caller, called in recorder.crossings)
    assert any("engine.py" in called for _, called in recorder.crossings), f"the trace is incomplete:\n{listed}"
    assert len(recorder.crossings) <= MAX_CROSSINGS, f"{len(recorder.crossings)} crossings:\n{listed}"
