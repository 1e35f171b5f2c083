"""The service as a process: banner, shutdown, exit codes, messages on stderr."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest

from service.errors import StartupError
from service.server import bound_socket

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {name: text for name, text in os.environ.items() if not name.startswith("AUTOMR_")}
PROGRAM = """
import asyncio
from service import logs
from service.server import serve
from service.settings import Settings
from tests.service import standins

answer = standins.Recommender.recommend

async def slowly(self, request):
    print("asked", flush=True)
    await asyncio.sleep(0.5)
    return await answer(self, request)

standins.Recommender.recommend = slowly
logs.configure()
settings = Settings.from_env({}, port=0)
raise SystemExit(serve(settings, with_banner=True, resources_factory=standins.open_standins))
"""


@contextmanager
def running() -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server with stand-ins, and its address from the banner."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        cwd=ROOT,
        env=ENVIRONMENT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with process:
        try:
            assert process.stdout
            first = next((line for line in process.stdout if "http://" in line), "")
            found = re.search(r"http://\S+", first)
            assert found, process.stderr.read() if process.stderr else ""
            yield process, found.group()
        finally:
            process.kill()


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_server_finishes_its_requests(stop: signal.Signals) -> None:
    with running() as (process, address):
        answers: list[httpx2.Response] = []
        asking = threading.Thread(
            target=lambda: answers.append(httpx2.post(f"{address}/recommend", json={"user_id": "u"}, timeout=10))
        )
        assert httpx2.get(f"{address}/readyz").is_success
        asking.start()
        assert process.stdout and any("asked" in line for line in process.stdout)
        process.send_signal(stop)
        asking.join()
        assert process.wait(10) == 0
        assert [answer.status_code for answer in answers] == [200]


def test_the_second_signal_does_not_wait() -> None:
    with running() as (process, _):
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGTERM)
        assert process.wait(5) == 0


def service(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "service", *arguments]
    environ = ENVIRONMENT | environment
    return subprocess.run(command, cwd=ROOT, env=environ, text=True, capture_output=True, timeout=60, check=False)


def test_wrong_settings_are_one_line_each_and_exit_code_2() -> None:
    done = service("serve", "--port", "many", AUTOMR_PROT="1")
    assert done.returncode == 2
    assert [line.split(":")[1].strip() for line in done.stderr.splitlines()] == ["AUTOMR_PROT", "AUTOMR_PORT"]


@pytest.mark.parametrize("command", [("serve", "--import"), ("import",)])
def test_a_missing_import_file_is_reported_before_anything_is_loaded(tmp_path: Path, command: tuple[str, ...]) -> None:
    done = service(*command, str(tmp_path / "none.jsonl"))
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1


def test_keys_prints_a_key_and_its_entry() -> None:
    done = service("keys")
    assert done.returncode == 0
    assert re.fullmatch(r"key     amr_\S{43}\nadmit   sha256:[0-9a-f]{64}\n", done.stdout)


def test_a_busy_port_is_reported() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(StartupError, match="--port"):
        bound_socket("127.0.0.1", taken.getsockname()[1])
