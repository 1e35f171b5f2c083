"""Tenants: equal user ids of two tenants are two users, through every route that a key of a tenant may call."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from httpx2 import AsyncClient, Response
from redis.asyncio import Redis

from service.identity.scopes import OF_ALL_TENANTS, SCOPE_OF
from service.store.embedded.server import EmbeddedServer
from tests.service.real import NOW, open_app

ROOT_KEY = "amr_0123456789abcdef"
USER = "ada"
NO_TENANT = ""
EVENT = {"item_id": "i1", "timestamp": NOW}
SESSION = [{"item_id": "i1", "timestamp": NOW}]

# What the other tenant sends to each route: about the same users, with ids that it could know.
CALLS: dict[tuple[str, str], dict[str, Any]] = {
    ("POST", "/recommend"): {"json": {"user_id": USER, "k": 5, "explain": True}},
    ("POST", "/recommend/users"): {"json": {"users": [USER, "guest"], "k": 2}},
    ("GET", "/items/{item_id}/neighbors"): {"item_id": "i1"},
    ("GET", "/items/{item_id}/related"): {"item_id": "i1"},
    ("GET", "/popular"): {},
    ("GET", "/trending"): {},
    ("GET", "/latest"): {},
    ("GET", "/model"): {},
    ("POST", "/interactions"): {"json": {"interactions": [{"user_id": USER, "event_id": "event-a-0", **EVENT}]}},
    ("GET", "/users"): {},
    ("GET", "/users/{user_id}"): {},
    ("GET", "/users/{user_id}/export"): {},
    ("GET", "/users/{user_id}/memory"): {},
    ("PUT", "/users/{user_id}/interactions/{event_id}"): {"event_id": "event-a-1", "json": EVENT},
    ("DELETE", "/users/{user_id}/interactions/{event_id}"): {"event_id": "event-a-2"},
    ("POST", "/users/{user_id}:merge"): {"json": {"from_user_id": "guest"}},
    ("DELETE", "/users/{user_id}"): {},
    ("POST", "/users/{user_id}:recreate"): {"json": {}},
}


@dataclass
class Caller:
    client: AsyncClient
    key: str

    async def ask(self, method: str, path: str, **options: Any) -> Response:
        names = {name: options.pop(name) for name in ("item_id", "event_id") if name in options}
        path = path.format(user_id=USER, **names)
        return await self.client.request(method, path, headers={"x-api-key": self.key}, **options)

    async def export(self) -> str:
        answer = await self.ask("GET", "/users/{user_id}/export")
        return answer.text if answer.status_code == 200 else ""


@asynccontextmanager
async def callers(bundle: Path, url: str) -> AsyncIterator[dict[str, Caller]]:
    async with open_app(bundle, url, api_keys=ROOT_KEY, live_half_life_days=30) as (_, client):
        found = {NO_TENANT: Caller(client, ROOT_KEY)}
        for tenant in ("shop-a", "shop-b"):
            scopes = ["recommend", "ingest", "users"]
            body = {"name": tenant, "scopes": scopes, "tenant": tenant}
            made = await found[NO_TENANT].ask("POST", "/keys", json=body)
            assert made.status_code == 201 and made.json()["tenant"] == tenant
            found[tenant] = Caller(client, made.json()["key"])
        yield found


def events(mark: str, user_id: str = USER, count: int = 6) -> list[dict[str, Any]]:
    ids = [{"event_id": f"event-{mark}-{number}", "item_id": f"i{number}"} for number in range(count)]
    return [{"user_id": user_id, "timestamp": NOW + number, **each} for number, each in enumerate(ids)]


async def fill(caller: Caller, mark: str) -> None:
    sent = [*events(mark), *events(f"{mark}-guest", "guest", 2)]
    answer = await caller.ask("POST", "/interactions", json={"interactions": sent, "wait": "visible"})
    assert answer.status_code == 200, answer.text
    assert {each["status"] for each in answer.json()["results"]} == {"accepted"}


def test_every_route_that_a_key_of_a_tenant_may_call_is_tried() -> None:
    open_to_tenants = {route for route, scope in SCOPE_OF.items() if scope not in OF_ALL_TENANTS}
    assert set(CALLS) == open_to_tenants, "say what another tenant could send to this route"


@pytest.mark.parametrize(("own", "other"), [("shop-a", "shop-b"), ("shop-a", NO_TENANT), (NO_TENANT, "shop-b")])
async def test_no_route_shows_or_changes_the_users_of_another_tenant(
    own: str, other: str, bundle_path: Path, valkey: EmbeddedServer, raw: Redis
) -> None:
    async with callers(bundle_path, valkey.url) as by_tenant:
        victim, attacker = by_tenant[own], by_tenant[other]
        await fill(victim, "a")
        before = await victim.export()
        assert before.count("event-a-") == 6
        for has_own_users in (False, True):
            if has_own_users:
                await fill(attacker, "b")
            for (method, path), options in CALLS.items():
                if has_own_users and method == "DELETE" and path == "/users/{user_id}":
                    assert (await attacker.export()).count("event-b") > 4
                answer = await attacker.ask(method, path, **options)
                assert answer.status_code < 500, f"{method} {path}: {answer.text}"
                sent = str(options.get("event_id", "event-a-0"))
                shown = answer.text.replace(sent, "")
                assert "event-a" not in shown, f"{method} {path} shows an event of another tenant"
                assert "\x1f" not in shown and "u001f" not in shown, f"{method} {path} shows how ids are held"
                if own:
                    assert own not in shown, f"{method} {path} names another tenant"
                assert await victim.export() == before, f"{method} {path} changed a user of another tenant"
        assert (await attacker.export()) == ""
        metrics = (await by_tenant[NO_TENANT].ask("GET", "/metrics")).text
        assert "/users/{user_id}" in metrics, "the requests are not counted"
        for name in ("shop-", "event-a", "amr_", "key_", "%1F"):
            assert name not in metrics, f"metrics name a tenant, a user, an event or a key: {name}"


async def test_each_tenant_lists_and_remembers_its_own_users(
    bundle_path: Path, valkey: EmbeddedServer, raw: Redis
) -> None:
    async with callers(bundle_path, valkey.url) as by_tenant:
        for mark, caller in zip("abc", by_tenant.values(), strict=True):
            await fill(caller, mark)
        for mark, caller in zip("abc", by_tenant.values(), strict=True):
            for prefix in ("", "a", "gu"):
                listed = (await caller.ask("GET", "/users", params={"prefix": prefix})).json()["users"]
                wanted = {name for name in (USER, "guest") if name.startswith(prefix)}
                assert [each["user_id"] for each in listed if each["user_id"] in wanted] and len(listed) == len(wanted)
            answer = (await caller.ask("POST", "/recommend", json={"user_id": USER, "k": 3})).json()
            assert answer["user_id"] == USER
            assert all(each["event_id"].startswith(f"event-{mark}-") for each in answer["memory"])
            page = (await caller.ask("GET", "/users/{user_id}")).json()
            assert page["user_id"] == USER and page["counts"]["events"] == 6
        assert (await by_tenant[NO_TENANT].ask("GET", "/users", params={"prefix": "shop-a"})).json()["users"] == []


async def test_pages_of_a_list_are_for_its_tenant(bundle_path: Path, valkey: EmbeddedServer, raw: Redis) -> None:
    async with callers(bundle_path, valkey.url) as by_tenant:
        for caller in by_tenant.values():
            await fill(caller, "a")
        for owner in by_tenant.values():
            for body in ({"user_id": USER}, {"recent": SESSION}):
                first = (await owner.ask("POST", "/recommend", json={**body, "k": 1, "paged": True})).json()
                assert first["next_cursor"], first
                again = {"cursor": first["next_cursor"]}
                own = await owner.ask("POST", "/recommend", json=again)
                assert own.status_code == 200 and own.json()["user_id"] == body.get("user_id")
                for other in by_tenant.values():
                    if other is not owner:
                        assert (await other.ask("POST", "/recommend", json=again)).status_code in (400, 410)


async def every_key(raw: Redis) -> list[bytes]:
    return [name for name in await raw.keys("*") if isinstance(name, bytes)]


async def test_every_stored_key_of_a_user_of_a_tenant_begins_with_the_tenant(
    bundle_path: Path, valkey: EmbeddedServer, raw: Redis
) -> None:
    async with callers(bundle_path, valkey.url) as by_tenant:
        await fill(by_tenant["shop-a"], "a")
        await by_tenant["shop-a"].ask("POST", "/recommend", json={"user_id": USER, "k": 1, "paged": True})
        names = [name for name in await every_key(raw) if b"ada" in name]
        assert len(names) > 4 and all(b"shop-a%1Fada" in name for name in names), names
        assert all(name.startswith((b"automr:{shop-a%1Fada}:", b"automr:{+live}:of:")) for name in names), names
        assert not await raw.keys("automr:{+live}:day:*"), "what a tenant's users choose shows in the lists of all"
        await fill(by_tenant[NO_TENANT], "c")
        assert await raw.keys("automr:{+live}:day:*")
        await by_tenant[NO_TENANT].ask("DELETE", "/users/{user_id}")
        gone = (await by_tenant["shop-a"].ask("DELETE", "/users/{user_id}")).json()
        assert gone["events"] == 6
        assert not [name for name in await raw.keys("*") if b"ada" in name]


async def test_the_list_of_an_anonymous_session_is_kept_for_its_tenant(
    bundle_path: Path, valkey: EmbeddedServer, raw: Redis
) -> None:
    async with callers(bundle_path, valkey.url) as by_tenant:
        for caller in by_tenant.values():
            assert (await caller.ask("POST", "/recommend", json={"recent": SESSION, "k": 1})).json()["items"]
        while len(names := [name for name in await every_key(raw) if b"{+shown:" in name]) < len(by_tenant):
            await asyncio.sleep(0.02)
    owners = sorted(name.removeprefix(b"automr:{+shown:").partition(b"%1F")[0] for name in names)
    assert owners[1:] == [b"shop-a", b"shop-b"], "another tenant could count events for these lists"
