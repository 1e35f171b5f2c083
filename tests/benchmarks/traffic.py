"""Clients for the soak: they send valid and invalid requests, and close connections in the middle of some.

A ledger records the answers and the acknowledged events. Each client writes events of its own users only, so that its
deletions never touch the users of another client.
"""

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.benchmarks.load import Connection, Reply, rendered

PAUSE_S = 0.02  # mean pause between two requests of a caller: the service should be busy, but not refuse most requests
USERS_PER_CALLER = 20
ITEMS_PUT = 10  # items that callers write: few, because a growing catalogue would look like a memory leak
NOW = 1_760_000_000


@dataclass
class Ledger:
    """`lost`: requests without a complete answer that we did not break off. `unexpected`: 5xx other than 503."""

    statuses: Counter[str] = field(default_factory=Counter)  # by kind of request and status
    broken_off: Counter[str] = field(default_factory=Counter)  # requests that we broke off, by the way we did
    lost: int = 0
    unexpected: list[str] = field(default_factory=list)
    acknowledged: dict[str, set[str]] = field(default_factory=dict)  # user -> event ids
    seconds: list[float] = field(default_factory=list)  # of answers to /recommend since the last sample

    def count(self, kind: str, reply: Reply) -> None:
        self.statuses[f"{kind} {reply.status}"] += 1
        if reply.status >= 500 and reply.status != 503:
            self.unexpected.append(f"{kind}: {reply.status} {reply.body[:200].decode(errors='replace')}")


class Caller:
    """Sends one request after the other, on one connection that is opened again after every break."""

    def __init__(self, port: int, items: Sequence[str], ledger: Ledger, seed: int) -> None:
        self.port, self.items, self.ledger, self.seed = port, items, ledger, seed
        self.random = random.Random(seed)
        self.number = 0
        self.connection: Connection | None = None
        self.actions: list[tuple[Callable[[], Awaitable[None]], int]] = [
            (self._recommend, 50),
            (self._interactions, 20),
            (self._delete_user, 1),
            (self._delete_event, 2),
            (self._put_item, 1),
            (self._invalid, 5),
            (self._oversized, 2),
            (self._leave_while_it_works, 8),
            (self._leave_within_the_body, 5),
        ]

    async def run(self, ends: float) -> None:
        actions, weights = zip(*self.actions, strict=True)
        while time.monotonic() < ends:
            await self.random.choices(actions, weights)[0]()
            await asyncio.sleep(self.random.expovariate(1 / PAUSE_S))
        self._hang_up()

    def _user(self) -> str:
        return f"soak-{self.seed}-{self.random.randrange(USERS_PER_CALLER)}"

    def _request(self) -> dict[str, Any]:
        options: list[dict[str, Any]] = [
            {},
            {"k": 30},
            {"explain": False},
            {"recent": [{"item_id": item} for item in self.random.sample(self.items, 3)]},
            {"exclude_seen": False, "candidates": self.random.sample(self.items, 20)},
            {"deadline_ms": self.random.choice((1, 20, 200))},
        ]
        return {"user_id": self._user(), "k": 10, **self.random.choice(options)}

    async def _recommend(self) -> None:
        started = time.perf_counter()
        if (reply := await self._ask("recommend", "POST", "/recommend", self._request())) and reply.status == 200:
            self.ledger.seconds.append(time.perf_counter() - started)

    async def _interactions(self) -> None:
        events = [self._event() for _ in range(self.random.randint(1, 20))]
        wait = self.random.choice(("durable", "durable", "visible"))
        reply = await self._ask("interactions", "POST", "/interactions", {"interactions": events, "wait": wait})
        if reply and reply.status < 300:
            for event in events:
                self.ledger.acknowledged.setdefault(event["user_id"], set()).add(event["event_id"])

    def _event(self) -> dict[str, Any]:
        self.number += 1
        facts = {"item_id": self.random.choice(self.items), "timestamp": NOW + self.number}
        return {"event_id": f"{self.seed}-{self.number}", "user_id": self._user(), **facts}

    async def _delete_user(self) -> None:
        """The ledger forgets the user before the request is sent: from then on its events may be missing."""
        user_id = self._user()
        self.ledger.acknowledged.pop(user_id, None)
        await self._ask("delete user", "DELETE", f"/users/{user_id}")

    async def _delete_event(self) -> None:
        user_id = self._user()
        if event_ids := self.ledger.acknowledged.get(user_id):
            await self._ask("delete event", "DELETE", f"/users/{user_id}/interactions/{event_ids.pop()}")

    async def _put_item(self) -> None:
        number = self.random.randrange(ITEMS_PUT)
        await self._ask("put item", "PUT", f"/items/soak-{number}", {"title": f"A late item, number {number}"})

    async def _invalid(self) -> None:
        bodies: list[bytes] = [b"{", b"[]", b'{"k": -1}', b'{"user_id": 3}', b'{"user_id": "u", "what": 1}', b"\xff"]
        path = self.random.choice(("/recommend", "/interactions"))
        await self._ask("invalid", "POST", path, self.random.choice(bodies))

    async def _oversized(self) -> None:
        """The server may answer 413 and close the connection while we still send."""
        body = json.dumps({"user_id": "x" * (2 << 20)}).encode()
        await self._ask("oversized", "POST", "/recommend", body)
        self._hang_up()

    async def _leave_while_it_works(self) -> None:
        connection = await self._connected()
        connection.send(rendered("POST", "/recommend", json.dumps(self._request()).encode()))
        await asyncio.sleep(self.random.uniform(0, 0.05))
        self.ledger.broken_off["left while it worked"] += 1
        self._hang_up()

    async def _leave_within_the_body(self) -> None:
        connection = await self._connected()
        whole = json.dumps({"interactions": [self._unsent() for _ in range(50)]}).encode()
        num_unsent = self.random.randrange(1, len(whole))
        connection.send(rendered("POST", "/interactions", whole)[:-num_unsent])
        await asyncio.sleep(self.random.uniform(0, 0.02))
        self.ledger.broken_off["left within the body"] += 1
        self._hang_up()

    def _unsent(self) -> dict[str, Any]:
        return {"user_id": "soak-nobody", "item_id": self.items[0], "timestamp": NOW}

    async def _ask(self, kind: str, method: str, path: str, body: Any = None) -> Reply | None:
        """None, counted as lost, when no complete answer comes."""
        content = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        connection = await self._connected()
        reply = await connection.ask(rendered(method, path, content))
        if reply is None:
            self.ledger.lost += 1
            self.ledger.statuses[f"{kind} lost"] += 1
            self._hang_up()
            return None
        self.ledger.count(kind, reply)
        return reply

    async def _connected(self) -> Connection:
        if self.connection is None or not self.connection.is_open:
            self._hang_up()
            self.connection = await Connection.open(self.port)
        return self.connection

    def _hang_up(self) -> None:
        if self.connection is not None:
            self.connection.close()
            self.connection = None
