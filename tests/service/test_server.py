"""The service as a process: banner, shutdown, exit codes, messages on stderr."""

import os
import random
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import httpx2
import pytest

from service.errors import StartupError
from service.server import bound_socket
from service.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
ONE_EVENT = {"interactions": [{"user_id": "u", "item_id": "i", "timestamp": 1}]}
ENVIRONMENT = {name: text for name, text in os.environ.items() if not name.startswith("AUTOMR_")}
PROGRAM = """
import asyncio
import os
import signal
from service import logs
from service.server import serve
from service.settings import Settings
from tests.service import standins

answer = standins.Recommender.recommend

async def slowly(self, request):
    if request.user_id == "u":  # not the banner's
        print("asked", flush=True)
        await asyncio.sleep(0.5)
    return await answer(self, request)

standins.Recommender.recommend = slowly
settings = Settings.from_env({"AUTOMR_LAME_DUCK_S": "0"} | dict(os.environ), port=0)
logs.configure(level=settings.log_level)
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # tests may run under nohup
raise SystemExit(serve(settings, with_banner=True, resources_factory=standins.open_standins))
"""


@contextmanager
def running(program: str = PROGRAM, **environment: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server with stand-ins, and its address from the banner."""
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=ENVIRONMENT | environment,
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


def test_the_page_is_shown_on_a_desktop_and_nowhere_else(tmp_path: Path) -> None:
    """The browser is a program that writes down what it is asked to show."""
    shown, browser = tmp_path / "shown", tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\nprintf %s "$1" > {shown}.new && mv {shown}.new {shown}\nexec sleep 60\n')
    browser.chmod(0o755)
    program = PROGRAM.replace("with_banner=True", "with_banner=True, show_page=open_on_desktop")
    program = "from service.__main__ import open_on_desktop" + program
    with running(program, BROWSER=f"{browser} %s") as (_, address):
        deadline = time.monotonic() + 20
        while not shown.exists():
            assert time.monotonic() < deadline, "the page was not opened"
            time.sleep(0.05)
        assert shown.read_text() == address
        assert httpx2.get(f"{address}/livez").status_code == 200, "the server waits for the browser"
    shown.unlink()
    headless = {"DISPLAY": "", "WAYLAND_DISPLAY": "", "BROWSER": "", "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    browser.rename(tmp_path / "www-browser")
    with running(program, **headless) as (_, address):
        assert httpx2.get(f"{address}/livez").status_code == 200
    assert not shown.exists(), "a browser was opened without a desktop"


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
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
        assert process.stderr and f'"signal":"{stop.name}"' in process.stderr.read()


def test_a_server_seldom_looks_at_objects_and_never_at_those_of_the_start() -> None:
    report = (
        "import atexit, gc; atexit.register(lambda: print(gc.get_threshold()[0], gc.get_freeze_count(), flush=True))"
    )
    with running(report + PROGRAM) as (process, _):
        process.send_signal(signal.SIGTERM)
        assert process.stdout
        threshold, num_frozen = map(int, process.stdout.read().splitlines()[-1].split())
        assert threshold > 10_000 and num_frozen > 10_000


def test_the_description_of_the_api_is_made_before_the_first_request(tmp_path: Path) -> None:
    program = f"""
from service.http.describe import openapi
make = openapi.document
openapi.document = lambda app: open({str(tmp_path / "made")!r}, "a").write("once ") and make(app)
"""
    with running(program + PROGRAM) as (_, address):
        assert (tmp_path / "made").read_text() == "once "
        assert httpx2.get(f"{address}/openapi.json").is_success and httpx2.get(f"{address}/keys/x").status_code == 405
    assert (tmp_path / "made").read_text() == "once "


def test_a_lame_duck_is_not_ready_but_answers_new_connections_and_closes_them() -> None:
    with running(AUTOMR_LAME_DUCK_S="3") as (process, address):
        with httpx2.Client() as client:
            assert "connection" not in client.get(f"{address}/livez").headers
            process.send_signal(signal.SIGTERM)
            while (ready := httpx2.get(f"{address}/readyz")).is_success:
                time.sleep(0.01)
            assert ready.status_code == 503
            time.sleep(1)  # a balancer has not yet seen it
            kept, new = client.get(f"{address}/livez"), httpx2.post(f"{address}/recommend", json={"user_id": "u"})
        assert [each.status_code for each in (kept, new)] == [200, 200]
        assert [each.headers["connection"] for each in (kept, new)] == ["close", "close"]
        assert process.wait(10) == 0


def test_a_request_that_takes_too_long_for_the_stop_is_answered_with_503() -> None:
    program = PROGRAM.replace("asyncio.sleep(0.5)", "asyncio.sleep(60)")
    with running(program, AUTOMR_DRAIN_S="2") as (process, address):
        answers: list[httpx2.Response] = []
        asking = threading.Thread(
            target=lambda: answers.append(httpx2.post(f"{address}/recommend", json={"user_id": "u"}, timeout=10))
        )
        asking.start()
        assert process.stdout and any("asked" in line for line in process.stdout)
        process.send_signal(signal.SIGTERM)
        asking.join()
        assert [answer.json()["title"] for answer in answers] == ["Shutting down"]
        assert process.wait(5) == 0


def test_what_hangs_at_the_stop_is_ended_by_force() -> None:
    program = PROGRAM.replace("await asyncio.sleep(0.5)", "import time; time.sleep(60)")
    with running(program, AUTOMR_DRAIN_S="1") as (process, address):
        asking = threading.Thread(target=lambda: post_in_vain(f"{address}/recommend"))
        asking.start()
        assert process.stdout and any("asked" in line for line in process.stdout)
        process.send_signal(signal.SIGTERM)
        assert process.wait(5) == 1
        assert process.stderr and "in slowly" in process.stderr.read(), "nobody learns what hung"
        asking.join()


def post_in_vain(url: str) -> None:
    with pytest.raises(httpx2.TransportError):
        httpx2.post(url, json={"user_id": "u"}, timeout=10)


def test_a_stop_ends_by_force_although_nobody_reads_the_log() -> None:
    program = PROGRAM.replace("await asyncio.sleep(0.5)", "sys.stderr.write('x' * 10**6)")
    with running(program.replace("import os", "import os, sys"), AUTOMR_DRAIN_S="1") as (process, address):
        asking = threading.Thread(target=lambda: post_in_vain(f"{address}/recommend"))
        asking.start()
        assert process.stdout and any("asked" in line for line in process.stdout)
        time.sleep(0.3)  # until the write blocks: Python runs no handler of a signal that comes right before
        process.send_signal(signal.SIGTERM)
        assert process.wait(5) == -signal.SIGALRM
        asking.join()


def test_a_rolling_restart_under_load_loses_no_request() -> None:
    answered, lost = rolling_stops(1)
    assert answered > 100 and not lost


def rolling_stops(num_stops: int, *, num_callers: int = 6) -> tuple[int, list[str]]:
    """Replaces a server `num_stops` times while callers send requests to servers that were ready 0.1 s ago.

    Returns the number of answers with status 200, and what became of the other requests.
    """
    serving: dict[str, bool] = {}  # address -> was ready at the last look
    lost: list[str] = []
    answered = [0] * num_callers
    is_over = threading.Event()

    def look() -> None:
        with httpx2.Client() as client:
            while not is_over.wait(0.1):
                for address in list(serving):
                    try:
                        serving[address] = client.get(f"{address}/readyz").is_success
                    except httpx2.TransportError:
                        serving[address] = False

    def call(caller: int) -> None:
        with httpx2.Client() as client:
            while not is_over.is_set():
                address = random.choice([address for address, is_ready in serving.items() if is_ready])
                try:
                    status = client.post(f"{address}/interactions", json=ONE_EVENT).status_code
                except httpx2.TransportError as error:
                    lost.append(repr(error))
                else:
                    answered[caller] += status == 202
                    lost.extend([str(status)] if status != 202 else [])

    threads = [threading.Thread(target=call, args=(number,)) for number in range(num_callers)]
    threads.append(threading.Thread(target=look))
    with ExitStack() as stack:
        process, address = stack.enter_context(running(AUTOMR_LAME_DUCK_S="2", AUTOMR_LOG_LEVEL="error"))
        serving[address] = True
        stack.callback(is_over.set)
        for thread in threads:
            thread.start()
        for _ in range(num_stops):
            successor, its_address = stack.enter_context(running(AUTOMR_LAME_DUCK_S="2", AUTOMR_LOG_LEVEL="error"))
            serving[its_address] = True
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
            serving.pop(address)
            process, address = successor, its_address
        is_over.set()
        for thread in threads:
            thread.join()
    return sum(answered), lost


def test_the_second_signal_does_not_wait() -> None:
    with running(AUTOMR_LAME_DUCK_S="15") as (process, address):
        process.send_signal(signal.SIGTERM)
        while httpx2.get(f"{address}/readyz").is_success:
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        assert process.wait(5) == 0


def test_more_silent_connections_than_files_do_not_keep_a_caller_out() -> None:
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(1024, allowed[1]), allowed[1]))
    limit = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (128, 256))"
    with ExitStack() as stack:
        process, address = stack.enter_context(running(limit + PROGRAM))
        host, port = address.removeprefix("http://").split(":")
        for _ in range(300):
            stack.enter_context(socket.create_connection((host, int(port))))
        deadline = time.monotonic() + 10
        while not is_alive(address):
            assert time.monotonic() < deadline, "an outage"
        metrics = httpx2.get(f"{address}/metrics").text
        assert "automr_max_open_files 256.0" in metrics and 'closed_connections_total{reason="silent"}' in metrics
        process.kill()
        assert process.stderr and '"event":"connections closed"' in process.stderr.read()


def test_an_unused_connection_is_kept_as_long_as_the_setting_says() -> None:
    assert Settings.from_env({}).keep_alive_s > 60, "balancers close theirs after 60 s: they must be the first"
    with running(AUTOMR_KEEP_ALIVE_S="1") as (_, address):
        host, port = address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=4) as connection:
            connection.sendall(b"GET /livez HTTP/1.1\r\nHost: test\r\n\r\n")
            answer, began = connection.makefile("rb"), time.monotonic()
            assert answer.readline().startswith(b"HTTP/1.1 200")
            assert answer.read().endswith(b'{"status":"ok"}'), "it ends when the connection does"
            assert 0.8 < time.monotonic() - began < 3


def test_many_unfinished_bodies_cost_bounded_memory() -> None:
    """300 callers send nearly all of a body of 960 KiB, and then wait."""
    head = b"POST /interactions HTTP/1.1\r\nHost: t\r\nContent-Type: application/json\r\nContent-Length: 983040\r\n\r\n"
    with ExitStack() as stack:
        process, address = stack.enter_context(running(AUTOMR_MAX_BODIES_BYTES=str(16 << 20)))
        before = resident_mib(process.pid)
        host, port = address.removeprefix("http://").split(":")
        for _ in range(300):
            connection = stack.enter_context(socket.create_connection((host, int(port)), timeout=2))
            with suppress(OSError):  # refused while it sends
                connection.sendall(head + b" " * 900_000)
        assert httpx2.get(f"{address}/livez").is_success
        assert resident_mib(process.pid) - before < 100, "it grows with the number of callers"
        assert 'rejected_total{reason="Overloaded"}' in httpx2.get(f"{address}/metrics").text


def resident_mib(pid: int) -> float:
    (line,) = [each for each in Path(f"/proc/{pid}/status").read_text().splitlines() if each.startswith("VmRSS")]
    return int(line.split()[1]) / 1024


def is_alive(address: str) -> bool:
    try:
        return httpx2.get(f"{address}/livez").is_success
    except httpx2.TransportError:
        return False


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
