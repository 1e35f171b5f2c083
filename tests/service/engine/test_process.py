"""The model in a real process: it starts, dies and starts again, and never outlives the server."""

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from redis.asyncio import Redis
from structlog.testing import capture_logs

from model_store.catalogue.items import Item
from model_store.view import BundleView
from service.engine.engine import Engine
from service.engine.messages import ModelOptions
from service.engine.process import ModelProcess, spawn
from service.errors import ModelUnavailable, StartupError
from service.metrics import Metrics
from service.store.embedded.server import EmbeddedServer
from service.tracing.spans import root
from service.tracing.traces import Traces
from tests.conftest import TITLES, small_voices, write_bundle
from tests.service.engine.forked import ForkedModel, fork
from tests.service.real import K, M, ask, history, open_service, settings_for
from tests.service.tracing.collector import collector

ROOT = Path(__file__).resolve().parents[3]
ALL = np.ones(20, dtype=bool)


@asynccontextmanager
async def running(bundle_path: Path, **settings: Any) -> AsyncIterator[tuple[Engine, BundleView]]:
    view = BundleView.open_view(bundle_path)
    engine = Engine(view, settings_for(bundle_path, "embedded:unused", **settings), Metrics(), fork)
    await engine.start()
    try:
        yield engine, view
    finally:
        await engine.stop(5)


def child_of(engine: Engine) -> ForkedModel:
    assert isinstance(engine._process, ModelProcess)
    child = engine._process._child
    assert isinstance(child, ForkedModel)
    return child


async def until(condition: Any, what: str) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, f"waited 60 s in vain for: {what}"
        await asyncio.sleep(0.05)


async def test_a_process_that_dies_is_started_again_with_the_changed_items(bundle_path: Path) -> None:
    async with running(bundle_path) as (engine, view):
        items = [Item("new", "A new thing"), Item("i1", "Another title")]
        view.catalogue = view.catalogue.with_items(items)
        engine.intake.add([1, 20])
        await engine.intake.taken_in([1, 20])
        first = child_of(engine)
        first.kill()
        await until(lambda: not engine.is_ready, "the engine to notice")
        with pytest.raises(ModelUnavailable):
            await engine.similar(0, 1, ALL)
        await until(lambda: engine.is_ready, "the process to start again")
        assert child_of(engine).pid != first.pid
        await engine.intake.taken_in([1, 20])
        found = await engine.similar(20, 21, np.ones(21, dtype=bool))
        assert sorted(row for row, _ in found) == list(range(21)), "the new item is missing after the restart"
        assert found[0][0] == 20 and found[0][1] < 1e-3


async def test_events_vote_in_the_process_as_in_a_thread(tmp_path: Path, valkey: EmbeddedServer, raw: Redis) -> None:
    """A function that the process lacks is missing only there. And its spans belong to the trace of the request."""
    voices = small_voices(len(TITLES), recent_length=K, past_length=40)
    write_bundle(tmp_path / "voiced", vocabulary="items", voices=voices)
    answers = []
    with collector() as taking:
        for in_process in (False, True):
            url = taking.endpoint if in_process else ""
            async with open_service(
                tmp_path / "voiced", valkey.url, in_process=in_process, otlp_endpoint=url
            ) as service:
                await service.submit(history(K + M + 5), "visible")
                with Traces(url).opened(), root("asked"):
                    answers.append(await ask(service, user_id="u", k=5, deadline_ms=20_000))
        await asyncio.to_thread(taking.wait_for, lambda: taking.named("recommend") and taking.named("asked"))
    assert [answer.fallback for answer in answers] == [None, None]
    assert answers[0].items == answers[1].items
    (job,) = [span for span in taking.spans["automr-model"] if span.name == "recommend"]
    (model,) = [span for span in taking.spans["automr"] if span.name == "model"]
    assert (job.trace_id, job.parent_span_id) == (model.trace_id, model.span_id), "the trace ends at the process"
    (asked,) = taking.named("asked")
    assert asked.start_time_unix_nano <= job.start_time_unix_nano <= job.end_time_unix_nano <= asked.end_time_unix_nano
    stages = [span.name for span in taking.spans["automr-model"] if span.parent_span_id == job.span_id]
    assert "queue" in stages and "generate" in stages


async def test_a_process_that_sends_nonsense_is_started_again(
    bundle_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(bundle_path) as (engine, _):
        first, count_cache = child_of(engine), engine._count_cache

        def fail(batch: Any) -> None:
            monkeypatch.setattr(engine, "_count_cache", count_cache)
            raise ValueError("a fault of the test")

        monkeypatch.setattr(engine, "_count_cache", fail)
        with pytest.raises(ModelUnavailable):
            await engine.similar(0, 1, ALL)
        await until(lambda: engine.is_ready, "the process to start again")
        assert child_of(engine).pid != first.pid and len(await engine.similar(0, 1, ALL)) == 1


async def test_a_bundle_that_was_replaced_is_not_mixed_with_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "bundle"
    write_bundle(path)
    async with running(path) as (engine, _):
        shutil.rmtree(path)
        write_bundle(path, seed=1)
        with capture_logs() as lines:
            child_of(engine).kill()
            refused = "the process of the model does not start"
            await until(lambda: any(line["event"] == refused for line in lines), "the engine to refuse the bundle")
        assert not engine.is_ready, "another bundle answers for the one that was opened"


async def test_a_process_that_hangs_while_it_has_work_is_killed(
    bundle_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.engine.engine._HUNG_AFTER_S", 0.3)
    monkeypatch.setattr("service.engine.engine._LOOK_EVERY_S", 0.1)
    async with running(bundle_path) as (engine, _):
        await asyncio.sleep(0.5)
        assert engine.is_ready, "an idle process was taken for one that hangs"
        os.kill(child_of(engine).pid, signal.SIGSTOP)
        with pytest.raises(ModelUnavailable):
            await asyncio.wait_for(engine.similar(0, 1, ALL), 20)


async def test_jobs_under_way_fail_when_the_process_dies(bundle_path: Path) -> None:
    async with running(bundle_path) as (engine, _):
        os.kill(child_of(engine).pid, signal.SIGSTOP)
        waiting = asyncio.create_task(engine.similar(0, 1, ALL))
        await asyncio.sleep(0.05)
        child_of(engine).kill()
        with pytest.raises(ModelUnavailable):
            await waiting


async def test_a_start_that_is_cancelled_at_any_moment_leaves_no_process(bundle_path: Path) -> None:
    options = ModelOptions(
        bundle=str(bundle_path),
        device="cpu",
        precision="bundle",
        threads=1,
        max_batch=4,
        max_batch_tokens=4096,
        window_cache_mib=8,
        log_level="warning",
        log_format="json",
    )
    for turns in (0, 1, 2, 3, 20):
        spawned: list[Any] = []

        def remember(connection: socket.socket, asked: ModelOptions, spawned: list[Any] = spawned) -> Any:
            spawned.append(spawn(connection, asked))
            return spawned[0]

        start = asyncio.create_task(ModelProcess.start(options, remember))
        for _ in range(1 + turns):
            await asyncio.sleep(0)
        start.cancel()
        with pytest.raises(asyncio.CancelledError):
            await start
        assert all(child.poll() is not None for child in spawned), f"a process is left after {turns} turns"


async def test_a_stopped_engine_leaves_no_process(bundle_path: Path) -> None:
    async with running(bundle_path) as (engine, _):
        child = child_of(engine)
    assert child.poll() is not None


async def test_a_process_that_hangs_is_killed(bundle_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.engine.engine._STOP_S", 0.2)
    async with running(bundle_path) as (engine, _):
        child = child_of(engine)
        os.kill(child.pid, signal.SIGSTOP)
    assert child.poll() is not None


async def test_a_bundle_that_cannot_be_served_is_told(make_bundle: Any) -> None:
    path = make_bundle()
    weights = path / "lm" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x00")
    with pytest.raises(StartupError, match=r"model\.safetensors"):
        async with running(path):
            pass


async def test_a_device_that_is_missing_is_told(bundle_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("the device is there")
    with pytest.raises(StartupError, match="AUTOMR_DEVICE"):
        async with running(bundle_path, device="cuda"):
            pass


def test_the_process_ends_when_the_server_is_killed(bundle_path: Path, tmp_path: Path) -> None:
    program = (
        "import asyncio, sys\n"
        "from pathlib import Path\n"
        "from model_store.view import BundleView\n"
        "from service.engine.engine import Engine\n"
        "from service.metrics import Metrics\n"
        "from service.settings import Settings\n"
        "async def main(path):\n"
        "    settings = Settings.from_env({}, bundle=Path(path), threads=1)\n"
        "    engine = Engine(BundleView.open_view(path), settings, Metrics())\n"
        "    await engine.start()\n"
        "    print('pid', engine._process._child.pid, flush=True)\n"
        "    await asyncio.sleep(600)\n"
        "asyncio.run(main(sys.argv[1]))\n"
    )
    command = [sys.executable, "-c", program, str(bundle_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            pid = next(int(line.split()[1]) for line in server.stdout if line.startswith("pid"))
        finally:
            server.kill()
    deadline = time.monotonic() + 20
    while is_running(pid):
        assert time.monotonic() < deadline, "the process of the model outlives its server"
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
