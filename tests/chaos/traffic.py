"""Requests that go on while things break, and what may be said about them afterwards.

Senders repeat an event until it is acknowledged. Deleters delete users and then send their old events again. Readers
ask for recommendations for users whose keys are sound. `Tally` counts what must not happen.
"""

import asyncio
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import httpx2

NOW = 1_700_000_000
NUM_USERS, NUM_ITEMS = 12, 20
_PATIENCE_S = 120.0
POISONED = "poisoned"  # a user whose keys are damaged on purpose; nothing is promised about this one
_RESETS = (httpx2.ReadError, httpx2.RemoteProtocolError, httpx2.WriteError, httpx2.ConnectError)


@dataclass
class Tally:
    """`lost`, `doubled`, `resurrected`, `harmed` and `reset` must stay 0.

    `reset`: requests whose connection broke or was refused while the server itself was alive. `broken`: those that
    broke because the server was killed; a kill leaves no answer, so senders repeat them, and they count as acknowledged
    only by a later answer. `harmed`: answers of the status 500 about users who have nothing to do with what was broken,
    or an answer for another user.
    """

    acknowledged: dict[str, set[str]] = field(default_factory=dict)
    deleted: set[str] = field(default_factory=set)
    kills: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    statuses: Counter[int] = field(default_factory=Counter)
    lost: int = 0
    doubled: int = 0
    resurrected: int = 0
    harmed: int = 0
    reset: int = 0
    broken: int = 0
    served_in_restarts: int = 0

    @property
    def bad(self) -> dict[str, int]:
        return {name: getattr(self, name) for name in ("lost", "doubled", "resurrected", "harmed", "reset")}

    @property
    def num_acknowledged(self) -> int:
        return sum(map(len, self.acknowledged.values()))


class Traffic:
    """`is_killed` is true from a kill of the server until it is ready again."""

    def __init__(self, client: httpx2.AsyncClient, tally: Tally, seed: int, prefix: str) -> None:
        self.client, self.tally, self.prefix = client, tally, prefix
        self.dice = random.Random(seed)
        self.is_killed = False
        self._number = 0
        self._is_over = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def start(self, *, num_senders: int = 3) -> None:
        loops = [self._send] * num_senders + [self._delete, self._read]
        self._tasks = [asyncio.create_task(loop()) for loop in loops]

    async def stop(self) -> None:
        """Returns when everything that was begun is acknowledged."""
        self._is_over.set()
        await asyncio.gather(*self._tasks)

    async def until_more(self, events: int) -> None:
        """Returns when so many more events are acknowledged, and one more user is deleted: there is load."""
        wanted, num_deleted = self.tally.num_acknowledged + events, len(self.tally.deleted)
        deadline = time.monotonic() + _PATIENCE_S
        while self.tally.num_acknowledged < wanted or len(self.tally.deleted) == num_deleted:
            assert time.monotonic() < deadline, "the service takes no more events in, or deletes no users"
            await asyncio.sleep(0.02)

    async def ask(self, method: str, path: str, body: Any = None) -> httpx2.Response | None:
        """None for no answer."""
        was_killed = self.is_killed
        try:
            answer = await self.client.request(method, path, json=body)
        except _RESETS:
            if was_killed or self.is_killed:
                self.tally.broken += 1
            else:
                self.tally.reset += 1
            return None
        except httpx2.TransportError:
            return None
        self.tally.statuses[answer.status_code] += 1
        self.tally.harmed += answer.status_code == 500
        return answer

    async def until(self, method: str, path: str, body: Any, *statuses: int) -> httpx2.Response:
        """Repeats the request until the answer has one of these statuses."""
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            answer = await self.ask(method, path, body)
            if answer is not None and answer.status_code in statuses:
                return answer
            assert time.monotonic() < deadline, f"{method} {path}: no good answer for two minutes, last {answer}"
            await asyncio.sleep(0.05)

    def _events(self, user: str, count: int) -> list[dict[str, Any]]:
        self._number += count
        numbers = range(self._number - count, self._number)
        facts = ({"event_id": f"{user}-{n}", "item_id": f"i{n % NUM_ITEMS}", "timestamp": NOW + n} for n in numbers)
        return [{"user_id": user, **each} for each in facts]

    async def _send(self) -> None:
        while not self._is_over.is_set():
            user = f"{self.prefix}{self.dice.randrange(NUM_USERS)}"
            events = self._events(user, self.dice.randint(1, 4))
            answer = await self.until("POST", "/interactions", {"interactions": events}, 202)
            for result in answer.json()["results"]:
                assert result["status"] in ("accepted", "duplicate"), result
                self.tally.acknowledged.setdefault(user, set()).add(result["event_id"])
            await asyncio.sleep(0.01)

    async def _delete(self) -> None:
        number = 0
        while not self._is_over.is_set():
            number += 1
            user = f"{self.prefix}gone{number}"
            events = {"interactions": self._events(user, 3)}
            await self.until("POST", "/interactions", events, 202)
            await self.until("DELETE", f"/users/{user}", None, 200)
            self.tally.deleted.add(user)
            await self.until("POST", "/interactions", events, 422)  # a late retry
            await asyncio.sleep(0.05)

    async def _read(self) -> None:
        while not self._is_over.is_set():
            user = f"{self.prefix}{self.dice.randrange(NUM_USERS)}"
            answer = await self.ask("POST", "/recommend", {"user_id": user, "k": 3})
            if answer is not None and answer.status_code == 200:
                self.tally.harmed += answer.json()["user_id"] != user
            await asyncio.sleep(0.02)

    async def look(self) -> None:
        """Compares what is stored with what was acknowledged and deleted."""
        for user, expected in self.tally.acknowledged.items():
            if user.startswith(self.prefix):
                answer = await self.until("GET", f"/users/{user}/export", None, 200)
                found = [line.split('"event_id": "', 1)[1].split('"', 1)[0] for line in answer.text.splitlines()]
                self.tally.lost += len(expected - set(found))
                self.tally.doubled += len(found) - len(set(found))
        for user in self.tally.deleted:
            if user.startswith(self.prefix):
                answer = await self.until("GET", f"/users/{user}", None, 200, 404)
                self.tally.resurrected += answer.status_code == 200
