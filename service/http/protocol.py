"""Refuses POST /recommend before it is read, while the service is overloaded.

The application takes 0.15 ms to refuse a request, uvicorn included; here it takes a quarter of that. Under eight times
the load that the service can answer, this is the difference between answering and only refusing. Uvicorn calls
`on_headers_complete` when it has parsed the head of a request, and starts the application there.
"""

import asyncio
import http
from collections.abc import Callable
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.errors import Overloaded
from service.http.middleware import count_rejection
from service.http.problems import REQUEST_ID, from_service_error
from service.logs import request_id_from
from service.metrics import Metrics

_PATH = b"/recommend"
_ID = "00000000-request-id"  # takes the place of the id in the prepared answer


class Refused:
    """Stands in for uvicorn's cycle of a request whose answer is complete: uvicorn ignores the body that follows."""

    response_complete = True
    keep_alive = True
    message_event = asyncio.Event()
    disconnected = False


class SheddingProtocol(HttpToolsProtocol):
    """`shed()` says whether to refuse the request that has just come."""

    def __init__(self, *args: Any, shed: Callable[[], bool], metrics: Metrics, **options: Any) -> None:
        super().__init__(*args, **options)
        self._shed, self._metrics = shed, metrics
        self._head, self._body = _prepared()

    def on_headers_complete(self) -> None:
        if self._is_plain_recommend() and self._shed():
            self._refuse()
        else:
            super().on_headers_complete()

    def _is_plain_recommend(self) -> bool:
        """Not pipelined behind a request that is still in work, and without a 100-continue."""
        is_first = self.cycle is None or self.cycle.response_complete
        return self.url == _PATH and self.parser.get_method() == b"POST" and is_first and not self.expect_100_continue

    def _refuse(self) -> None:
        presented = next((value for name, value in self.headers if name == b"x-request-id"), b"")
        request_id = request_id_from(presented.decode("latin-1")).encode()
        body = request_id.join(self._body)
        keeps_alive = self.parser.should_keep_alive()
        end = b"" if keeps_alive else b"connection: close\r\n"
        fields = b"x-request-id: %b\r\ncontent-length: %d\r\n%b\r\n" % (request_id, len(body), end)
        self.transport.write(self._head + fields + body)
        self._count()
        self.cycle = Refused()  # type: ignore[assignment]
        if keeps_alive:
            self.on_response_complete()
        else:
            self.transport.close()

    def _count(self) -> None:
        self._metrics.http_requests_total.labels("/recommend", "POST", 429).inc()
        count_rejection(self._metrics, Overloaded())


def _prepared() -> tuple[bytes, list[bytes]]:
    """The first lines of the answer, and its body around the places of the request id."""
    error = Overloaded("Too many requests are waiting to answer this one in time.")
    response = from_service_error({"path": _PATH.decode(), REQUEST_ID: _ID}, error)
    fields = [(name, value) for name, value in response.raw_headers if name != b"content-length"]
    phrase = http.HTTPStatus(response.status_code).phrase
    lines = [f"HTTP/1.1 {response.status_code} {phrase}".encode(), *(b"%b: %b" % field for field in fields)]
    return b"\r\n".join(lines) + b"\r\n", bytes(response.body).split(_ID.encode())
