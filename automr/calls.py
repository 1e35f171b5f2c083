"""What a method asks for, before it is sent: method, path, body, and how long to wait for the answer."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import quote

import httpx

Kind = Literal["read", "recommend", "write", "visible", "slow"]


@dataclass(frozen=True)
class Timeouts:
    """Seconds to wait for an answer, by kind of call. A call that is repeated has this time for each attempt."""

    connect_s: float = 2.0
    read_s: float = 5.0
    recommend_s: float = 5.0  # the service itself gives up after `deadline_ms`, 2 s by default
    write_s: float = 10.0
    visible_s: float = 40.0  # POST /interactions with `wait: visible`: the service waits up to 30 s
    slow_s: float = 300.0  # exports, and other answers of any length

    def of(self, kind: Kind) -> httpx.Timeout:
        seconds: float = getattr(self, f"{kind}_s")
        return httpx.Timeout(seconds, connect=self.connect_s)


@dataclass(frozen=True)
class Call:
    """`is_idempotent`: carried out twice, it changes no more than once."""

    method: str
    path: str
    kind: Kind = "read"
    body: Mapping[str, Any] | None = None
    params: Mapping[str, Any] = field(default_factory=dict)
    is_idempotent: bool = True

    @property
    def query(self) -> dict[str, Any]:
        """The parameters that were given."""
        return {name: value for name, value in self.params.items() if value is not None}


def as_text(filter: Mapping[str, Any] | None) -> str | None:
    """A filter as a parameter of a query."""
    return None if filter is None else json.dumps(filter)


def path(template: str, *ids: str) -> str:
    """Fills in ids, percent-encoded: path("/items/{}", "a/b") is "/items/a%2Fb"."""
    return template.format(*(quote(each, safe="").replace(".", "%2E") for each in ids))
