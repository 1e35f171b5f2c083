"""Refusals before a request is read: a problem document like any other, on connections that go on."""

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import uvicorn

from service.http.connections import ConnectionLimits
from service.http.protocol import SheddingProtocol, counting
from service.metrics import Metrics

BODY = b'{"user_id": "u", "k": 3}'
HEAD = b"POST /recommend HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\nContent-Length: %d\r\n" % len(BODY)


class Shed:
    """Refuses while `is_on`."""

    def __init__(self) -> None:
        self.is_on, self.metrics = True, Metrics()

    def __call__(self, headers: list[tuple[bytes, bytes]]) -> bool:
        return self.is_on


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """An application that answers with the body."""
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


@asynccontextmanager
async def connected(
    shed: Shed, *, keep_alive_s: int = 60, most: int = 9, receive_s: float = 60.0
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    config = uvicorn.Config(echo, lifespan="off", log_config=None, access_log=False, timeout_keep_alive=keep_alive_s)
    config.load()
    state = uvicorn.server.ServerState()
    limits = ConnectionLimits(shed.metrics, most=most, receive_s=receive_s)
    parts: dict[str, Any] = {"config": config, "server_state": state, "app_state": {}, "limits": limits}
    make = partial(SheddingProtocol, **parts, shed=shed, count=counting(shed.metrics))
    watching = limits.watched(state.connections)
    watching.start()
    server = await asyncio.get_running_loop().create_server(make, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    try:
        yield reader, writer
    finally:
        await watching.stop()
        writer.close()
        server.close()


async def answer(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    async with asyncio.timeout(5):
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        fields = dict(line.lower().split(": ", 1) for line in head[1:] if line)
        return int(head[0].split()[1]), fields, await reader.readexactly(int(fields["content-length"]))


async def test_a_refusal_is_a_problem_document_with_the_request_id() -> None:
    shed = Shed()
    async with connected(shed) as (reader, writer):
        writer.write(HEAD + b"X-Request-ID: abc\r\n\r\n" + BODY)
        status, fields, body = await answer(reader)
    problem = json.loads(body)
    assert (status, problem["status"], problem["type"]) == (429, 429, "urn:automr:problem:overloaded")
    assert fields["content-type"] == "application/problem+json" and int(fields["retry-after"]) >= 1
    assert problem["request_id"] == fields["x-request-id"] == "abc" and problem["instance"] == "/recommend"


async def test_a_request_without_an_id_gets_one() -> None:
    async with connected(Shed()) as (reader, writer):
        writer.write(HEAD + b"\r\n" + BODY)
        _, fields, body = await answer(reader)
    assert len(fields["x-request-id"]) == 32 and json.loads(body)["request_id"] == fields["x-request-id"]


async def test_a_connection_goes_on_after_a_refusal() -> None:
    shed = Shed()
    async with connected(shed) as (reader, writer):
        for is_on in (True, False, True, True, False):
            shed.is_on = is_on
            writer.write(HEAD + b"\r\n" + BODY)
            status, _, body = await answer(reader)
            assert status == (429 if is_on else 200) and (is_on or body == BODY)


async def test_a_body_that_comes_later_is_not_taken_for_a_request() -> None:
    shed = Shed()
    async with connected(shed) as (reader, writer):
        writer.write(HEAD + b"\r\n")
        assert (await answer(reader))[0] == 429
        shed.is_on = False
        writer.write(BODY + HEAD + b"\r\n" + BODY)
        assert (await answer(reader))[::2] == (200, BODY)


@pytest.mark.parametrize("request_line", [b"GET /recommend", b"POST /interactions", b"POST /recommend/x"])
async def test_other_requests_are_read(request_line: bytes) -> None:
    async with connected(Shed()) as (reader, writer):
        writer.write(HEAD.replace(b"POST /recommend", request_line) + b"\r\n" + BODY)
        assert (await answer(reader))[::2] == (200, BODY)


async def test_pipelined_requests_are_answered_in_order() -> None:
    """The second request comes while the first is in work, so it is read."""
    calls: list[bool] = [False, True]

    class Alternating(Shed):
        def __call__(self, headers: list[tuple[bytes, bytes]]) -> bool:
            return calls.pop(0)

    async with connected(Alternating()) as (reader, writer):
        writer.write((HEAD + b"\r\n" + BODY) * 2)
        assert [(await answer(reader))[0] for _ in range(2)] == [200, 200]


@pytest.mark.parametrize("protocol", [b"h2c", b"websocket", b"TLS/1.0"])
@pytest.mark.parametrize("pieces", [1, 3])
async def test_a_request_that_asks_for_another_protocol_is_answered_with_its_body(protocol: bytes, pieces: int) -> None:
    """As Java's HttpClient sends it to an address without TLS."""
    shed = Shed()
    shed.is_on = False
    head = HEAD + b"Connection: Upgrade, HTTP2-Settings\r\nUPGRADE: %b\r\nHTTP2-Settings: AAEAAEAA\r\n\r\n" % protocol
    async with connected(shed) as (reader, writer):
        for _ in range(2):  # the connection goes on
            cut = HEAD.index(b"Content-Type")
            for piece in [head + BODY] if pieces == 1 else [head[:cut], head[cut:], BODY]:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0.01)
            assert (await answer(reader))[::2] == (200, BODY)
        words = b"\r\nupgrade: these words\r\n\r\nUpgrade: too"
        writer.write(HEAD.replace(b"%d" % len(BODY), b"%d" % len(words)) + b"\r\n" + words)
        assert (await answer(reader))[2] == words, "a body was changed"


async def test_a_connection_that_is_to_close_is_closed() -> None:
    async with connected(Shed()) as (reader, writer):
        writer.write(HEAD + b"Connection: close\r\n\r\n" + BODY)
        status, fields, _ = await answer(reader)
        assert status == 429 and fields["connection"] == "close" and await reader.read() == b""


async def test_refusals_are_counted() -> None:
    shed = Shed()
    async with connected(shed) as (reader, writer):
        for _ in range(3):
            writer.write(HEAD + b"\r\n" + BODY)
            await answer(reader)
    value: Callable[..., float | None] = shed.metrics.registry.get_sample_value
    assert value("automr_rejected_total", {"reason": "Overloaded"}) == 3
    labels = {"route": "/recommend", "method": "POST", "status": "429"}
    assert value("automr_http_requests_total", labels) == 3


async def test_an_id_cannot_break_the_document() -> None:
    async with connected(Shed()) as (reader, writer):
        writer.write(HEAD + b'X-Request-ID: a","status":200,"x":"\\\r\n\r\n' + BODY)
        _, fields, body = await answer(reader)
    problem = json.loads(body)
    assert problem["status"] == 429 and problem["request_id"] == fields["x-request-id"] == 'a","status":200,"x":"\\'


async def test_an_idle_connection_is_closed_although_the_body_came_late() -> None:
    async with connected(Shed(), keep_alive_s=1) as (reader, writer):
        writer.write(HEAD + b"\r\n")
        assert (await answer(reader))[0] == 429
        writer.write(BODY)
        async with asyncio.timeout(5):
            assert await reader.read() == b""


CHUNKED = HEAD.replace(b"Content-Length: %d" % len(BODY), b"Transfer-Encoding: chunked") + b"\r\n0\r\n"


@pytest.mark.parametrize("sent", [HEAD + b"X-Long: ", HEAD, b"GET /", CHUNKED, CHUNKED + b"X-Long: "])
@pytest.mark.parametrize("had_answer", [False, True])
async def test_headers_without_end_are_refused(sent: bytes, had_answer: bool) -> None:
    """One header that goes on and on, many headers, a long path, and what follows a body."""
    shed = Shed()
    shed.is_on = False
    async with connected(shed) as (reader, writer):
        if had_answer:
            writer.write(HEAD + b"\r\n" + BODY)
            assert (await answer(reader))[0] == 200
        writer.write(sent)
        with contextlib.suppress(ConnectionError):
            for number in range(100):
                writer.write(
                    b"x" * 10_000 if not sent.endswith(b"\r\n") else b"".join([b"X-%d: 1\r\n" % number] * 1000)
                )
                await writer.drain()
                await asyncio.sleep(0)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):  # it closes before all is read
            status, fields, body = await answer(reader)
            assert (status, fields["connection"], json.loads(body)["status"]) == (431, "close", 431)
    assert closed(shed, "large") == 1


@pytest.mark.parametrize("size", [1, 1000, 700_000])
async def test_a_large_body_in_pieces_of_any_size_is_no_large_head(size: int) -> None:
    shed = Shed()
    shed.is_on = False
    count = min(30_000, 1_400_000 // size)
    async with connected(shed) as (reader, writer):
        writer.write(CHUNKED.removesuffix(b"0\r\n") + (b"%x\r\n%b\r\n" % (size, b"x" * size)) * count + b"0\r\n\r\n")
        status, _, body = await answer(reader)
    assert (status, len(body)) == (200, size * count)


@pytest.mark.parametrize("sent", [b"", b"GET", HEAD, HEAD + b"\r\n" + BODY[:-1]])
async def test_a_connection_whose_request_does_not_come_whole_is_closed(sent: bytes) -> None:
    shed = Shed()
    shed.is_on = False
    async with connected(shed, receive_s=0.1) as (reader, writer):
        writer.write(sent)
        if sent:
            status, fields, body = await answer(reader)
            assert (status, fields["connection"], json.loads(body)["title"]) == (408, "close", "Request timeout")
        async with asyncio.timeout(5):
            assert await reader.read() == b""
    assert closed(shed, "late" if sent else "silent") == 1


@pytest.mark.parametrize("sent", [b"\r\n", HEAD])
async def test_a_connection_that_had_an_answer_is_closed_when_the_next_request_does_not_come_whole(sent: bytes) -> None:
    """A byte stops the timer of uvicorn, so a caller could keep the connection for ever."""
    shed = Shed()
    async with connected(shed, receive_s=0.1) as (reader, writer):
        writer.write(HEAD + b"\r\n" + BODY)
        assert (await answer(reader))[0] == 429
        writer.write(sent)
        async with asyncio.timeout(5):
            assert await reader.read() == b""


@pytest.mark.parametrize("reads", [False, True])
async def test_a_caller_who_does_not_read_loses_the_connection(reads: bool) -> None:
    """Uvicorn waits for ever until the answer is read, and who reads none could keep all connections."""
    shed = Shed()
    shed.is_on = False
    body, read = b"x" * 8_000_000, 0
    async with connected(shed, receive_s=0.5) as (_, opened):
        caller = socket.socket()
        if not reads:
            caller.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        caller.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(caller, opened.get_extra_info("peername"))
        await loop.sock_sendall(caller, HEAD.replace(b"%d" % len(BODY), b"%d" % len(body)) + b"\r\n" + body)
        async with asyncio.timeout(20):
            if not reads:
                while not closed(shed, "unread"):
                    await asyncio.sleep(0.05)
            with contextlib.suppress(ConnectionError):
                while read < len(body) and (part := await loop.sock_recv(caller, 1 << 16)):
                    read += len(part)
        caller.close()
    assert bool(closed(shed, "unread")) != reads, "how an answer is read does not decide"
    assert (read >= len(body)) == reads


async def test_a_request_in_work_and_an_idle_connection_are_not_late() -> None:
    shed = Shed()
    shed.is_on = False
    async with connected(shed, receive_s=0.1) as (reader, writer):
        for _ in range(2):
            writer.write(HEAD + b"\r\n" + BODY)
            assert (await answer(reader))[0] == 200
            await asyncio.sleep(1.5)


async def test_silent_connections_over_the_bound_are_closed_soon_and_requests_are_refused() -> None:
    shed = Shed()
    shed.is_on = False
    async with connected(shed, most=1) as (reader, writer):
        other_reader, other_writer = await asyncio.open_connection(*writer.get_extra_info("peername"))
        other_writer.write(HEAD + b"\r\n" + BODY)
        status, fields, body = await answer(other_reader)
        assert (status, fields["connection"], json.loads(body)["title"]) == (503, "close", "Too many connections")
        assert int(fields["retry-after"]) >= 1 and await other_reader.read() == b""
        other_writer.close()
        async with asyncio.timeout(5):
            assert await reader.read() == b"", "a silent connection kept others out"
    assert closed(shed, "refused") == closed(shed, "silent") == 1


async def test_far_too_many_connections_are_dropped() -> None:
    shed = Shed()
    async with connected(shed, most=1) as (_, writer):
        address = writer.get_extra_info("peername")
        others = [await asyncio.open_connection(*address) for _ in range(70)]
        async with asyncio.timeout(5):
            assert await others[-1][0].read() == b""
        assert closed(shed, "dropped") == 71 - 65
        for _, other in others:
            other.close()


def closed(shed: Shed, reason: str) -> float | None:
    return shed.metrics.registry.get_sample_value("automr_closed_connections_total", {"reason": reason})
