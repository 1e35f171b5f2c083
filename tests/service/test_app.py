"""The HTTP interface with stand-ins behind it: routes, errors as problem documents, limits, probes, API keys."""

import asyncio
import gc
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote

import pytest
import structlog
from fastapi.routing import APIRoute
from httpx2 import ASGITransport, AsyncClient, Response
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service import errors
from service.app import begin_drain, create_app
from service.identity import guessing
from service.identity.keys import hashed
from service.identity.scopes import PROBES, is_open
from service.settings import Settings
from tests.service.standins import Shell, open_standins, shell, status_after_leaving

KEY = "amr_0123456789abcdef"
ODD_IDS = [
    "a b",
    "a/b",
    "a%2Fb",
    "x/neighbors",
    "50% off?",
    '{"q": [1]}',
    "#",
    "..",
    "日本",
    "<|eot|>",
    "a&b=c",
    ";",
]
EVENT = {"user_id": "u", "item_id": "i", "timestamp": 1_700_000_000}


@pytest.fixture
async def open_shell() -> AsyncIterator[Shell]:
    async with shell() as opened:
        yield opened


def assert_problem(answer: Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    document: dict[str, Any] = answer.json()
    assert {"type", "title", "status", "detail", "instance", "request_id"} <= document.keys()
    assert document["status"] == status
    assert document["request_id"] == answer.headers["x-request-id"]
    assert ("retry-after" in answer.headers) == (status in (429, 503))
    return document


def fields_of(answer: Response) -> list[str]:
    return [each["field"] for each in assert_problem(answer, 422)["errors"]]


async def test_an_opened_app_leaves_the_garbage_collector_of_its_process_as_it_is() -> None:
    threshold, num_frozen = gc.get_threshold(), gc.get_freeze_count()
    async with shell():
        assert gc.get_threshold() == threshold
        assert gc.get_freeze_count() <= num_frozen  # what another test left out may be freed meanwhile


# ---- routes


async def test_recommend(open_shell: Shell) -> None:
    answer = await open_shell.client.post("/recommend", json={"user_id": "u1", "k": 3})
    assert answer.status_code == 200
    reason = {"voice": "near", "share": 0.75, "item_id": "i2", "event_id": "e1"}
    shown = {"rank": 1, "item_id": "i1", "title": "One", "score": -1.0, "source": "generated", "distance": 0.0}
    assert answer.json()["items"] == [{**shown, "reason": reason, "moves": [], "explored": False}]
    used = {"event_id": "e1", "item_id": "i2", "title": "Two", "timestamp": 1, "weight": None, "share": 0.5}
    assert answer.json()["memory"] == [used]
    assert answer.json()["fallback"] is None and answer.json()["user_id"] == "u1"
    assert open_shell.metric("http_requests_total", route="/recommend", method="POST", status="200") == 1


@pytest.mark.parametrize(("wait", "status"), [("durable", 202), ("visible", 200)])
async def test_a_wrong_interaction_does_not_affect_the_others(open_shell: Shell, wait: str, status: int) -> None:
    body = {"interactions": [EVENT, {"item_id": "i"}, 7], "wait": wait}
    answer = await open_shell.client.post("/interactions", json=body)
    assert answer.status_code == status
    assert [each["status"] for each in answer.json()["results"]] == ["accepted", "rejected", "rejected"]


async def test_only_wrong_interactions_are_a_422_with_reasons(open_shell: Shell) -> None:
    answer = await open_shell.client.post("/interactions", json={"interactions": [{"user_id": "u"}]})
    document = assert_problem(answer, 422)
    assert "item_id" in document["results"][0]["reason"]


@pytest.mark.parametrize("body", [{}, {"interactions": []}, {"interactions": [EVENT] * 501}, {"interactions": EVENT}])
async def test_a_batch_has_1_to_500_interactions(open_shell: Shell, body: dict[str, Any]) -> None:
    assert fields_of(await open_shell.client.post("/interactions", json=body)) == ["interactions"]


@pytest.mark.parametrize("odd", ODD_IDS)
async def test_a_path_can_contain_any_id(open_shell: Shell, odd: str) -> None:
    path = quote(odd, safe="").replace(".", "%2E")
    assert (await open_shell.client.put(f"/items/{path}", json={"title": "T"})).json()["item_id"] == odd
    assert (await open_shell.client.get(f"/items/{path}")).json()["item_id"] == odd
    near = (await open_shell.client.get(f"/items/{path}/neighbors?k=2")).json()
    assert near["item_id"] == odd and len(near["neighbors"]) == 2
    assert (await open_shell.client.get(f"/users/{path}")).json()["user_id"] == odd
    gone = (await open_shell.client.delete(f"/users/{path}/interactions/{path}")).json()
    assert (gone["user_id"], gone["event_id"]) == (odd, odd)


@pytest.mark.parametrize("path", ["%FF", "a%0Ab", "%00", "x" * 257, "%20"])
async def test_ids_in_paths_are_validated(open_shell: Shell, path: str) -> None:
    assert fields_of(await open_shell.client.get(f"/users/{path}")) == ["user_id"]


async def test_items_can_be_changed(open_shell: Shell) -> None:
    client = open_shell.client
    body = {"items": [{"item_id": "a", "title": "A", "attributes": {"genre": ["x"]}}]}
    assert (await client.post("/items", json=body)).json()["items"][0]["attributes"] == {"genre": ["x"]}
    assert (await client.patch("/items/a", json={"hidden": True})).json()["hidden"] is True
    assert (await client.delete("/items/a")).json() == {"item_id": "a", "deleted": True}
    assert_problem(await client.get("/items/a"), 404)
    assert "title" in fields_of(await client.put("/items/a", json={"title": ""}))


async def test_users_can_be_shown_exported_and_deleted(open_shell: Shell) -> None:
    client = open_shell.client
    page = (await client.get("/users/u1?limit=7&cursor=abc")).json()
    assert (page["counts"]["events"], page["next_cursor"]) == (7, "abc")
    assert (await client.delete("/users/u1")).json()["events"] == 2
    export = await client.get("/users/u1/export")
    assert export.headers["content-type"].startswith("application/x-ndjson")
    assert len(export.text.splitlines()) == 2
    assert_problem(await client.get("/users/nobody"), 404)
    assert_problem(await client.get("/users/nobody/export"), 503)
    assert fields_of(await client.get("/users/u1?limit=0")) == ["limit"]


async def test_model_and_metrics(open_shell: Shell) -> None:
    assert (await open_shell.client.get("/model")).json()["max_memory"] == 90
    text = (await open_shell.client.get("/metrics")).text
    assert 'automr_http_requests_total{method="GET",route="/model",status="200"} 1.0' in text
    assert "automr_ready 1.0" in text


async def test_labels_are_templates_of_paths(open_shell: Shell) -> None:
    await open_shell.client.get("/users/some-user-id")
    await open_shell.client.get("/nowhere/some-user-id")
    await open_shell.client.request("BREW", "/model")
    text = (await open_shell.client.get("/metrics")).text
    assert "some-user-id" not in text and "BREW" not in text
    assert 'route="/users/{user_id}"' in text and 'route="unmatched"' in text


# ---- errors


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nowhere", 404), ("GET", "/recommend", 405), ("POST", "/model", 405)],
)
async def test_errors_of_the_framework_are_problems(open_shell: Shell, method: str, path: str, status: int) -> None:
    answer = await open_shell.client.request(method, path)
    assert_problem(answer, status)
    assert ("allow" in answer.headers) == (status == 405)


@pytest.mark.parametrize("body", ["{", "", "{'a': 1}", '{"k": 1,}', '{"user_id": "' + "\\", "[" * 100_000])
async def test_malformed_json_is_refused(open_shell: Shell, body: str) -> None:
    headers = {"content-type": "application/json"}
    answer = await open_shell.client.post("/recommend", content=body.encode(), headers=headers)
    assert answer.status_code in (400, 422), answer.text
    assert_problem(answer, answer.status_code)


async def test_the_problem_says_where_json_is_malformed(open_shell: Shell) -> None:
    headers = {"content-type": "application/json"}
    answer = await open_shell.client.post("/recommend", content=b'{"k": }', headers=headers)
    assert "character 6" in assert_problem(answer, 400)["detail"]


async def test_bytes_that_are_not_utf_8_are_refused(open_shell: Shell) -> None:
    headers = {"content-type": "application/json"}
    assert_problem(await open_shell.client.post("/recommend", content=b'{"user_id": "\xff"}', headers=headers), 400)


async def test_a_wrong_content_type_gets_a_hint(open_shell: Shell) -> None:
    headers = {"content-type": "application/x-www-form-urlencoded"}
    answer = await open_shell.client.post("/recommend", content=b'{"k": 1}', headers=headers)
    assert "Content-Type: application/json" in assert_problem(answer, 422)["detail"]


@pytest.mark.parametrize(
    "body",
    [
        '{"k": NaN}', '{"filter": {"a": NaN}}', '{"filter": {"a": [1e999]}}', '{"k": Infinity}',
        '{"k": -1e999}',
        '{"user_id": "\\ud800"}', '{"\\ud800": 1}', '{"filter": {"\\udc00": 1}}', '{"k": 1' + "0" * 400 + "}",
    ],
)  # fmt: skip
async def test_odd_values_are_a_422(open_shell: Shell, body: str) -> None:
    headers = {"content-type": "application/json"}
    answer = await open_shell.client.post("/recommend", content=body.encode(), headers=headers)
    assert_problem(answer, 422)


async def test_unknown_fields_are_named_and_values_are_not_repeated(open_shell: Shell) -> None:
    answer = await open_shell.client.post("/recommend", json={"usr": "marker-7731", "k": "marker-7731"})
    assert sorted(fields_of(answer)) == ["k", "usr"]
    assert "marker-7731" not in answer.text


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.Overloaded(retry_after_s=3), 429), (errors.StoreUnavailable("away"), 503),
        (errors.Draining("bye"), 503),
        (errors.DeadlineExceeded("late"), 504), (errors.UnknownUser("who"), 404),
        (errors.ServiceError("secret"), 500),
    ],
)  # fmt: skip
async def test_every_service_error_is_a_problem(open_shell: Shell, error: Exception, status: int) -> None:
    def fail() -> None:
        raise error

    open_shell.recommender.hook = fail
    answer = await open_shell.client.post("/recommend", json={})
    document = assert_problem(answer, status)
    assert document["type"].startswith("urn:automr:problem:") and "secret" not in answer.text
    counted = open_shell.metric("rejected_total", reason=type(error).__name__)
    assert counted == (1 if status in (429, 503, 504) else 0)


async def test_an_unexpected_error_shows_no_internals_and_logs_a_traceback(open_shell: Shell) -> None:
    def fail() -> None:
        raise RuntimeError("internal marker-7731")

    open_shell.recommender.hook = fail
    with structlog.testing.capture_logs() as lines:
        answer = await open_shell.client.post("/recommend", json={})
    assert_problem(answer, 500)
    assert "marker-7731" not in answer.text and "Traceback" not in answer.text
    assert [line["event"] for line in lines] == ["unexpected error", "request"]
    assert lines[0]["exc_info"]


async def test_request_ids_are_kept_if_short_and_printable(open_shell: Shell) -> None:
    async def id_for(sent: str) -> str:
        return str((await open_shell.client.get("/livez", headers={"x-request-id": sent})).headers["x-request-id"])

    assert await id_for("abc-123") == "abc-123"
    for odd in ("", "a b", "x" * 129, "\x7f"):
        assert (await id_for(odd)).isalnum()
    assert await id_for("") != await id_for("")


# ---- limits


async def test_bodies_over_the_limit_are_refused_with_and_without_a_declared_length() -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(5):
            yield b" " * 1000

    async with shell(max_body_bytes=4000) as opened:
        headers = {"content-type": "application/json"}
        for content in (b" " * 5000, chunks()):
            answer = await opened.client.post("/recommend", content=content, headers=headers)
            assert_problem(answer, 413)
        assert opened.metric("rejected_total", reason="PayloadTooLarge") == 2
        assert (await opened.client.post("/recommend", content=b"{}" + b" " * 3998, headers=headers)).is_success


async def test_work_for_a_caller_who_left_is_cancelled(open_shell: Shell) -> None:
    open_shell.recommender.hook = lambda: asyncio.sleep(60)
    async with asyncio.timeout(5):
        status = await status_after_leaving(open_shell.app, "/recommend", b"{}")
    assert open_shell.recommender.cancelled == 1
    assert status == 499


# ---- probes


async def test_probes(open_shell: Shell) -> None:
    for path in PROBES:
        told = (await open_shell.client.get(path)).json()
        assert told == ({"status": "ok", "items_waiting": 0} if path == "/readyz" else {"status": "ok"})


async def test_readiness_follows_the_model_and_the_store_but_liveness_does_not(open_shell: Shell) -> None:
    open_shell.store.is_up = False
    assert_problem(await open_shell.client.get("/readyz"), 503)
    open_shell.store.is_up, open_shell.engine.is_ready = True, False
    assert_problem(await open_shell.client.get("/readyz"), 503)
    open_shell.engine.is_ready = True
    begin_drain(open_shell.app)
    assert_problem(await open_shell.client.get("/readyz"), 503)
    assert (await open_shell.client.get("/livez")).is_success
    assert (await open_shell.client.post("/recommend", json={})).is_success
    assert open_shell.metric("ready") == 0


async def test_only_liveness_is_true_before_the_bundle_is_loaded() -> None:
    app = create_app(Settings.from_env({}), open_standins)
    async with AsyncClient(transport=ASGITransport(app=app), base_url="http://test") as client:
        assert (await client.get("/livez")).is_success
        for path in ("/startupz", "/readyz", "/model"):
            assert_problem(await client.get(path), 503)


# ---- keys


def paths_of(opened: Shell) -> list[tuple[str, str]]:
    documented = [(method.upper(), path) for path, item in opened.app.openapi()["paths"].items() for method in item]
    return [*documented, ("GET", "/docs"), ("GET", "/openapi.json"), ("GET", "/nowhere")]


@pytest.mark.parametrize("wrong", [{}, {"x-api-key": "wrong"}, {"authorization": f"Basic {KEY}"}])
async def test_every_route_but_probes_and_pages_needs_a_key(
    wrong: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guessing, "MOST_FAILURES", 1000)
    async with shell(api_keys=KEY) as opened:
        routes = paths_of(opened)
        assert len(routes) > 15
        for method, path in routes:
            answer = await opened.client.request(method, path, headers=wrong)
            if is_open(path):
                assert answer.is_success, path
            else:
                assert assert_problem(answer, 401) and answer.headers["www-authenticate"] == "Bearer"
        assert opened.metric("rejected_total", reason="Unauthorized") == sum(not is_open(path) for _, path in routes)


@pytest.mark.parametrize("listed", [KEY, f"sha256:{hashed(KEY)}"])
@pytest.mark.parametrize("header", [{"x-api-key": KEY}, {"authorization": f"Bearer {KEY}"}])
async def test_a_valid_key_is_enough(listed: str, header: dict[str, str]) -> None:
    async with shell(api_keys=listed) as opened:
        assert (await opened.client.get("/model", headers=header)).is_success


async def test_documentation_is_open_when_no_keys_are_set(open_shell: Shell) -> None:
    assert (await open_shell.client.get("/docs")).is_success
    document = (await open_shell.client.get("/openapi.json")).json()
    names = [operation["operationId"] for item in document["paths"].values() for operation in item.values()]
    assert len(names) == len(set(names)) and "recommend" in names


def test_a_public_address_without_keys_is_refused() -> None:
    with pytest.raises(errors.InsecureBind):
        create_app(Settings.from_env({}, host="0.0.0.0"), open_standins)
    create_app(Settings.from_env({}, host="0.0.0.0", allow_anonymous=True), open_standins)


def test_the_paths_are_the_documented_ones() -> None:
    app = create_app(Settings.from_env({}), open_standins)
    assert not [
        route for route in app.routes if isinstance(route, APIRoute) and route.path.endswith("/") and route.path != "/"
    ]
    assert set(app.openapi()["paths"]) == {
        "/recommend", "/interactions", "/users/{user_id}", "/users/{user_id}/export",
        "/users/{user_id}/interactions/{event_id}", "/users/{user_id}/memory", "/items", "/items/{item_id}",
        "/items/{item_id}/neighbors", "/items/{item_id}/related", "/popular", "/trending", "/latest",
        "/recommend/users", "/users", "/users/{user_id}:merge", "/experiments", "/settings/events",
        "/deletions", "/users/{user_id}:recreate", "/store:compact",
        "/bundles", "/bundles/{name}", "/bundles/{name}:activate", "/bundles:rollback",
        "/keys", "/keys/{id}", "/keys/{id}:rotate", "/model", "/livez", "/readyz", "/startupz", "/metrics",
    }  # fmt: skip


# ---- anything at all


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(["/recommend", "/interactions", "/items"]),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["user_id", "recent", "filter", "interactions", "items", "k"]) | st.text(),
                inner,
            )
        ),
        max_leaves=12,
    ),
)
def test_no_json_value_causes_a_500(path: str, body: Any) -> None:
    import json

    async def send() -> Response:
        async with shell() as opened:
            content = json.dumps(body).encode("utf-8", errors="surrogatepass")
            return await opened.client.post(path, content=content, headers={"content-type": "application/json"})

    answer = asyncio.run(send())
    assert answer.status_code in (200, 202, 400, 422), answer.text


async def test_unfinished_bodies_are_bounded_together() -> None:
    """Each is within the limit of one body. The bound holds for requests in work, and what they held is free again."""
    async with shell(max_bodies_bytes=1 << 20) as open_shell:
        go_on = asyncio.Event()

        async def unfinished() -> AsyncIterator[bytes]:
            yield b" " * 300_000
            await go_on.wait()
            yield b'{"user_id": "u"}'

        headers = {"Content-Type": "application/json"}
        asking = [
            asyncio.create_task(open_shell.client.post("/recommend", content=unfinished(), headers=headers))
            for _ in range(9)
        ]
        done, _ = await asyncio.wait(asking, timeout=2, return_when=asyncio.FIRST_COMPLETED)
        while len(done) < 6:
            done, _ = await asyncio.wait(asking, timeout=0.1)
        assert {task.result().status_code for task in done} == {429}, "the memory grows with the callers"
        go_on.set()
        answers = [(await task).status_code for task in asking]
        assert sorted(answers) == [200] * 3 + [429] * 6
        assert (await open_shell.client.post("/recommend", json={"user_id": "u" * 200})).is_success
