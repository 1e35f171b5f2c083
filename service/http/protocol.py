"""What happens to a connection below the application: refusals before a request is read, limits of time and of headers.

While the service is overloaded, POST /recommend is refused here. The application takes 0.14 ms to refuse a request;
here it takes 0.023 ms, parsing included. Under eight times the load that the service can answer, this is the difference
between answering and only refusing. Uvicorn calls `on_headers_complete` when it has parsed the head of a request, and
starts the application there.
"""

import asyncio
import re
from collections.abc import Callable
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.errors import HeadersTooLarge, Overloaded, RequestTimeout, TooManyConnections
from service.http.connections import ConnectionLimits
from service.http.middleware import warn_of_refusal
from service.http.refusals import Refusal
from service.http.stopping import CONNECTION_CLOSE
from service.metrics import Metrics

_PATH = b"/recommend"
_OVERLOADED = Refusal(Overloaded("Too many requests are waiting to answer this one in time."), _PATH.decode())
_TOO_MANY = Refusal(TooManyConnections("There are too many connections; keep fewer of them open, or try again later."))
_UPGRADE = re.compile(rb"(?<=\r\n)upgrade(?=[ \t]*:)", re.IGNORECASE)
_MAX_HEAD_BYTES = 64 << 10
_TOO_LARGE = Refusal(HeadersTooLarge(f"The request line and the headers are larger than {_MAX_HEAD_BYTES} bytes."))
_TIMEOUT = Refusal(RequestTimeout("The request did not arrive whole in time."))


class Refused:
    """Stands in for uvicorn's cycle of a request whose answer is complete: uvicorn ignores the body that follows."""

    response_complete = True
    message_event = asyncio.Event()


class SheddingProtocol(HttpToolsProtocol):
    """`shed(headers)` says whether to refuse the request that has just come; `count()` is called for each refusal."""

    def __init__(
        self,
        *args: Any,
        shed: Callable[[list[tuple[bytes, bytes]]], bool],
        count: Callable[[], None],
        limits: ConnectionLimits,
        **options: Any,
    ) -> None:
        super().__init__(*args, **options)
        self._shed, self._count, self._limits = shed, count, limits
        self._is_surplus = self._has_sent = False
        self._framing_bytes = 0  # that came after the beginning of the request, or after the last piece of its body
        self._is_in_head = True  # whether the next bytes belong to the head of a request
        self._unread_since: float | None = None  # since when the caller does not read what was written
        self._owes_since: float | None = None  # when the caller began to send a request, or connected

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._owes_since = self.loop.time()
        self._is_surplus = self._limits.is_surplus(len(self.connections))
        if self._limits.is_dropped(len(self.connections)):
            self._limits.count("dropped")
            transport.abort()

    def data_received(self, data: bytes) -> None:
        self._has_sent = True
        if self._owes_since is None:
            self._owes_since = self.loop.time()
        self._framing_bytes += len(data)
        super().data_received(_without_upgrade(data) if self._is_in_head else data)
        if self._framing_bytes > _MAX_HEAD_BYTES and not self.transport.is_closing():
            self._limits.count("large")
            if self.cycle is None or self.cycle.response_complete:
                self.transport.write(_TOO_LARGE.answer(b"", [CONNECTION_CLOSE]))
            self.transport.close()

    def on_message_begin(self) -> None:
        self._owes_since, self._framing_bytes = self.loop.time(), 0
        super().on_message_begin()

    def on_body(self, body: bytes) -> None:
        self._framing_bytes = 0
        super().on_body(body)

    def on_headers_complete(self) -> None:
        self._is_in_head = False
        if self._is_surplus and self._is_simple():
            self._limits.count("refused")
            self._refuse(_TOO_MANY, is_last=True)
        elif self._is_recommend() and self._is_simple() and self._shed(self.headers):
            self._refuse(_OVERLOADED)
            self._count()
        else:
            super().on_headers_complete()

    def _is_simple(self) -> bool:
        """Not pipelined behind a request that is still in work, and without a need for another answer first."""
        is_first = self.cycle is None or self.cycle.response_complete
        is_simple = not self.expect_100_continue and not self.flow.write_paused
        return is_first and is_simple and self.parser.get_http_version() == "1.1"

    def _is_recommend(self) -> bool:
        return self.url == _PATH and self.parser.get_method() == b"POST"

    def on_message_complete(self) -> None:
        self._owes_since, self._is_in_head = None, True
        super().on_message_complete()
        if isinstance(self.cycle, Refused) and self.timeout_keep_alive_task is None and not self.transport.is_closing():
            # The body came after the refusal, and its arrival stopped the timer.
            handler = self.timeout_keep_alive_handler
            self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, handler)

    def on_response_complete(self) -> None:
        if self._owes_since is not None:  # of a request that came meanwhile, or of a body that nobody read
            self._owes_since = self.loop.time()
        super().on_response_complete()

    def pause_writing(self) -> None:
        self._unread_since = self.loop.time()
        super().pause_writing()

    def resume_writing(self) -> None:
        self._unread_since = None
        super().resume_writing()

    def waits_for(self) -> float | None:
        """See `connections.Connection`."""
        if self._unread_since is not None:
            return self.loop.time() - self._unread_since
        is_in_work = self.cycle is not None and not self.cycle.response_complete and not self.cycle.more_body
        if self._owes_since is None or is_in_work or self.flow.read_paused or self.transport.is_closing():
            return None
        return self.loop.time() - self._owes_since

    def give_up(self) -> None:
        """See `connections.Connection`."""
        if self._unread_since is not None:
            self._limits.count("unread")
            self.transport.abort()  # an orderly end would wait until the caller has read the answer
            return
        self._limits.count("late" if self._has_sent else "silent")
        has_answered = self.cycle is not None and (self.cycle.response_complete or self.cycle.response_started)
        if self._has_sent and not has_answered:
            self.transport.write(_TIMEOUT.answer(b"", [CONNECTION_CLOSE]))
        self.transport.close()

    def _refuse(self, refusal: Refusal, *, is_last: bool = False) -> None:
        fields = self.server_state.default_headers
        keeps_alive = self.parser.should_keep_alive() and not is_last and CONNECTION_CLOSE not in fields
        if not keeps_alive and CONNECTION_CLOSE not in fields:
            fields = [*fields, CONNECTION_CLOSE]
        presented_id = next((value for name, value in self.headers if name == b"x-request-id"), b"")
        self.transport.write(refusal.answer(presented_id, fields))
        self.cycle = _REFUSED
        if keeps_alive:
            self.on_response_complete()
        else:
            self.transport.close()


def _without_upgrade(data: bytes) -> bytes:
    """Hides the header `Upgrade` from the parser, which would take the body for another protocol and drop it.

    No other protocol is spoken here, so the request is to be answered as it is (RFC 9110, 7.8). Clients ask for one
    with any request: Java's `HttpClient` for HTTP/2.
    """
    if b"pgrade" not in data and b"PGRADE" not in data:
        return data
    head, end, rest = data.partition(b"\r\n\r\n")
    return _UPGRADE.sub(b"x-grade", head) + end + rest


def counting(metrics: Metrics) -> Callable[[], None]:
    """A function that counts a refusal as the application does."""
    name = Overloaded.__name__
    count_request = metrics.http_requests_total.labels(_PATH.decode(), "POST", 429).inc
    count_rejection = metrics.rejected_total.labels(name).inc

    def count() -> None:
        count_request()
        count_rejection()
        warn_of_refusal(name)

    return count


_REFUSED: Any = Refused()
