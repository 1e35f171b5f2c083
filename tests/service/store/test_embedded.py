"""The embedded server: no acknowledged write is lost, nothing remains after a stop, a directory has one server."""

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

from service.errors import StoreInUse, StoreUnavailable
from service.store.client import MemoryStore
from service.store.embedded import EmbeddedServer
from service.store.events import Event

OWNER = textwrap.dedent("""
    import sys, time
    from pathlib import Path
    from service.store.embedded import EmbeddedServer
    server = EmbeddedServer(Path(sys.argv[1]))
    server.start()
    print(server.pid, server.url, flush=True)
    time.sleep(60)
""")


async def append(url: str, *names: str) -> None:
    store = await MemoryStore.connect(url)
    assert all(await store.append([Event(name, "u", f"item of {name}", 1) for name in names]))
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
        parent_line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if "PPid" in line)
        os.kill(owner.pid if killed == "owner" else int(parent_line.split()[1]), signal.SIGKILL)
        wait_for(lambda: not is_alive(int(pid)), "the end of the server")
        owner.kill()
    shutil.rmtree(Path(url.removeprefix("unix://")).parent, ignore_errors=True)  # a killed watcher does not remove it
    with EmbeddedServer(tmp_path) as server:
        assert await stored_ids(server.url) == {"e1"}


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
