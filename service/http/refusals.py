"""Answers that are made once and sent many times: refusals below the application, each with the id of its request."""

import http
import json
import os
from collections.abc import Iterable

from service.errors import ServiceError
from service.http.problems import REQUEST_ID, from_service_error
from service.logs import request_id_from

_ID = "00000000-request-id"  # takes the place of the id in the prepared answer


class Refusal:
    """The problem document of `error`, as bytes of HTTP/1.1."""

    def __init__(self, error: ServiceError, path: str = "") -> None:
        response = from_service_error({"path": path, REQUEST_ID: _ID}, error)
        fields = [(name, value) for name, value in response.raw_headers if name != b"content-length"]
        phrase = http.HTTPStatus(response.status_code).phrase
        lines = [f"HTTP/1.1 {response.status_code} {phrase}".encode(), *(b"%b: %b" % field for field in fields)]
        self._head, self._body = b"\r\n".join(lines) + b"\r\n", bytes(response.body).split(_ID.encode())

    def answer(self, presented_id: bytes, more_fields: Iterable[tuple[bytes, bytes]]) -> bytes:
        """`presented_id`: the request's `X-Request-ID`, empty if it has none."""
        request_id = request_id_from(presented_id.decode("latin-1")) if presented_id else os.urandom(16).hex()
        escaped = json.dumps(request_id)[1:-1] if presented_id else request_id
        body = escaped.encode().join(self._body)
        more = b"".join(b"%b: %b\r\n" % field for field in more_fields)
        return b"%bx-request-id: %b\r\ncontent-length: %d\r\n%b\r\n%b" % (
            self._head, request_id.encode(), len(body), more, body
        )  # fmt: skip
