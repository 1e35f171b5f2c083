"""Traces reach a collector over HTTP, name nobody, and neither slow requests nor keep the service from ending."""

import asyncio
import io
import json
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from httpx2 import AsyncClient, Response
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from redis.asyncio import Redis

from service import logs
from service.errors import SettingsError
from service.settings import Settings
from service.store.embedded.server import EmbeddedServer
from tests.conftest import TITLES
from tests.service.real import K, M, history, open_app
from tests.service.tracing.collector import Collector, attributes, collector

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
# FastAPI imports the API of OpenTelemetry, and the client of Redis its SDK of metrics where it is installed.
LOADS = """
import sys
from service.app import create_app
from service import commands, doctor
from service.engine import process
from service.settings import Settings
create_app(Settings.from_env({}))
ours = "opentelemetry.sdk.trace", "opentelemetry.exporter", "google.protobuf", "requests", "service.tracing.export"
print([name for name in sys.modules if name.startswith(ours)])
"""


@pytest.fixture(scope="module")
def taking() -> Iterator[Collector]:
    with collector() as opened:
        yield opened


@pytest.fixture
def found(taking: Collector) -> Collector:
    taking.bodies.clear()
    return taking


@asynccontextmanager
async def traced(
    bundle: Path, valkey: EmbeddedServer, endpoint: str, **settings: Any
) -> AsyncIterator[tuple[FastAPI, AsyncClient]]:
    async with open_app(bundle, valkey.url, otlp_endpoint=endpoint, **settings) as opened:
        yield opened


def of_caller(flag: str = "01") -> dict[str, str]:
    return {"traceparent": f"00-{TRACE}-{PARENT}-{flag}"}


async def recommend(client: AsyncClient, **headers: str) -> Response:
    answer = await client.post("/recommend", json={"user_id": "u", "deadline_ms": 20_000}, headers=headers)
    assert answer.status_code == 200 and answer.json()["fallback"] is None
    return answer


async def add_events(client: AsyncClient, **headers: str) -> None:
    body = {"interactions": history(K + M), "wait": "visible"}
    assert (await client.post("/interactions", json=body, headers=headers)).status_code == 200


def below(spans: list[Span], parent: Span) -> list[str]:
    children = [span for span in spans if span.parent_span_id == parent.span_id]
    return [span.name for span in sorted(children, key=lambda span: span.start_time_unix_nano)]


def test_without_the_setting_no_library_is_loaded() -> None:
    loaded = subprocess.run([sys.executable, "-c", LOADS], check=True, capture_output=True, text=True).stdout
    assert loaded.strip() == "[]", f"loaded without AUTOMR_OTLP_ENDPOINT: {loaded}"


async def test_a_request_is_traced_from_http_through_store_and_model(
    bundle_path: Path, valkey: EmbeddedServer, raw: Redis, found: Collector
) -> None:
    async with traced(bundle_path, valkey, found.endpoint, encode_in_process=True) as (_, client):
        await add_events(client, **of_caller())
        answer = await recommend(client, **of_caller())
        await asyncio.to_thread(found.wait_for, lambda: found.named("recommend") and found.named("POST /recommend"))
        await asyncio.to_thread(found.wait_for, lambda: found.named("encode round"))
    (request,) = found.named("POST /recommend")
    spans = [span for span in found.all if span.trace_id.hex() == TRACE]
    assert request.parent_span_id.hex() == PARENT and request.trace_id.hex() == TRACE
    assert attributes(request) == {
        "http.request.method": "POST",
        "http.route": "/recommend",
        "http.response.status_code": 200,
        "request_id": answer.headers["x-request-id"],
    }
    assert below(spans, request) == ["memory", "model"]
    memory, model = (span for span in spans if span.parent_span_id == request.span_id)
    memory, model = (memory, model) if memory.name == "memory" else (model, memory)
    assert below(spans, memory) == ["store"], "a recommendation reads the store once"
    (job,) = [span for span in found.spans["automr-model"] if span.parent_span_id == model.span_id]
    stages = below(spans, job)
    timings = answer.json()["timings_ms"]
    assert job.name == "recommend" and stages == [name for name in timings if name not in ("memory", "total")]
    for stage in (span for span in spans if span.parent_span_id == job.span_id and span.name != "queue"):
        milliseconds = (stage.end_time_unix_nano - stage.start_time_unix_nano) / 1e6
        assert milliseconds == pytest.approx(timings[stage.name], abs=0.01), stage.name
    (added,) = found.named("POST /interactions")
    assert below(spans, added)[:2] == ["validate", "store"]
    assert [span.name for span in found.spans["automr-model"] if span.name == "encode"], "encoding is not traced"


async def test_the_caller_decides_whether_a_trace_is_recorded_and_else_the_ratio(
    bundle_path: Path, valkey: EmbeddedServer, raw: Redis, found: Collector
) -> None:
    async with traced(bundle_path, valkey, found.endpoint, trace_ratio=0) as (_, client):
        await add_events(client)
        await recommend(client)
        await recommend(client, traceparent="00-nonsense")
        await recommend(client, **of_caller())
    assert [span.name for span in found.all if span.name.startswith("POST")] == ["POST /recommend"]
    found.bodies.clear()
    async with traced(bundle_path, valkey, found.endpoint, trace_ratio=1) as (_, client):
        await recommend(client, **of_caller("00"))
        assert (await client.get("/livez")).status_code == 200
        await recommend(client)
    (request,) = [span for span in found.all if span.name.startswith(("POST", "GET"))]
    assert not request.parent_span_id and request.trace_id.hex() != TRACE


async def test_no_span_names_a_user_an_item_a_title_or_a_query(
    bundle_path: Path, valkey: EmbeddedServer, raw: Redis, found: Collector
) -> None:
    words = {"user_id": "somebody-special", "query": "a very private wish", "session_id": "session-of-somebody"}
    names = ("event-of-somebody", "nobody", "item-of-somebody", "nonsense", "Nobody", "cookie")
    async with traced(bundle_path, valkey, found.endpoint, encode_in_process=True) as (_, client):
        event = {**words, "event_id": "event-of-somebody", "item_id": "i3", "timestamp": 1_700_000_000, "value": 4.25}
        await client.post("/interactions", json={"interactions": [event], "wait": "visible"})
        await client.get("/users/somebody-special", headers={"cookie": "a-cookie"})
        await client.get("/users/nobody-in%20particular?limit=7")
        await client.post("/recommend", json={"user_id": "somebody-special", "recent": [{"item_id": "i4"}]})
        await client.post("/recommend", json={"user_id": "somebody-special", "query": "a very private wish"})
        await client.post("/recommend", json={"nonsense-of-somebody": 1})
        await client.put("/items/item-of-somebody", json={"title": "A Title Nobody Should See"})
        await client.delete("/users/somebody-special")
    sent = b"".join(found.bodies)
    assert len(found.all) > 20, f"the trace is incomplete: {sorted(span.name for span in found.all)}"
    for secret in (*words.values(), *names, *TITLES):
        assert secret.encode() not in sent, f"{secret!r} is in the spans"
    assert {attributes(span).get("http.route") for span in found.all} >= {"/users/{user_id}", "/items/{item_id}"}


async def test_lines_of_the_log_and_the_trace_name_each_other(
    bundle_path: Path, valkey: EmbeddedServer, raw: Redis, found: Collector
) -> None:
    stream = io.StringIO()
    logs.configure(stream=stream)
    async with traced(bundle_path, valkey, found.endpoint) as (_, client):
        problem = (await client.get("/users/nobody")).json()
        await client.get("/users/nobody", headers=of_caller("00"))
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    (line, other) = [line for line in lines if line["event"] == "request"]
    (span,) = found.named("GET /users/{user_id}")
    assert line["trace_id"] == span.trace_id.hex()
    assert line["request_id"] == problem["request_id"] == attributes(span)["request_id"]
    assert "trace_id" not in other, "a trace that is not recorded cannot be looked up"


async def test_failures_are_told_by_kind(
    bundle_path: Path, valkey: EmbeddedServer, raw: Redis, found: Collector
) -> None:
    async with traced(bundle_path, valkey, found.endpoint) as (_, client):
        await raw.set("automr:{u}:events", "of a wrong type")
        assert (await client.get("/users/u")).status_code == 500
    (span,) = found.named("GET /users/{user_id}")
    assert span.status.code == Status.STATUS_CODE_ERROR and attributes(span)["error.type"] == "500"
    failed = [span for span in found.named("store") if span.status.code == Status.STATUS_CODE_ERROR]
    assert {attributes(span)["error.type"] for span in failed} == {"StoreCorrupt"}
    assert not any(span.events for span in found.all), "the text of an exception may hold data of a user"


@pytest.mark.parametrize("collector_is", ["hanging", "away"])
async def test_a_collector_that_does_not_answer_slows_nothing(
    collector_is: str, bundle_path: Path, valkey: EmbeddedServer, raw: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.tracing.export._SEND_S", 1.0)
    with collector() as taking:
        taking.hangs.set()
        endpoint = taking.endpoint if collector_is == "hanging" else "http://127.0.0.1:9"
        async with traced(bundle_path, valkey, endpoint) as (_, client):
            await add_events(client)
            if collector_is == "hanging":
                assert await asyncio.to_thread(taking.asked.wait, 10), "nothing was sent"
            times = []
            for _ in range(40):
                began = time.perf_counter()
                await recommend(client)
                times.append(time.perf_counter() - began)
            stopping = time.perf_counter()
        stopped_s = time.perf_counter() - stopping
    for thread in threading.enumerate():
        if thread.name == "traces-end":  # the library draws pauses from `random`, which would disturb later tests
            await asyncio.to_thread(thread.join, 20)
    assert sorted(times)[20] < 0.5, f"the median request took {sorted(times)[20]:.2f} s"
    assert stopped_s < 5, f"the stop took {stopped_s:.1f} s"


@pytest.mark.parametrize("endpoint", ["collector:4318", "ftp://collector", "http://", "http://me:secret@collector"])
def test_a_wrong_endpoint_is_named_without_its_text(endpoint: str) -> None:
    with pytest.raises(SettingsError, match="AUTOMR_OTLP_ENDPOINT: must be the URL of a collector") as caught:
        Settings.from_env({"AUTOMR_OTLP_ENDPOINT": endpoint})
    assert "secret" not in str(caught.value)
