"""Scopes: every route of the application needs one or is public on purpose, and a key without it gets a 403."""

import json
from collections.abc import Iterator

import pytest
from fastapi import APIRouter, FastAPI
from fastapi.routing import iter_route_contexts

from service.app import create_app
from service.http.access.routes import ScopedRoute
from service.identity.scopes import SCOPE_OF, SCOPES, is_open
from service.settings import Settings
from tests.service.standins import open_standins, shell

PUBLIC = {"/", "/docs", "/openapi.json", "/static/{name}", "/livez", "/readyz", "/startupz"}
SECRET = "amr_0123456789abcdef"


def app() -> FastAPI:
    return create_app(Settings.from_env({}), open_standins)


def routes() -> Iterator[tuple[str, str, object]]:
    for context in iter_route_contexts(app().routes):
        for method in sorted(context.methods or ()):
            yield method, context.path or "", context.original_route


def test_every_route_names_its_scope_or_is_public_on_purpose() -> None:
    found = list(routes())
    assert len(found) > 35, "the walk does not see the routes"
    for method, path, route in found:
        if is_open(path):
            assert path in PUBLIC, f"{method} {path} is open: is this on purpose?"
        else:
            assert (method, path) in SCOPE_OF, f"{method} {path} has no scope"
            assert isinstance(route, ScopedRoute), f"the scope of {method} {path} is not looked at"


def test_every_scope_of_the_table_belongs_to_a_route() -> None:
    there = {(method, path) for method, path, _ in routes()}
    assert not set(SCOPE_OF) - there, "these routes do not exist"


def test_a_route_without_a_scope_cannot_be_made() -> None:
    router = APIRouter(route_class=ScopedRoute)
    with pytest.raises(LookupError, match="GET /secrets has no scope"):
        router.add_api_route("/secrets", lambda: None)


@pytest.mark.parametrize("scope", SCOPES)
async def test_a_key_opens_the_routes_of_its_scope_and_no_other(scope: str) -> None:
    async with shell(api_keys=f"{scope}={SECRET}") as opened:
        for (method, path), needed in SCOPE_OF.items():
            if needed != scope:
                content = b"x" * 100  # not even read
                answer = await opened.client.request(method, path, headers={"x-api-key": SECRET}, content=content)
                assert answer.status_code == 403, f"{method} {path}: {answer.text}"
                assert answer.json()["scope"] == needed and needed in answer.json()["detail"]
                assert answer.headers["www-authenticate"] == f'Bearer error="insufficient_scope", scope="{needed}"'
        assert opened.metric("rejected_total", reason="Forbidden") > 20
        own = {"metrics": "/metrics", "recommend": "/model", "users": "/users/u1", "catalogue": "/items/i1"}
        if scope in own:
            answer = await opened.client.get(own[scope], headers={"x-api-key": SECRET})
            assert answer.status_code in (200, 404), answer.text


async def test_a_wrong_method_is_not_a_question_of_scopes() -> None:
    async with shell(api_keys=f"metrics={SECRET}") as opened:
        assert (await opened.client.put("/recommend", headers={"x-api-key": SECRET})).status_code == 405


def test_the_document_names_the_scope_of_each_operation() -> None:
    document = json.loads(json.dumps(app().openapi()))
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            needed = SCOPE_OF.get((method.upper(), path))
            wanted = [] if needed is None else [{"bearer": [needed]}, {"apiKey": [needed]}]
            assert operation["security"] == wanted, f"{method} {path}"


async def test_who_tries_keys_is_locked_out_and_learns_nothing_more() -> None:
    async with shell(api_keys=f"{SECRET},amr_another_key_here") as opened:
        ask = opened.client.get
        assert (await ask("/model", headers={"x-api-key": SECRET})).is_success
        statuses = [(await ask("/model", headers={"x-api-key": f"guess-{n}"})).status_code for n in range(25)]
        assert statuses == [401] * 20 + [429] * 5
        locked = await ask("/model", headers={"x-api-key": "amr_another_key_here"})
        assert locked.status_code == 429 and 200 < int(locked.headers["retry-after"]) <= 300
        assert (await ask("/model", headers={"x-api-key": SECRET})).is_success, "a caller behind the same proxy"
        assert (await ask("/livez")).is_success
        assert opened.metric("rejected_total", reason="LockedOut") == 6
