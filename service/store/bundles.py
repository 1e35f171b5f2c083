"""Which bundles are served, in Redis: every replica reads it and follows, and a restart finds it again.

`automr:bundles` holds JSON: the bundles that are loaded, which of them answers, and which one answered before. A writer
names the version that it has read, so two writers cannot overwrite each other. `automr:bundles:fill` holds how far the
memory of each is filled. Takes `MemoryStore.run`; its errors come through.
"""

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from service.store.events import decode_text, encode_text, read_json
from service.store.keys import BUNDLES, BUNDLES_FILL

CONFIGURED = "configured"  # the bundle that the settings of each process name
FILL_LEASE_S = 30
_MOST_USERS = 2**53

Run = Callable[[Sequence[tuple[Any, ...]]], Awaitable[list[Any]]]

# KEYS: bundles; ARGV: the version that was read, the new value  ->  1 if it was written
_WRITE = """
local old = redis.call('GET', KEYS[1])
local version = old and tonumber(string.match(old, '^{"version": (%d+)')) or 0
if version ~= tonumber(ARGV[1]) then return 0 end
redis.call('SET', KEYS[1], ARGV[2])
return 1
"""
# KEYS: lease; ARGV: who, seconds  ->  1 if it is theirs now
_LEASE = """
local owner = redis.call('GET', KEYS[1])
if owner and owner ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
return 1
"""


@dataclass(frozen=True)
class Source:
    """`directory` is relative to the directory of bundles; `precision` as in the settings."""

    directory: str
    precision: str = "bundle"


@dataclass(frozen=True)
class BundleState:
    """`loaded` has no entry for the configured bundle, which every process knows."""

    version: int = 0
    active: str = CONFIGURED
    previous: str | None = None
    loaded: Mapping[str, Source] = field(default_factory=dict)

    def activated(self, name: str) -> "BundleState":
        return self if name == self.active else replace(self, active=name, previous=self.active)


@dataclass(frozen=True)
class Fill:
    """How far the memory of a bundle is filled: users looked at, of about `total`, and states that were made."""

    users: int = 0
    total: int = 0
    states: int = 0
    is_done: bool = False


class BundleStore:
    def __init__(self, run: Run) -> None:
        self._run = run

    async def read(self) -> BundleState:
        """What is unreadable counts as none."""
        (raw,) = await self._run([("GET", BUNDLES)])
        facts = read_json(raw)
        listed, active, previous = (facts.get(name) for name in ("loaded", "active", "previous"))
        found = {name: _source(each) for name, each in listed.items()} if isinstance(listed, dict) else {}
        return BundleState(
            facts["version"] if isinstance(facts.get("version"), int) else 0,
            active if isinstance(active, str) else CONFIGURED,
            previous if isinstance(previous, str) else None,
            {name: source for name, source in found.items() if source is not None},
        )

    async def write(self, state: BundleState) -> bool:
        """False if another writer was faster: read again. `state` has the version that was read."""
        body = json.dumps({**asdict(state), "version": state.version + 1})
        (is_written,) = await self._run([("EVAL", _WRITE, 1, BUNDLES, state.version, encode_text(body))])
        return bool(is_written)

    async def lease_fill(self, name: str, owner: str) -> bool:
        """Whether `owner` is the one that fills the memory of this bundle, for `FILL_LEASE_S` seconds from now."""
        (is_owner,) = await self._run([("EVAL", _LEASE, 1, f"{BUNDLES_FILL}:{name}", owner, FILL_LEASE_S)])
        return bool(is_owner)

    async def save_fill(self, name: str, fill: Fill) -> None:
        await self._run([("HSET", BUNDLES_FILL, encode_text(name), json.dumps(asdict(fill)))])

    async def drop_fill(self, name: str) -> None:
        """Also the lease, so that the next bundle of this name need not wait for its end."""
        await self._run([("HDEL", BUNDLES_FILL, encode_text(name)), ("DEL", f"{BUNDLES_FILL}:{name}")])

    async def fills(self) -> dict[str, Fill]:
        (found,) = await self._run([("HGETALL", BUNDLES_FILL)])
        return {decode_text(name): _fill(read_json(raw)) for name, raw in found.items()}


def _source(facts: object) -> Source | None:
    if not isinstance(facts, dict) or not isinstance(facts.get("directory"), str):
        return None
    precision = facts.get("precision", "bundle")
    return Source(facts["directory"], precision) if isinstance(precision, str) else None


def _fill(facts: Mapping[str, Any]) -> Fill:
    numbers = [facts.get(name) for name in ("users", "total", "states")]
    users, total, states = (each if type(each) is int and each <= _MOST_USERS else 0 for each in numbers)
    return Fill(users, total, states, facts.get("is_done") is True)
