"""The embedded server: no acknowledged write is lost, nothing remains after a stop, a directory has one server."""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from service.errors import StoreInUse, StoreUnavailable
from service.store.client import MemoryStore
from service.store.embedded.server import EmbeddedServer
from service.store.events import Event

OWNER = textwrap.dedent("""
    import sys, time
    from pathlib import Path
    from service.store.embedded.server import EmbeddedServer
    server = EmbeddedServer(Path(sys.argv[1]))
    server.start()
    print(server.pid, server.url, flush=True)
    time.sleep(60)
""")


async def append(url: str, *names: str) -> None:
    store = await MemoryStore.connect(url)
    appended = await store.append([Event(name, "u", f"item of {name}", 1) for name in names])
    assert set(appended) == {"accepted"}
    await store.close()


async def stored_ids(url: str) -> set[str]:
    store = await MemoryStore.connect(url)
    found = {memory.event.event_id for memory in await store.recall("u", "s", 100)}
    await store.close()
    return found


def is_alive(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline, f"waited 5 s for: {what}"
        time.sleep(0.01)


def has_new_server(server: EmbeddedServer, old_pid: int) -> bool:
    return server.pid != old_pid


async def test_events_are_still_there_after_a_stop_and_a_start(tmp_path: Path) -> None:
    directory = tmp_path / "a directory with späces"
    with EmbeddedServer(directory) as server:
        await append(server.url, "e1", "e2")
    with EmbeddedServer(directory) as server:
        assert await stored_ids(server.url) == {"e1", "e2"}


def test_it_starts_quickly_and_removes_its_process_and_socket(tmp_path: Path) -> None:
    started = time.monotonic()
    server = EmbeddedServer(tmp_path)
    server.start()
    assert time.monotonic() - started < 3.0, "the embedded server started too slowly"
    pid, socket_dir = server.pid, Path(server.url.removeprefix("unix://")).parent
    assert socket_dir.stat().st_mode & 0o077 == 0, "others can reach the socket"
    assert (tmp_path / "appendonlydir").stat().st_mode & 0o077 == 0, "others can read the log"
    server.stop()
    server.stop()
    assert not is_alive(pid) and not socket_dir.exists()
    with pytest.raises(StoreUnavailable):
        _ = server.url


def test_a_directory_has_one_server(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path) as first:
        with pytest.raises(StoreInUse) as error:
            EmbeddedServer(tmp_path, lock_wait_s=0.1).start()
        assert str(tmp_path) in str(error.value) and str(first.pid) in str(error.value)
        assert is_alive(first.pid), "the refused start stopped the running server"


async def test_a_killed_server_is_restarted_with_all_acknowledged_events(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path) as server:
        pid, url = server.pid, server.url
        await append(url, "e1")
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: has_new_server(server, pid), "a new server")
        store = await MemoryStore.connect(url)
        for _ in range(500):
            try:
                await store.ping()
                break
            except StoreUnavailable:
                time.sleep(0.01)
        await store.close()
        assert await stored_ids(url) == {"e1"}


@pytest.mark.parametrize("killed", ["owner", "watcher"])
async def test_the_server_ends_when_its_owner_or_watcher_is_killed(tmp_path: Path, killed: str) -> None:
    with subprocess.Popen([sys.executable, "-c", OWNER, str(tmp_path)], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        pid, url = owner.stdout.readline().split()
        await append(url, "e1")
        os.kill(owner.pid if killed == "owner" else parent_of(int(pid)), signal.SIGKILL)
        wait_for(lambda: not is_alive(int(pid)), "the end of the server")
        owner.kill()
    with EmbeddedServer(tmp_path) as server:
        assert await stored_ids(server.url) == {"e1"}


async def test_a_killed_watcher_is_started_again_and_leaves_no_directory(tmp_path: Path) -> None:
    """At the same address, with all events, however often. Afterwards no temporary directory is left."""
    server = EmbeddedServer(tmp_path)
    server.start()
    url, socket_dir = server.url, Path(server.url.removeprefix("unix://")).parent
    await append(url, "e1")
    for _ in range(2):
        pid = server.pid
        with capture_logs() as lines:
            os.kill(parent_of(pid), signal.SIGKILL)
            wait_for(lambda before=pid: not is_alive(before), "the end of the server")  # type: ignore[misc]
            await until_it_answers(url)
        assert server.pid != pid and await stored_ids(url) == {"e1"}
        # One line, whether the kill came before or after the keeper saw that the server of the last start answers.
        told = [line["event"] for line in lines if line["log_level"] == "error"]
        assert len(told) == 1 and told[0].startswith("the embedded store "), lines
        assert Path(server.url.removeprefix("unix://")).parent == socket_dir
    server.stop()
    assert not socket_dir.exists()


async def test_damaged_files_are_told_once_and_tried_again_at_intervals(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path) as server:
        await append(server.url, "e1", "e2")
        good = max((tmp_path / "appendonlydir").glob("*.incr.aof")).read_bytes()
        max((tmp_path / "appendonlydir").glob("*.incr.aof")).write_bytes(good.replace(b"$", b"?"))
        with capture_logs() as lines:
            os.kill(server.pid, signal.SIGKILL)
            time.sleep(4)
        told = [line for line in lines if line["event"] == "the embedded store does not start, trying again"]
        assert len(told) == 1 and "docs/troubleshoot.md" in told[0]["reason"], lines
        assert (tmp_path / "valkey.log").read_text().count("Bad file format") <= 3, "tried too often"
        max((tmp_path / "appendonlydir").glob("*.incr.aof")).write_bytes(good)
        await until_it_answers(server.url)
        assert await stored_ids(server.url) == {"e1", "e2"}


async def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server ends when it cannot append to its file, and its own log is on the same disk."""
    with EmbeddedServer(tmp_path) as server, capture_logs() as lines:
        store = await MemoryStore.connect(server.url)
        store.problem_of_server = server.problem
        await store.ping()
        usage = shutil.disk_usage(tmp_path)
        monkeypatch.setattr("service.store.embedded.server.shutil.disk_usage", lambda _: usage._replace(free=4096))
        await store.ping()  # it answers, so nothing is wrong
        monkeypatch.setattr("service.store.embedded.server._binary", lambda: "/bin/false")
        os.kill(server.pid, signal.SIGKILL)
        while True:
            try:
                await store.ping()
            except StoreUnavailable as error:
                assert "its disk is full" in str(error)
                break
        while not lines:
            await asyncio.sleep(0.01)
        assert lines[0]["reason"] == "its disk is full"
        await store.close()


def test_a_server_that_hangs_is_stopped_within_seconds(tmp_path: Path) -> None:
    server = EmbeddedServer(tmp_path)
    server.start()
    pid = server.pid
    os.kill(pid, signal.SIGSTOP)
    started = time.monotonic()
    server.stop()
    assert time.monotonic() - started < 8 and not is_alive(pid)


def test_a_socket_directory_that_others_can_use_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with EmbeddedServer(tmp_path / "store") as server:
        usual = Path(server.url.removeprefix("unix://")).parent
    usual.mkdir()
    usual.chmod(0o777)
    with EmbeddedServer(tmp_path / "store") as server:
        assert Path(server.url.removeprefix("unix://")).parent != usual


def parent_of(pid: int) -> int:
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if "PPid" in line)
    return int(line.split()[1])


async def until_it_answers(url: str) -> None:
    store = await MemoryStore.connect(url)
    try:
        async with asyncio.timeout(20):
            while True:
                try:
                    return await store.ping()
                except StoreUnavailable:
                    await asyncio.sleep(0.05)
    finally:
        await store.close()


async def test_an_incomplete_end_of_the_append_only_file_is_accepted(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path) as server:
        await append(server.url, "e1")
        await append(server.url, "e2")
    log = max((tmp_path / "appendonlydir").glob("*.incr.aof"))
    log.write_bytes(log.read_bytes()[:-10])
    with EmbeddedServer(tmp_path) as server:
        assert "e1" in await stored_ids(server.url)


def test_an_invalid_append_only_file_is_reported(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path):
        pass
    (tmp_path / "appendonlydir" / "appendonly.aof.manifest").write_text("nonsense\n")
    for _ in range(2):  # the second attempt would raise StoreInUse if the first had kept the lock
        with pytest.raises(StoreUnavailable, match=r"ended at once: .*manifest"):
            EmbeddedServer(tmp_path).start()


async def test_the_directory_may_have_a_long_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = tmp_path / ("d" * 120) / ("e" * 120)
    directory.mkdir(parents=True)
    monkeypatch.setattr("tempfile.tempdir", str(directory))
    with EmbeddedServer(directory) as server:
        await append(server.url, "e1")
        assert await stored_ids(server.url) == {"e1"}


def test_a_directory_that_cannot_be_created_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreUnavailable, match="file"):
        EmbeddedServer(tmp_path / "file" / "store").start()
