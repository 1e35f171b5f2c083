"""The Python client: it covers every operation of the API, repeats what may be repeated, and says what went wrong."""

import ast
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from datamodel_code_generator.__main__ import main as generate

from automr import errors as client_errors
from automr.client import AsyncClient, Client, ConnectionFailed, Retries, TimedOut
from automr.retries import retry_after_s
from automr.unasync import synchronous

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT: dict[str, Any] = json.loads((ROOT / "docs/openapi.json").read_text(encoding="utf-8"))
UPDATE = "bring it up to date with `make openapi`"
QUICK = Retries(most=3, first_s=0.001)
Answer = Callable[[httpx.Request], httpx.Response]


def operations() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in DOCUMENT["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path, operation


def example_of(operation: dict[str, Any]) -> dict[str, Any]:
    """An example of its body."""
    if "requestBody" not in operation:
        return {}
    name = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
    found: dict[str, Any] = DOCUMENT["components"]["schemas"][name].get("examples", [{}])[0]
    return found


def answering(*answers: httpx.Response | Exception) -> tuple[Client, list[httpx.Request]]:
    """A client that gets these answers one after the other, and what it asked."""
    asked: list[httpx.Request] = []
    waiting = list(answers)

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        given = waiting.pop(0)
        if isinstance(given, Exception):
            raise given
        return given

    return Client("http://shop.test", key="k", retries=QUICK, transport=httpx.MockTransport(answer)), asked


@pytest.mark.parametrize(("method", "path", "operation"), list(operations()), ids=lambda each: str(each)[:40])
def test_every_operation_has_a_method_that_calls_it(method: str, path: str, operation: dict[str, Any]) -> None:
    name = operation["operationId"]
    assert hasattr(AsyncClient, name), f"{method} {path}: write a method {name} in automr/asynchronous.py"
    client, asked = answering(httpx.Response(200, json={}))
    ids = [each["name"] for each in operation.get("parameters", []) if each["in"] == "path"]
    done = getattr(client, name)(*(f"{each}/1" for each in ids), **example_of(operation))
    if isinstance(done, Iterator):
        list(done)
    sent = f"{asked[0].method} {asked[0].url.raw_path.decode()}"
    assert sent == f"{method} {path.format(**{each: f'{each}%2F1' for each in ids})}"
    assert asked[0].headers["authorization"] == "Bearer k"


def test_the_two_clients_are_the_same() -> None:
    kept = (ROOT / "automr/synchronous.py").read_text(encoding="utf-8")
    assert _without_imports(kept) == _without_imports(synchronous()), f"automr/synchronous.py: {UPDATE}"


def test_the_types_are_those_of_the_document(tmp_path: Path) -> None:
    made = tmp_path / "models.py"
    generate(["--input", str(ROOT / "docs/openapi.json"), "--output", str(made)])
    kept = (ROOT / "automr/models.py").read_text(encoding="utf-8")
    assert ast.dump(ast.parse(kept)) == ast.dump(ast.parse(made.read_text())), f"automr/models.py: {UPDATE}"


# ---- retries


@pytest.mark.parametrize("status", [429, 503])
def test_a_refused_call_is_repeated_until_it_succeeds(status: int) -> None:
    client, asked = answering(httpx.Response(status), httpx.Response(status), httpx.Response(200, json={"items": []}))
    assert client.recommend(user_id="u")["items"] == []
    assert len(asked) == 3


@pytest.mark.parametrize("status", [400, 401, 404, 409, 413, 422, 500, 504])
def test_other_errors_are_raised_at_once(status: int) -> None:
    client, asked = answering(httpx.Response(status))
    with pytest.raises(client_errors.Refused) as raised:
        client.recommend(user_id="u")
    assert (raised.value.status, len(asked)) == (status, 1)


def test_a_call_that_is_always_refused_ends_with_the_problem() -> None:
    problem = {"type": "urn:automr:problem:overloaded", "title": "Overloaded", "detail": "Later.", "request_id": "r1"}
    answer = partial(
        httpx.Response, 429, content=json.dumps(problem), headers={"content-type": "application/problem+json"}
    )
    client, asked = answering(*(answer() for _ in range(4)))
    with pytest.raises(client_errors.Overloaded, match="Later") as raised:
        client.get_model()
    assert (raised.value.kind, raised.value.request_id, len(asked)) == ("overloaded", "r1", 4)


def test_a_broken_connection_is_repeated_where_that_changes_nothing_twice() -> None:
    client, asked = answering(httpx.ReadError("gone"), httpx.ConnectError("gone"), httpx.Response(202, json={}))
    client.add_interactions(interactions=[])
    assert len(asked) == 3
    client, asked = answering(httpx.ReadError("gone"))
    with pytest.raises(ConnectionFailed):
        client.rollback_bundle()
    client, asked = answering(httpx.ConnectError("gone"), httpx.Response(200, json={}))
    client.rollback_bundle()


def test_a_time_out_is_not_repeated() -> None:
    client, asked = answering(httpx.ReadTimeout("late"))
    with pytest.raises(TimedOut):
        client.recommend(user_id="u")
    assert len(asked) == 1


def test_waits_are_random_bounded_and_as_long_as_the_service_says() -> None:
    retries = Retries(first_s=0.1, longest_s=5.0)
    for repetition in range(20):
        most = min(5.0, 0.1 * 2**repetition)
        waits = [retries.wait_s(repetition) for _ in range(100)]
        assert 0 <= min(waits) < max(waits) <= most
    assert 7 <= retries.wait_s(0, retry_after_s(httpx.Response(503, headers={"retry-after": "7"}))) <= 7.1
    assert retry_after_s(httpx.Response(503)) == 0


def _without_imports(text: str) -> list[str]:
    """The statements of a module, whatever their layout; the order of imports is the formatter's."""
    return [ast.dump(node) for node in ast.parse(text).body if not isinstance(node, ast.Import | ast.ImportFrom)]
