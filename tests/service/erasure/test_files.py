"""After a deletion and a compaction no file of the store has a byte of the user; a scan of the files says so."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from redis.asyncio import Redis

from service.errors import StoreUnavailable
from service.store.client import MemoryStore
from service.store.deadletters import DeadLetter, DeadLetters
from service.store.embedded.server import EmbeddedServer
from service.store.erasure.rewrite import StoreFiles
from service.store.events import Event
from tests.service.real import NOW, history, open_app, open_service

SECRET = b"zoe-4711"  # in the user id, in each event id, in the query and in the context
KEPT = b"kept-user"


@pytest.fixture
def own(tmp_path: Path) -> Iterator[EmbeddedServer]:
    """A server whose files are ours alone, and are not compressed, so that a scan sees what is in them."""
    with EmbeddedServer(tmp_path / "store") as server:
        yield server


@pytest.fixture
async def plain(own: EmbeddedServer) -> AsyncIterator[Redis]:
    client = Redis.from_url(own.url)
    await client.config_set("rdbcompression", "no")
    yield client
    await client.aclose()


def files_with(own: EmbeddedServer, text: bytes) -> list[str]:
    found = []
    for file in own.directory.rglob("*"):
        with contextlib.suppress(FileNotFoundError, IsADirectoryError):  # the server renames and deletes files
            found += [file.name] if text in file.read_bytes() else []
    return found


async def until_no_file_has(own: EmbeddedServer, text: bytes, within_s: float = 2.0) -> None:
    """The server deletes its old files a moment after it has the new ones."""
    deadline = time.monotonic() + within_s
    while found := files_with(own, text):
        assert time.monotonic() < deadline, f"{found} still have it"
        await asyncio.sleep(0.05)


def events_of(user_id: str, count: int = 5) -> list[dict[str, object]]:
    mark = SECRET.decode() if user_id == SECRET.decode() else user_id
    return [
        {**each, "event_id": f"{mark}-{number}", "query": f"a gift, {mark}", "context": {"shop": mark}}
        for number, each in enumerate(history(count, user_id))
    ]


async def test_no_file_of_the_store_has_a_byte_of_a_deleted_user(
    bundle_path: Path, own: EmbeddedServer, plain: Redis
) -> None:
    """No worker runs, so that the encode queue holds the user; lists, pages, outcomes and a dead letter are there."""
    user = SECRET.decode()
    async with open_app(bundle_path, own.url, live_half_life_days=30) as (app, http):
        parts = app.state.resources
        for name in ("kept-user", user, "kept-user"):
            assert (await http.post("/interactions", json={"interactions": events_of(name)})).status_code == 202
        for number in range(300):  # the entries of the user are in the middle of nodes of the stream
            await parts.store.request_encoding([f"other{number}"])
            if number % 120 == 0:  # as if a worker was killed that had begun the entry before
                await plain.hdel("automr:{automr:encode}:queued", user)
                await parts.store.request_encoding([user])
        answer = (await http.post("/recommend", json={"user_id": user, "k": 3, "paged": True})).json()
        click = {"event_id": f"{user}-click", "recommendation_id": answer["recommendation_id"], "type": "click"}
        await parts.shown.stop()
        await http.post("/interactions", json={"interactions": [{**events_of(user)[0], **click}]})
        await parts.ingest.worker.reconcile([user])
        await DeadLetters(parts.store.run, is_cluster=False).add(DeadLetter(user, "a reason", NOW))
        assert (await http.post("/store:compact")).json()["status"] == "done"
        assert len(files_with(own, SECRET)) >= 1, "the scan finds nothing even in files that have it"
        receipt = (await http.delete(f"/users/{user}")).json()
        assert receipt["events"] == 6 and receipt["states"] == 6 and receipt["lists"] == 1 and receipt["live_counts"]
        assert receipt["requests"] == 4 and receipt["dead_letters"] == 1
        page = (await http.get("/deletions")).json()["deletions"]
        assert page[0]["receipt_id"] == receipt["receipt_id"] and not page[0]["is_erased"]
        assert (await http.post("/store:compact")).json() == {
            "status": "done", "nodes": 1, "replicas": 0, "unfinished": 0,
        }  # fmt: skip
        await until_no_file_has(own, SECRET)
        assert files_with(own, KEPT)
        (deletion,) = (await http.get("/deletions")).json()["deletions"]
        assert deletion["is_erased"] and user not in json.dumps(deletion)
        late = await http.post("/interactions", json={"interactions": events_of(user)})
        assert late.status_code == 422 and "recreate" in late.json()["results"][0]["reason"]
        assert (await http.post("/recommend", json={"user_id": user, "paged": True})).json()["items"]
        await asyncio.sleep(0.1)
        assert files_with(own, SECRET) == [], "a late retry or a request wrote the user's id again"
        assert await parts.store.backlog() >= 300 and await plain.xlen("automr:encode") >= 300


async def test_files_are_rewritten_by_themselves_within_the_stated_time(
    bundle_path: Path, own: EmbeddedServer, plain: Redis
) -> None:
    async with open_service(bundle_path, own.url, erasure_minutes=2 / 60) as service:
        await service.submit(events_of(SECRET.decode()), "visible")
        await service.users.forget(SECRET.decode())
        assert files_with(own, SECRET)
        await until_no_file_has(own, SECRET, within_s=10)


async def test_snapshots_are_rewritten_too(own: EmbeddedServer, plain: Redis) -> None:
    store = await MemoryStore.connect(own.url)
    await store.append([Event(f"e{number}", SECRET.decode(), "i", number) for number in range(5)])
    await plain.bgsave()
    while (await plain.info("persistence"))["rdb_bgsave_in_progress"]:
        await asyncio.sleep(0.02)
    assert "dump.rdb" in files_with(own, SECRET)
    await store.forget_user(SECRET.decode())
    assert (await StoreFiles(store).rewrite()).status == "done"
    await until_no_file_has(own, SECRET)
    await store.close()


async def test_a_store_that_does_not_allow_it_is_told(own: EmbeddedServer, plain: Redis, bundle_path: Path) -> None:
    await plain.execute_command("ACL SETUSER default -bgrewriteaof")
    async with open_app(bundle_path, own.url) as (_, http):
        assert (await http.delete("/users/u")).status_code == 200
        assert (await http.post("/store:compact")).json()["status"] == "not_allowed"
        assert not (await http.get("/deletions")).json()["deletions"][0]["is_erased"]
    await plain.execute_command("ACL SETUSER default +bgrewriteaof")
    store = await MemoryStore.connect(own.url)
    assert (await StoreFiles(store).look()).unwritten_since, "nobody knows any more that bytes are left"
    await store.close()


async def test_the_command_compacts_a_store_that_no_server_uses(own: EmbeddedServer, tmp_path: Path) -> None:
    store = await MemoryStore.connect(own.url)
    await store.append([Event("e", SECRET.decode(), "i", 1)])
    await store.forget_user(SECRET.decode())
    await store.close()
    own.stop()
    command = [sys.executable, "-m", "service", "compact", "--store", f"embedded:{own.directory}"]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and json.loads(done.stdout)["status"] == "done", done.stderr
    await until_no_file_has(own, SECRET)


@pytest.mark.parametrize("part", ["begin", "forget_user", "finish"])
async def test_a_deletion_that_is_killed_goes_on(
    bundle_path: Path, own: EmbeddedServer, plain: Redis, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = SECRET.decode()

    async def killed(*args: object) -> object:
        raise StoreUnavailable("killed")

    monkeypatch.setattr("service.store.erasure.deletions._GO_ON_AFTER_S", 0)
    async with open_service(bundle_path, own.url) as service:
        await service.submit(events_of(user), "visible")
        eraser = service.eraser
        await eraser.stop()
        with monkeypatch.context() as broken:
            broken.setattr(eraser.store if part == "forget_user" else eraser.deletions, part, killed)
            with pytest.raises(StoreUnavailable):
                await service.users.forget(user)
        served = (await service.store.counts(user, service.space)).events
        assert served == (0 if part == "finish" else 5), "what is deleted is deleted at once, all of it"
        if part != "begin":  # before the mark nothing has begun, and the caller got an error
            await eraser.look()
            assert (await service.store.counts(user, service.space)).events == 0
            assert await eraser.deletions.count() == 0
            await eraser.compact(None)
            await until_no_file_has(own, SECRET)


async def test_a_rewriting_that_is_killed_is_done_again(own: EmbeddedServer, plain: Redis) -> None:
    store = await MemoryStore.connect(own.url)
    files = StoreFiles(store)
    await store.append([Event("e", SECRET.decode(), "i", 1)])
    await store.forget_user(SECRET.decode())
    await plain.set("automr:{+erasure}:files:unwritten", 77)
    rewriting = asyncio.create_task(files.rewrite())
    await asyncio.sleep(0.02)
    rewriting.cancel()
    await asyncio.gather(rewriting, return_exceptions=True)
    os.kill(own.pid, signal.SIGKILL)
    async with asyncio.timeout(20):
        while True:
            try:
                assert (await files.look()).unwritten_since == 77
                break
            except StoreUnavailable:
                await asyncio.sleep(0.05)
    assert (await files.rewrite()).status == "done" and (await files.look()).unwritten_since is None
    await until_no_file_has(own, SECRET)
    await store.close()
