"""The real process with its embedded store: what it acknowledged survives any death, and it ends as it is told."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest

from model_store.manifest import Vocabulary
from tests.conftest import BOTH_VOCABULARIES, write_bundle

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = {name: text for name, text in os.environ.items() if not name.startswith("AUTOMR_")}
NOW = 1_700_000_000


@pytest.fixture(scope="module")
def bundle(vocabulary: Vocabulary, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("end-to-end") / "bundle"
    write_bundle(path, vocabulary=vocabulary)
    return path


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def start(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "service", *arguments, "--log-level", "warning"]
    environ = ENVIRONMENT | {"OMP_NUM_THREADS": "1", "AUTOMR_THREADS": "1"} | environment
    return subprocess.Popen(command, cwd=ROOT, env=environ, text=True, stderr=subprocess.PIPE, stdout=subprocess.PIPE)


@contextmanager
def serving(bundle: Path, store: str, **environment: str) -> Iterator[tuple[subprocess.Popen[str], httpx2.Client]]:
    """A server that is ready, and never was before it was warm."""
    port = free_port()
    process = start("serve", "--bundle", str(bundle), "--store", store, "--port", str(port), **environment)
    with process, httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=10) as client:
        try:
            wait_until_ready(process, client)
            yield process, client
        finally:
            process.kill()


def wait_until_ready(process: subprocess.Popen[str], client: httpx2.Client) -> None:
    deadline = time.monotonic() + 60
    while True:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[1]
        try:
            answer = client.get("/readyz")
        except httpx2.TransportError:
            time.sleep(0.05)
            continue
        if answer.is_success:
            assert "automr_ready 1.0" in client.get("/metrics").text
            return


def events(count: int) -> list[dict[str, object]]:
    return [{"user_id": "u", "item_id": f"i{number % 9}", "timestamp": NOW + number} for number in range(count)]


def kept(client: httpx2.Client) -> int:
    page = client.get("/users/u")
    return int(page.json()["counts"]["events"]) if page.is_success else 0


def test_what_was_acknowledged_survives_a_kill_and_a_stop(bundle: Path, tmp_path: Path) -> None:
    store = f"embedded:{tmp_path / 'store'}"
    with serving(bundle, store) as (process, client):
        assert client.post("/interactions", json={"interactions": events(30)}).status_code == 202
        process.kill()
        process.wait()
    with serving(bundle, store) as (process, client):
        assert kept(client) == 30
        again = client.post("/interactions", json={"interactions": events(31), "wait": "visible"})
        assert again.status_code == 200
        assert [each["status"] for each in again.json()["results"]] == ["duplicate"] * 30 + ["accepted"]
        assert client.get("/users/u").json()["memory"], "states were made from the log"
        answer = client.post("/recommend", json={"user_id": "u", "k": 3}).json()
        assert answer["fallback"] is None and len(answer["items"]) == 3
        second = start("serve", "--bundle", str(bundle), "--store", store, "--port", str(free_port()))
        _, words = second.communicate(timeout=60)
        assert second.returncode == 2 and len(words.splitlines()) == 1 and "in use" in words, words
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0, process.communicate()[1]
    with serving(bundle, store) as (process, client):
        assert kept(client) == 31
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0, process.communicate()[1]


@BOTH_VOCABULARIES
def test_a_worker_encodes_for_a_server_that_does_not(bundle: Path, tmp_path: Path) -> None:
    from service.store.embedded.server import EmbeddedServer

    with (
        EmbeddedServer(tmp_path / "shared") as shared,
        serving(bundle, shared.url, AUTOMR_ENCODE_IN_PROCESS="false") as (_, client),
    ):
        assert client.put("/items/i3", json={"title": "A title that no bundle knows"}).is_success
        client.post("/interactions", json={"interactions": events(12)})
        wait_for(lambda: gauge(client, "encode_backlog") == 1 and gauge(client, "encode_lag_seconds") > 0)
        worker = start("worker", "--bundle", str(bundle), "--store", shared.url)
        try:
            wait_for(lambda: client.get("/users/u").json()["counts"]["states"] == 12)
            wait_for(lambda: gauge(client, "encode_backlog") == gauge(client, "encode_lag_seconds") == 0)
            assert len(client.get("/users/u").json()["memory"]) == 9, "states that the server cannot read"
        finally:
            worker.send_signal(signal.SIGTERM)
            _, words = worker.communicate(timeout=30)
        assert worker.returncode == 0, words


def gauge(client: httpx2.Client, name: str) -> float:
    lines = client.get("/metrics").text.splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(f"automr_{name} "))


def wait_for(condition: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


def test_a_corrupted_bundle_is_told_in_one_line(tmp_path: Path) -> None:
    write_bundle(tmp_path / "bad")
    items = tmp_path / "bad" / "items.jsonl"
    items.write_bytes(items.read_bytes().replace(b"Red", b"Rad"))
    process = start("serve", "--bundle", str(tmp_path / "bad"), "--store", f"embedded:{tmp_path / 's'}", "--port", "0")
    _, words = process.communicate(timeout=60)
    assert process.returncode == 2 and len(words.splitlines()) == 1 and "items.jsonl" in words, words
