"""A bundle is loaded beside the one that answers, and one call switches: no request is lost, none sees half of each."""

import asyncio
import contextlib
import gc
import weakref
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from httpx2 import ASGITransport, AsyncClient
from redis.asyncio import Redis

from model_store.files import read_manifest
from service.__main__ import main
from service.app import create_app
from service.engine.messages import ModelOptions
from service.garbage import leave_out_what_is_open
from service.metrics import Metrics
from service.remote import RemoteError
from service.resources import Resources, open_resources
from service.store.embedded.server import EmbeddedServer
from tests.conftest import write_bundle
from tests.service.real import ModelThread, history, settings_for

pytestmark = pytest.mark.usefixtures("raw")
USERS = [f"u{number}" for number in range(6)]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three bundles with the same items and other weights, so in other spaces, and one that cannot be read."""
    directory = tmp_path_factory.mktemp("bundles")
    for seed, name in enumerate(("first", "second", "third")):
        write_bundle(directory / name, seed=seed)
    write_bundle(directory / "broken", seed=9)
    (directory / "broken" / "retriever.safetensors").write_bytes(b"damaged")
    return directory


@asynccontextmanager
async def replica(root: Path, url: str, **settings: Any) -> AsyncIterator[tuple[Resources, AsyncClient]]:
    def spawn(connection: Any, options: ModelOptions) -> ModelThread:
        return ModelThread()(connection, options)

    chosen = settings_for(root / "first", url, **{"bundles_dir": root, "encode_in_process": True} | settings)
    app = create_app(chosen, partial(open_resources, spawn=spawn))
    async with (
        app.router.lifespan_context(app),
        AsyncClient(transport=ASGITransport(app=app), base_url="http://test", timeout=60) as client,
    ):
        yield app.state.resources, client


async def until(condition: Callable[[], Any], seconds: float = 30) -> None:
    async with asyncio.timeout(seconds):
        while not await condition():
            await asyncio.sleep(0.02)


async def status_of(client: AsyncClient, name: str) -> str | None:
    found = (await client.get("/bundles")).json()["bundles"]
    return next((each["status"] for each in found if each["name"] == name), None)


async def is_ready(client: AsyncClient, name: str) -> bool:
    return await status_of(client, name) in ("ready", "failed")


async def load(client: AsyncClient, directory: str, **fields: Any) -> None:
    answer = await client.post("/bundles", json={"directory": directory, **fields})
    assert answer.status_code == 202, answer.text
    await until(lambda: is_ready(client, fields.get("name", directory)))


async def post_history(client: AsyncClient, *, wait: str = "visible") -> None:
    for user_id in USERS:
        answer = await client.post("/interactions", json={"interactions": history(9, user_id), "wait": wait})
        assert answer.is_success


async def recommend(client: AsyncClient, user_id: str) -> dict[str, Any]:
    answer = await client.post("/recommend", json={"user_id": user_id, "k": 5, "deadline_ms": 30_000})
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


def essence(answer: dict[str, Any]) -> tuple[Any, ...]:
    """What must come from one bundle: its space, items and scores, and the memory that was used."""
    items = [(item["item_id"], item["score"] and round(item["score"], 2)) for item in answer["items"]]
    return answer["model"]["space"], items, sorted(each["event_id"] for each in answer["memory"])


async def test_a_switch_under_load_loses_no_request_and_mixes_no_answer(root: Path, valkey: EmbeddedServer) -> None:
    spaces = {name: read_manifest(root / name).space for name in ("first", "second")}
    async with replica(root, valkey.url) as (_, client):
        await post_history(client)
        expected = {(spaces["first"], user): essence(await recommend(client, user)) for user in USERS}
        await load(client, "second")
        answers: list[tuple[str, dict[str, Any]]] = []
        is_over = False

        async def caller(user_id: str) -> None:
            while not is_over:
                answers.append((user_id, await recommend(client, user_id)))

        async def switch() -> None:
            nonlocal is_over
            for call in ("/bundles/second:activate", "/bundles:rollback", "/bundles:rollback"):
                assert (await client.post(call)).status_code == 200
                await asyncio.sleep(0.3)
            is_over = True

        await asyncio.gather(switch(), *(caller(user_id) for user_id in USERS * 3))
        expected |= {(spaces["second"], user): essence(await recommend(client, user)) for user in USERS}
    served = {answer["model"]["space"] for _, answer in answers}
    assert served == set(spaces.values()), "not both bundles answered"
    assert expected[spaces["first"], "u0"] != expected[spaces["second"], "u0"], "the bundles cannot be told apart"
    for user_id, answer in answers:
        wanted = expected[answer["model"]["space"], user_id]
        assert answer["fallback"] is None and essence(answer) == wanted, "an answer is not that of its bundle alone"


async def test_memory_is_filled_before_a_bundle_may_answer(root: Path, valkey: EmbeddedServer, raw: Redis) -> None:
    space = read_manifest(root / "second").space
    async with replica(root, valkey.url) as (_, client):
        await post_history(client)
        await load(client, "second")
        assert [await raw.hlen(f"automr:{{{user}}}:states:{space}") for user in USERS] == [9] * len(USERS)
        late = {"interactions": [{**history(10, "u0")[-1], "event_id": "late"}]}
        await client.post("/interactions", json=late)

        async def is_there() -> bool:
            return await raw.hlen(f"automr:{{u0}}:states:{space}") == 10

        await until(is_there)  # an event that comes after the filling becomes memory in both spaces
        listing = (await client.get("/bundles")).json()
    shown = {each["name"]: each for each in listing["bundles"]}
    assert shown["second"]["fill"] == {"users": 6, "total": 6, "states": 54, "is_done": True}
    assert listing["active"] == "configured" and shown["configured"]["status"] == "active"


async def test_a_bundle_whose_memory_is_not_filled_answers_only_by_force(root: Path, valkey: EmbeddedServer) -> None:
    async with replica(root, valkey.url, encode_in_process=False) as (_, client):
        await client.post("/bundles", json={"directory": "second"})

        async def is_filling() -> bool:
            return await status_of(client, "second") == "filling"

        await until(is_filling)
        refused = await client.post("/bundles/second:activate")
        assert refused.status_code == 409 and "does not know all memory" in refused.json()["detail"]
        forced = await client.post("/bundles/second:activate?force=true")
        assert forced.status_code == 200 and forced.json()["active"] == "second"


async def test_replicas_follow_and_a_restart_keeps_the_bundle(root: Path, valkey: EmbeddedServer) -> None:
    space = read_manifest(root / "second").space
    async with replica(root, valkey.url) as (_, client), replica(root, valkey.url) as (_, other):
        await load(client, "second")
        await until(lambda: is_ready(other, "second"))
        await client.post("/bundles/second:activate")

        async def follows() -> bool:
            return bool((await other.get("/model")).json()["space"] == space)

        await until(follows, 5)
    async with replica(root, valkey.url) as (_, client):
        assert (await client.get("/model")).json()["space"] == space
        back = await client.post("/bundles:rollback")
        assert back.json()["active"] == "configured"
        assert (await client.get("/model")).json()["space"] == read_manifest(root / "first").space


async def test_a_bundle_that_is_gone_does_not_prevent_a_start(root: Path, valkey: EmbeddedServer, raw: Redis) -> None:
    await raw.set("automr:bundles", '{"version": 3, "active": "gone", "loaded": {"gone": {"directory": "gone"}}}')
    async with replica(root, valkey.url) as (_, client):
        listing = (await client.get("/bundles")).json()
        assert {each["name"]: each["status"] for each in listing["bundles"]} == {
            "configured": "active",
            "gone": "failed",
        }
        assert (await recommend(client, "u0"))["items"]


async def test_what_cannot_be_loaded_or_activated_says_why(root: Path, valkey: EmbeddedServer) -> None:
    async with replica(root, valkey.url) as (_, client):
        for directory, status in (("nowhere", 404), ("../first", 409), ("/etc", 409), (".", 409)):
            answer = await client.post("/bundles", json={"directory": directory, "name": "x"})
            assert answer.status_code == status, directory
        assert (await client.post("/bundles/unknown:activate")).status_code == 404
        assert (await client.post("/bundles:rollback")).status_code == 409
        await load(client, "broken")
        assert await status_of(client, "broken") == "failed"
        refused = await client.post("/bundles/broken:activate")
        assert refused.status_code == 409 and "failed to load" in refused.json()["detail"]
        assert (await client.delete("/bundles/configured")).status_code == 404
        assert (await client.delete("/bundles/broken")).status_code == 200
        assert await status_of(client, "broken") is None
    async with replica(root, valkey.url, bundles_dir=None) as (_, client):
        answer = await client.post("/bundles", json={"directory": "second"})
        assert answer.status_code == 409 and "AUTOMR_BUNDLES_DIR" in answer.json()["detail"]


async def test_an_unloaded_bundle_is_closed(root: Path, valkey: EmbeddedServer) -> None:
    async with replica(root, valkey.url) as (resources, client):
        await load(client, "second", name="s", precision="int8")
        assert resources.bundles is not None
        parts = resources.bundles.named("s")
        assert parts is not None and parts.engine.is_ready
        assert (await client.delete("/bundles/s")).status_code == 200

        async def is_closed() -> bool:
            return not parts.engine.is_ready

        await until(is_closed)
        assert await resources.store.run([("KEYS", "automr:bundles:fill:*")]) == [[]], "the next one of this name waits"


async def test_bundles_that_were_replaced_are_freed(root: Path, valkey: EmbeddedServer) -> None:
    """Also the first one, which a server takes out of what the garbage collector looks at."""
    async with replica(root, valkey.url) as (resources, client):
        bundles = resources.bundles
        assert bundles is not None
        del resources
        await client.put("/items/new-1", json={"title": "A new one"})
        leave_out_what_is_open()
        thresholds = gc.get_threshold()
        try:
            closed: list[tuple[str, weakref.ref[Any]]] = []
            for number, directory in enumerate(("second", "third", "first")):
                name = f"b{number}"
                parts = bundles.active
                of_this = (parts.view, parts.view.catalogue, parts.engine, parts.items, parts.recommender)
                closed += [(f"{type(part).__name__} before {directory}", weakref.ref(part)) for part in of_this]
                del parts, of_this
                await load(client, directory, name=name)
                await client.post("/recommend", json={"user_id": "u0", "k": 3})
                await client.get("/items", params={"query": "red"})
                assert (await client.post(f"/bundles/{name}:activate", params={"force": True})).is_success
                if number:
                    await client.delete(f"/bundles/b{number - 1}")
            left: list[str] = []

            async def is_freed() -> bool:
                await client.get("/bundles")
                left[:] = [place for place, part in closed if part() is not None]
                return not left

            with contextlib.suppress(TimeoutError):
                await until(is_freed, seconds=10)
            assert left == [], "the memory of a bundle that was closed is not free"
            assert gc.get_freeze_count() > 0
        finally:
            gc.unfreeze()
            gc.set_threshold(*thresholds)


async def test_the_command_line_loads_and_switches(
    root: Path, valkey: EmbeddedServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with replica(root, valkey.url) as (_, client):
        loop = asyncio.get_running_loop()

        class Remote:
            def __init__(self, url: str, key: str | None) -> None:
                pass

            def ask(self, method: str, path: str, body: Any = None, **query: str) -> Any:
                call = client.request(method, path, json=body, params=query)
                answer = asyncio.run_coroutine_threadsafe(call, loop).result(30)
                if answer.is_error:
                    raise RemoteError(answer.json()["detail"])
                return answer.json()

        monkeypatch.setattr("service.bundle_commands.Remote", Remote)
        monkeypatch.setattr("service.bundle_commands._LOOK_EVERY_S", 0.05)
        await client.post("/interactions", json={"interactions": history(9, "u0")})
        for words, status in ((["load", "second"], 0), (["activate", "second"], 0), (["activate", "third"], 2),
                              (["rollback"], 0), (["list"], 0)):  # fmt: skip
            assert await asyncio.to_thread(main, ["bundles", *words]) == status
    shown = capsys.readouterr()
    assert "No bundle third is loaded" in shown.err
    assert "second      active" in shown.out and shown.out.rstrip().endswith("a rollback activates: second")


async def test_metrics_name_the_bundle_that_answers(root: Path, valkey: EmbeddedServer) -> None:
    async with replica(root, valkey.url) as (resources, client):
        await load(client, "second")
        await client.post("/bundles/second:activate")
        text = (await client.get("/metrics")).text
    metrics: Metrics = resources.metrics
    assert text.count("automr_bundle_info{") == 1 and read_manifest(root / "second").space in text
    assert metrics.registry.get_sample_value("automr_bundle_switches_total") == 1
