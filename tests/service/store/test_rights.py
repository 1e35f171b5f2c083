"""Users of the store with the least rights: these are enough, and what is missing is named. On a real server."""

import ast
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from redis.asyncio import Redis

from service.doctor.checks import examine
from service.export.dataset import export
from service.metrics import Metrics
from service.resources import open_kernel
from service.store.client import MemoryStore
from service.store.embedded.server import EmbeddedServer
from service.store.events import Event
from service.store.servers import rights
from tests.service.cluster import ClusterOfServers
from tests.service.real import ModelThread, history, open_app, settings_for

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
async def limited(valkey: EmbeddedServer, raw: Redis) -> AsyncIterator[str]:
    """The URL of a user with the rights of a server."""
    await allow(raw, rights.SERVER)
    yield url_of(valkey)
    await raw.execute_command("ACL DELUSER automr")


async def allow(raw: Redis, commands: list[str], *more: str) -> None:
    line = rights.acl_line("automr", commands).replace("PASSWORD", "pw")
    await raw.execute_command(*line.split(), *more)
    await raw.execute_command("ACL LOG RESET")


async def refusals(raw: Redis) -> set[str]:
    """What the server has refused since `allow`."""
    return {f"{each['reason']} {each['object']}" for each in await raw.acl_log()}


def url_of(server: EmbeddedServer) -> str:
    return server.url.replace("unix://", "unix://automr@") + "?password=pw"


def called_commands() -> set[str]:
    """Commands in the scripts and in the calls of the service, in small letters."""
    found: set[str] = set()
    for file in (ROOT / "service").rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        for name, part in re.findall(r"redis\.p?call\('([A-Z]+)'(?:, '([A-Z]+)')?", text):
            found.add(f"{name}|{part}".lower() if part and name in ("XGROUP", "XINFO") else name.lower())
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Tuple | ast.Call):
                parts = node.elts if isinstance(node, ast.Tuple) else node.args
                names = [each.value for each in parts if isinstance(each, ast.Constant) and isinstance(each.value, str)]
                is_command = isinstance(node, ast.Tuple) or ast.unparse(node.func).endswith(("_call", "ask_node"))
                found |= {each.lower() for each in names if is_command and each.lower() in EVERY}
    return found


EVERY = {each for each in rights.SERVER if "|" not in each}


def test_the_lists_name_what_the_sources_call_and_nothing_else() -> None:
    called = called_commands()
    by_parts = {each for each in rights.SERVER if each.startswith(("client|", "config|"))}
    assert called - set(rights.SERVER) == set(), "a command is called that the ACL does not allow"
    assert set(rights.SERVER) - called - by_parts - {"bgsave", "bgrewriteaof", "llen"} == set(), "one is not needed"


async def test_these_rights_are_enough_for_every_kind_of_request_and_the_worker(
    bundle_path: Path, valkey: EmbeddedServer, raw: Redis, limited: str
) -> None:
    async with open_app(bundle_path, limited, encode_in_process=True, live_half_life_days=30) as (_, http):
        user, item = "/users/u", {"title": "New moon"}
        requests = [
            ("POST", "/interactions", {"interactions": history(5) + history(5, "guest"), "wait": "visible"}),
            ("POST", "/interactions", {"interactions": history(5)}),
            ("POST", "/recommend", {"user_id": "u", "k": 3}),
            ("POST", "/recommend", {"user_id": "u", "k": 4, "exploration": {"share": 0.5, "max_events": 1_000_000}}),
            ("POST", "/recommend", {"recent": [{"item_id": "i1"}], "k": 3}),
            ("PUT", "/items/new", item),
            ("PATCH", "/items/new", {"attributes": {"even": True}}),
            ("GET", "/items/new", None),
            ("GET", "/items", None),
            ("GET", "/items/i1/related", None),
            ("GET", "/popular", None),
            ("GET", "/trending", None),
            ("GET", "/latest", None),
            ("GET", "/users", None),
            ("GET", user, None),
            ("GET", f"{user}/interactions", None),
            ("GET", f"{user}/export", None),
            ("DELETE", f"{user}/interactions/e000", None),
            ("POST", "/keys", {"name": "one", "scopes": ["recommend"]}),
            ("GET", "/keys", None),
            ("GET", "/bundles", None),
            ("GET", "/event-types", None),
            ("GET", "/experiments", None),
            ("GET", "/model", None),
            ("GET", "/metrics", None),
            ("DELETE", user, None),
            ("GET", "/deletions", None),
            ("POST", "/store:compact", None),
            ("GET", "/readyz", None),
        ]
        for method, path, body in requests:
            answer = await http.request(method, path, json=body)
            assert answer.status_code < 500, f"{method} {path}: {answer.text}"
    assert not await refusals(raw), "the server has refused something"
    checks = await examine(settings_for(bundle_path / "none", limited, port=0, durability="fsync"))
    assert [each.name for each in checks if not each.is_ok] == ["bundle"], checks


async def test_an_exporter_can_read_everything_and_change_nothing(
    bundle_path: Path, valkey: EmbeddedServer, raw: Redis, store: MemoryStore, tmp_path: Path
) -> None:
    async with open_app(bundle_path, valkey.url) as (_, http):
        await http.post("/interactions", json={"interactions": history(5)})
    await allow(raw, rights.EXPORTER)
    async with open_kernel(settings_for(bundle_path, url_of(valkey)), Metrics(), spawn=ModelThread()) as kernel:
        manifest = await export(kernel.store, kernel.view.catalogue.items, tmp_path / "out")
    assert manifest["stats"]["interactions"] == 5
    assert not await refusals(raw)
    async with Redis.from_url(url_of(valkey)) as exporter:
        for command in ("SET automr:probe x", "HSET automr:{u}:events e x", "FLUSHALL", "CONFIG GET *", "ACL LIST"):
            with pytest.raises(Exception, match="no permissions"):
                await exporter.execute_command(*command.split())
    await raw.execute_command("ACL DELUSER automr")


CASES = {
    "-hset": "+hset",
    "-xgroup|create": "+xgroup|create",
    "-eval": "+eval",
    "-set -zadd": "+set, +zadd",
    "resetkeys ~automr:*": "~{automr:items}:*",
    "resetkeys ~{automr:items}:*": "~automr:*",
    "resetkeys ~automr:* %R~{automr:items}:*": "+zadd on ~{automr:items}:*",
}


async def test_a_right_that_is_missing_is_named(
    bundle_path: Path, raw: Redis, limited: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.store.connection.PROBED_FOR_S", 0)
    async with open_app(bundle_path, limited) as (_, http):
        for rules, named in CASES.items():
            await allow(raw, rights.SERVER)
            assert (await http.get("/readyz")).is_success
            await raw.execute_command("ACL SETUSER automr", *rules.split())
            answer = await http.get("/readyz")
            assert answer.status_code == 503 and named in answer.json()["detail"], answer.text
            checks = await examine(settings_for(bundle_path / "none", limited, port=0))
            (found,) = [check for check in checks if check.name == "store"]
            assert not found.is_ok and named in found.finding


async def test_a_cluster_needs_a_few_more(tmp_path: Path) -> None:
    with ClusterOfServers(tmp_path / "cluster", primaries=1, replicas_of_each=0) as servers:
        (node,) = servers.nodes
        line = rights.acl_line("automr", [*rights.SERVER, *rights.CLUSTER]).replace("PASSWORD", "pw")
        node.client.execute_command(*line.split())
        store = await MemoryStore.connect(servers.url.replace("://", "://automr:pw@"))
        await store.ping()
        assert await store.append([Event("e", "u", "i", 1)], durability="fsync") == ["accepted"]
        await store.close()
        assert not node.client.acl_log()


async def test_the_doctor_says_what_a_missing_right_to_rewrite_files_means(
    bundle_path: Path, raw: Redis, limited: str
) -> None:
    await raw.execute_command("ACL SETUSER automr -bgrewriteaof -wait")
    checks = {each.name: each for each in await examine(settings_for(bundle_path / "none", limited, port=0))}
    assert checks["rights"].is_ok and "+bgrewriteaof" in checks["rights"].finding
    asked = settings_for(bundle_path / "none", limited, port=0, durability="replicated")
    checks = {each.name: each for each in await examine(asked)}
    assert not checks["rights"].is_ok and "+wait" in checks["rights"].finding


def test_the_documents_have_these_lines() -> None:
    text = (ROOT / "docs" / "operate.md").read_text(encoding="utf-8")
    for name, commands in (("automr", rights.SERVER), ("automr-export", rights.EXPORTER)):
        assert rights.acl_line(name, commands) in " ".join(text.replace("\\\n", " ").split()), f"the line of {name}"
    assert " ".join(f"+{each}" for each in rights.CLUSTER) in text
