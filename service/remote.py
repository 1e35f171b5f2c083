"""Calls a running server for the commands of the command line. Raises RemoteError with what the server says.

In: the address of a server, a route and a body. Out: the JSON of the answer.
"""

import json
from collections.abc import Mapping
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError
from urllib.parse import quote, urlencode
from urllib.request import Request, urlopen

from service.errors import ServiceError

_TIMEOUT_S = 120.0  # a bundle that is opened anew to be activated takes long


class RemoteError(ServiceError):
    title = "The server refused"


class Remote:
    """`key`: an API key of the server; None where it asks for none."""

    def __init__(self, url: str, key: str | None = None) -> None:
        self._url, self._key = url.rstrip("/"), key

    def ask(self, method: str, path: str, body: Mapping[str, Any] | None = None, **query: str) -> dict[str, Any]:
        """`path` is percent-encoded here, except for / and :."""
        headers = {"Content-Type": "application/json"} | ({"X-API-Key": self._key} if self._key else {})
        content = None if body is None else json.dumps(body).encode()
        address = self._url + quote(path, safe="/:") + (f"?{urlencode(query)}" if query else "")
        try:
            request = Request(address, content, headers, method=method)
            with urlopen(request, timeout=_TIMEOUT_S) as answer:
                found: dict[str, Any] = json.load(answer)
                return found
        except HTTPError as error:
            raise RemoteError(_detail(error)) from None
        except (OSError, HTTPException, ValueError) as error:
            raise RemoteError(f"{self._url} does not answer as AutoMR does: {error}") from None


def _detail(error: HTTPError) -> str:
    try:
        return f"{error.code}: {json.load(error)['detail']}"
    except (ValueError, KeyError, TypeError):
        return f"{error.code}: {error.reason}"
