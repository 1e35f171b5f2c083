"""/keys: made, listed, rotated and revoked while the service runs; and the same on the command line."""

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import jwt
import pytest
from httpx2 import ASGITransport, AsyncClient

from service.__main__ import main
from service.app import create_app
from service.metrics import Metrics
from service.resources import Resources
from service.settings import Settings
from service.store.client import MemoryStore
from service.store.embedded.server import EmbeddedServer
from tests.service import standins

ROOT_KEY = "amr_0123456789abcdef"


@pytest.fixture(autouse=True)
def logs_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command sets up logging for its process, which here is that of the tests."""
    monkeypatch.setattr("service.logs.configure", lambda **options: None)


@asynccontextmanager
async def server(store: MemoryStore, **settings: Any) -> AsyncIterator[AsyncClient]:
    """Stand-ins behind the interface, and a real store for the keys."""

    @asynccontextmanager
    async def opened(settings: Settings, metrics: Metrics) -> AsyncIterator[Resources]:
        yield replace(standins.resources(settings, metrics), store=store)

    app = create_app(Settings.from_env({}, **settings), opened)
    async with (
        app.router.lifespan_context(app),
        AsyncClient(transport=ASGITransport(app=app), base_url="http://test") as client,
    ):
        yield client


async def test_the_life_of_a_key(store: MemoryStore) -> None:
    async with server(store, api_keys=ROOT_KEY) as client:
        admin = {"x-api-key": ROOT_KEY}
        body = {"name": "shop", "scopes": ["recommend"]}
        answer = await client.post("/keys", json=body, headers=admin)
        assert answer.status_code == 201, answer.text
        made = answer.json()
        shop = {"authorization": f"Bearer {made['key']}"}
        assert (await client.get("/model", headers=shop)).status_code == 200
        assert (await client.get("/keys", headers=shop)).status_code == 403
        listed = (await client.get("/keys", headers=admin)).json()
        assert [each["id"] for each in listed["keys"]] == [made["id"]]
        assert listed["keys"][0]["last_used_at"] is not None
        assert made["key"] not in repr(listed) and listed["keys"][0]["secrets"][0]["prefix"] == made["key"][:8]
        rotated = (await client.post(f"/keys/{made['id']}:rotate", json={"overlap_s": 60}, headers=admin)).json()
        both = [
            (await client.get("/model", headers={"x-api-key": each["key"]})).status_code for each in (made, rotated)
        ]
        assert both == [200, 200] and rotated["id"] == made["id"] and len(rotated["secrets"]) == 2
        gone = await client.delete(f"/keys/{made['id']}", headers=admin)
        assert gone.json() == {"id": made["id"], "revoked": True}
        assert (await client.get("/model", headers=shop)).status_code == 401
        assert (await client.delete(f"/keys/{made['id']}", headers=admin)).status_code == 404


@pytest.mark.parametrize(
    "body",
    [
        {"name": "x", "scopes": []},
        {"name": "x", "scopes": ["everything"]},
        {"name": "\x00", "scopes": ["users"]},
        {"name": "x", "scopes": ["users"], "expires_at": 1},
        {"scopes": ["users"]},
    ],
)
async def test_bad_keys_are_refused(store: MemoryStore, body: dict[str, Any]) -> None:
    async with server(store, api_keys=ROOT_KEY) as client:
        assert (await client.post("/keys", json=body, headers={"x-api-key": ROOT_KEY})).status_code == 422


async def test_an_open_server_makes_no_key_that_protects_nothing(store: MemoryStore) -> None:
    async with server(store) as client:
        answer = await client.post("/keys", json={"name": "shop", "scopes": ["admin"]})
        assert answer.status_code == 409 and "AUTOMR_REQUIRE_KEYS" in answer.json()["detail"]


async def test_the_first_key_is_made_on_the_command_line(
    store: MemoryStore, valkey: EmbeddedServer, capsys: pytest.CaptureFixture[str]
) -> None:
    async with server(store, require_keys=True) as client:
        assert (await client.get("/model")).status_code == 401
    key = await command(capsys, "create", "--name", "root", "--scopes", "admin,users", "--store", valkey.url)
    async with server(store, require_keys=True) as client:
        found = await client.get("/keys", headers={"x-api-key": key})
        assert [each["scopes"] for each in found.json()["keys"]] == [["users", "admin"]]
        assert (await client.get("/model", headers={"x-api-key": key})).status_code == 403


async def command(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The key that the command prints."""
    assert await asyncio.to_thread(main, ["keys", *words]) == 0
    return told(capsys.readouterr().out, "key")


def told(output: str, name: str) -> str:
    """The value of a line that the command prints. Log lines stand between them here."""
    return next(line.split()[1] for line in output.splitlines() if line.startswith(f"{name} "))


async def test_keys_are_listed_rotated_and_revoked_on_the_command_line(
    store: MemoryStore, valkey: EmbeddedServer, capsys: pytest.CaptureFixture[str]
) -> None:
    async def run(*words: str) -> str:
        assert await asyncio.to_thread(main, ["keys", *words, "--store", valkey.url]) == 0
        return capsys.readouterr().out

    made = await run("create", "--name", "shop", "--scopes", "ingest", "--days", "30")
    key, key_id = told(made, "key"), told(made, "id")
    listed = await run("list")
    assert key_id in listed and "shop" in listed and key[:8] in listed and key not in listed
    rotated = told(await run("rotate", key_id), "key")
    assert rotated != key and key_id in await run("revoke", key_id)
    assert key_id not in await run("list")
    assert await asyncio.to_thread(main, ["keys", "create", "--name", "x", "--scopes", "all"]) == 2
    assert "known are" in capsys.readouterr().err


async def test_a_key_over_its_rate_gets_429_and_others_do_not(store: MemoryStore) -> None:
    async with server(store, api_keys=ROOT_KEY) as client:
        admin = {"x-api-key": ROOT_KEY}
        body = {"name": "shop", "scopes": ["recommend"], "rate_limit": "2/hour"}
        made = (await client.post("/keys", json=body, headers=admin)).json()
        shop = {"x-api-key": made["key"]}
        answers = [await client.get("/model", headers=shop) for _ in range(3)]
        assert [each.status_code for each in answers] == [200, 200, 429]
        assert answers[0].headers["ratelimit"].startswith('"2-per-3600s";r=1;t=')
        assert answers[2].headers["ratelimit-policy"] == '"2-per-3600s";q=2;w=3600'
        assert 1 <= int(answers[2].headers["retry-after"]) <= 3600
        assert answers[2].json()["title"] == "Rate limited"
        free = await client.get("/model", headers=admin)
        assert free.status_code == 200 and "ratelimit" not in free.headers
        assert (await client.post("/keys", json={**body, "rate_limit": "much"}, headers=admin)).status_code == 422


async def test_the_rate_of_the_settings_is_that_of_keys_without_one(store: MemoryStore) -> None:
    async with server(store, api_keys=ROOT_KEY, rate_limit="3/hour") as client:
        admin = {"x-api-key": ROOT_KEY}
        made = await client.post("/keys", json={"name": "shop", "scopes": ["recommend"]}, headers=admin)
        assert '"3-per-3600s";r=2' in made.headers["ratelimit"]
        shop = {"x-api-key": made.json()["key"]}
        assert [(await client.get("/model", headers=shop)).status_code for _ in range(4)] == [200, 200, 200, 429]


async def test_only_requests_for_the_hosts_of_the_setting_are_answered(store: MemoryStore) -> None:
    async with server(store, trusted_hosts="api.shop.example,*.inner.example,[::1]") as client:

        async def status(host: str, path: str = "/model") -> int:
            return (await client.get(path, headers={"host": host})).status_code

        for host in ("api.shop.example", "API.shop.example:8000", "a.inner.example", "[::1]:80"):
            assert await status(host) == 200, host
        for host in ("other.example", "inner.example", "api.shop.example.evil", "evil-inner.example", ""):
            assert await status(host) == 421, host
        assert await status("10.0.0.7", "/livez") == 200


async def test_a_token_of_the_issuer_is_as_good_as_a_key(store: MemoryStore, tmp_path: Path) -> None:
    secret = b"a-secret-of-thirty-two-bytes-or-more"
    encoded = base64.urlsafe_b64encode(secret).decode()
    (tmp_path / "keys.json").write_text(json.dumps({"keys": [{"kty": "oct", "k": encoded, "kid": "1"}]}))
    issuer = {"jwt_issuer": "shop", "jwt_audience": "automr", "jwt_algorithms": "HS256"}
    async with server(store, jwt_keys=str(tmp_path / "keys.json"), **issuer) as client:

        async def status(path: str, **claims: Any) -> int:
            claims = {"iss": "shop", "aud": "automr", "exp": time.time() + 60, "scope": "recommend"} | claims
            token = jwt.encode(claims, secret, "HS256", headers={"kid": "1"})
            return (await client.get(path, headers={"authorization": f"Bearer {token}"})).status_code

        assert await status("/model") == 200 and await status("/keys") == 403
        assert (await client.get("/model")).status_code == 401, "an issuer closes the server"
        for _ in range(30):
            assert await status("/model", exp=1) == 401, "a caller with an old token was taken for a guesser"
        assert await status("/model") == 200
