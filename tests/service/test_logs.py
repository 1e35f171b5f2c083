"""Log lines: one for each request, in one form, with its id, without keys and without text of users."""

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from service import logs
from service.errors import Overloaded
from service.http import middleware
from tests.service.standins import shell

KEY = "amr_0123456789abcdef"


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    before = (root.handlers[:], root.level)
    lines = io.StringIO()
    logs.configure(level="info", stream=lines)
    client = logging.getLogger("httpx2")  # the client of the test logs the paths of its requests
    client.disabled = True
    yield lines
    client.disabled = False
    structlog.reset_defaults()
    root.handlers[:], level = before
    root.setLevel(level)


def read(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


async def test_one_access_line_per_request(stream: io.StringIO) -> None:
    async with shell(api_keys=KEY) as opened:
        headers = {"x-api-key": KEY, "x-request-id": "req-1"}
        await opened.client.post("/recommend", json={"user_id": "marker-7731"}, headers=headers)
        await opened.client.get("/users/marker-7731?cursor=marker-7731", headers=headers)
        await opened.client.get("/users/marker-7731", headers={"x-api-key": "marker-7731"})
    lines = [line for line in read(stream) if line["event"] == "request"]
    assert [(line["route"], line["status"]) for line in lines] == [
        ("/recommend", 200), ("/users/{user_id}", 200), ("unmatched", 401),
    ]  # fmt: skip
    assert lines[0]["request_id"] == "req-1" and lines[0]["ms"] > 0 and len(lines[0]["key_id"]) == 8
    assert KEY not in stream.getvalue() and "marker-7731" not in stream.getvalue()


async def test_probes_are_not_logged(stream: io.StringIO) -> None:
    async with shell() as opened:
        for path in ("/livez", "/readyz", "/startupz", "/metrics"):
            await opened.client.get(path)
    assert not [line for line in read(stream) if line["event"] == "request"]


async def test_a_refused_request_has_no_line_of_its_own(stream: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise Overloaded(retry_after_s=1)

    monkeypatch.setattr(middleware, "repeated", logs.RepeatedWarnings(middleware.log))
    async with shell() as opened:
        opened.recommender.hook = refuse
        for _ in range(5):
            assert (await opened.client.post("/recommend", json={})).status_code == 429
    lines = [(line["event"], line["level"], line.get("reason"), line.get("count")) for line in read(stream)]
    assert lines == [("requests refused", "warning", "Overloaded", 1)]


def test_repeated_warnings_are_one_line_a_minute_with_a_count() -> None:
    now = 100.0
    with structlog.testing.capture_logs() as lines:
        repeated = logs.RepeatedWarnings(structlog.get_logger(), clock=lambda: now)
        for _ in range(5):
            repeated.warning("refused", reason="a")
        repeated.warning("refused", reason="b")
        now = 159.0
        repeated.warning("refused", reason="a")
        now = 160.0
        repeated.warning("refused", reason="a")
        repeated.warning("refused", reason="a")
    assert [(line["reason"], line["count"]) for line in lines] == [("a", 1), ("b", 1), ("a", 6)]


async def test_a_traceback_is_one_line_without_local_variables(stream: io.StringIO) -> None:
    def fail() -> None:
        user_text = "marker-7731"
        raise RuntimeError(f"{len(user_text)} bytes")

    async with shell() as opened:
        opened.recommender.hook = fail
        await opened.client.post("/recommend", json={})
    failure = next(line for line in read(stream) if line["event"] == "unexpected error")
    assert "RuntimeError: 11 bytes" in failure["exception"] and failure["request_id"]


def test_lines_of_libraries_have_the_same_form(stream: io.StringIO) -> None:
    with logs.request_context("req-2"):
        logging.getLogger("uvicorn.error").warning("hello %s", "there")
    assert (line := read(stream)[-1])["event"] == "hello there"
    assert (line["level"], line["request_id"]) == ("warning", "req-2")


def test_levels_are_respected(stream: io.StringIO) -> None:
    structlog.get_logger("quiet").debug("nothing")
    assert not stream.getvalue()


def test_console_lines_are_plain_text() -> None:
    lines = io.StringIO()
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    logs.configure(format="console", stream=lines)
    structlog.get_logger("any").info("hello")
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)
    assert "hello" in lines.getvalue() and not lines.getvalue().startswith("{")


@pytest.mark.parametrize(
    ("sent", "is_kept"), [("a-1", True), (None, False), ("", False), ("a\nb", False), ("x" * 129, False)]
)
def test_a_request_id_is_kept_if_short_and_printable(sent: str | None, is_kept: bool) -> None:
    assert (logs.request_id_from(sent) == sent) == is_kept
