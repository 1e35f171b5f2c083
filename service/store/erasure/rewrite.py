"""Makes the store write its files anew, so that the bytes of what was deleted leave them.

An append-only file keeps every command until it is rewritten (BGREWRITEAOF), and a snapshot is old until the next one
(BGSAVE). Both run in a child process of the store, which goes on serving. On a cluster every node does it, replicas
included. The replicas of a store without a cluster cannot be reached from here: their number is told.
"""

import asyncio
import time
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from service.errors import StoreUnavailable
from service.store.client import MemoryStore
from service.store.erasure.deletions import SETTLE_AFTER_S
from service.store.events import decode_text
from service.store.keys import ERASING, FILES_PREFIX, RECEIPTS
from service.store.reasons import NO_COMMAND, NO_RIGHTS, reason_of

_ASK_EVERY_S = 0.1
_UNWRITTEN, _REWRITING, _REWRITTEN, _LEASE = (
    FILES_PREFIX + name for name in ("unwritten", "rewriting", "rewritten", "lease")
)
_LEASE_S = 30
_MOST_DIGITS = 12  # of a time

# KEYS: unwritten, rewriting, receipts  ->  id of the last receipt, or false. `rewriting` keeps the older time if a
# rewriting was broken off.
_BEGIN = """
local time = redis.call('GETDEL', KEYS[1])
if time then redis.call('SET', KEYS[2], time, 'NX') end
local last = redis.call('XREVRANGE', KEYS[3], '+', '-', 'COUNT', 1)[1]
return last and last[1]
"""
# KEYS: unwritten, rewriting, rewritten, users; ARGV: id of a receipt, or ''  ->  nothing. A deletion that is not
# finished needs another rewriting.
_END = """
local time = redis.call('GETDEL', KEYS[2])
if time and redis.call('ZCARD', KEYS[4]) > 0 then redis.call('SET', KEYS[1], time, 'NX') end
if ARGV[1] ~= '' then redis.call('SET', KEYS[3], ARGV[1]) end
"""


class Files(NamedTuple):
    """What is known of the files. `unwritten_since`: Unix seconds of the first deletion whose bytes may be in them,
    None if there is none. `rewritten_to`: id of the last receipt whose deletion left no byte in them.
    """

    now: int
    unwritten_since: int | None
    rewritten_to: str | None


class Rewritten(NamedTuple):
    """`nodes`: how many servers wrote their files. `replicas`: servers with files of their own that were not asked."""

    status: Literal["done", "no_files", "not_allowed"]
    nodes: int
    replicas: int


def _time(raw: bytes | None) -> int | None:
    """Unix seconds. What another program wrote is a time long ago, so the files are rewritten."""
    if not raw:
        return None
    return int(raw) if raw.isdigit() and len(raw) <= _MOST_DIGITS else 1


class StoreFiles:
    def __init__(self, store: MemoryStore) -> None:
        self.store = store

    async def look(self) -> Files:
        """One round trip."""
        commands = [("TIME",), ("GET", _UNWRITTEN), ("GET", _REWRITING), ("GET", _REWRITTEN)]
        if self.store.is_cluster:  # TIME has no key
            now, *facts = int(time.time()), *await self.store.run(commands[1:])
        else:
            (seconds, _), *facts = await self.store.run(commands)
            now = int(seconds)
        unwritten, rewriting = (_time(fact) for fact in facts[:2])
        rewritten_to = decode_text(facts[2]) if facts[2] else None
        return Files(now, min(filter(None, (unwritten, rewriting)), default=None), rewritten_to)

    async def lease(self, owner: str) -> bool:
        """Whether this process may rewrite now; call it again at least every 30 s while it does."""
        (_, holder) = await self.store.run([("SET", _LEASE, owner, "NX", "EX", _LEASE_S), ("GET", _LEASE)])
        if holder is None or decode_text(holder) != owner:
            return False
        await self.store.run([("EXPIRE", _LEASE, _LEASE_S)])
        return True

    async def rewrite(self) -> Rewritten:
        """Returns when the files of every node hold nothing that was deleted before the call.

        Raises StoreUnavailable when a node is unavailable or could not write. May be repeated, also after a kill.
        """
        (last,) = await self.store.run([("EVAL", _BEGIN, 3, _UNWRITTEN, _REWRITING, RECEIPTS)])
        try:
            nodes = await self.store.node_names()
            written = await asyncio.gather(*map(self._rewrite_node, nodes))
        except StoreUnavailable as error:
            if reason_of(error.__cause__ or error) in (NO_RIGHTS, NO_COMMAND):
                return Rewritten("not_allowed", 0, 0)
            raise
        replicas = 0 if self.store.is_cluster else sum(number for _, number in written)
        num_written = sum(is_written for is_written, _ in written)
        await self.store.run([("EVAL", _END, 4, _UNWRITTEN, _REWRITING, _REWRITTEN, ERASING, self._complete(last))])
        return Rewritten("done" if num_written else "no_files", num_written, replicas)

    def _complete(self, last: bytes | None) -> str:
        """The last receipt whose deletion is complete. On a cluster it is looked at again after a while."""
        if last is None or not self.store.is_cluster:
            return decode_text(last or b"")
        at = min(int(last.partition(b"-")[0]), int(1000 * (time.time() - 2 * SETTLE_AFTER_S)))
        return f"{at}-0"

    async def _rewrite_node(self, node: str) -> tuple[bool, int]:
        """Whether the node has files, and how many replicas it has."""
        facts = await self._facts(node)
        replicas = int((await self.store.ask_node(node, "INFO", "replication")).get("connected_slaves", 0))
        has_log = bool(facts.get("aof_enabled"))
        has_snapshots = bool(facts.get("rdb_saves")) or await self._saves(node)
        if has_log:
            await self._once(node, "BGREWRITEAOF", "aof_last_bgrewrite_status")
        if has_snapshots:
            await self._once(node, "BGSAVE", "rdb_last_bgsave_status")
        return has_log or has_snapshots, replicas

    async def _once(self, node: str, command: str, status: str) -> None:
        """Runs the command after one that runs already, which may have begun before a deletion; waits for its end."""
        await self._until_idle(node)
        await self.store.ask_node(node, command)
        await asyncio.sleep(_ASK_EVERY_S)
        facts = await self._until_idle(node)
        if facts.get(status) != "ok":
            raise StoreUnavailable(f"The memory store could not rewrite its files ({command}); see its log.")

    async def _until_idle(self, node: str) -> Mapping[str, Any]:
        names = "aof_rewrite_in_progress", "aof_rewrite_scheduled", "rdb_bgsave_in_progress"
        while True:
            facts = await self._facts(node)
            if not any(facts.get(name) for name in names):
                return facts
            await asyncio.sleep(_ASK_EVERY_S)

    async def _facts(self, node: str) -> Mapping[str, Any]:
        found: Mapping[str, Any] = await self.store.ask_node(node, "INFO", "persistence")
        return found

    async def _saves(self, node: str) -> bool:
        """Whether the node makes snapshots by itself; False where it does not tell."""
        try:
            found = await self.store.ask_node(node, "CONFIG", "GET", "save")
        except StoreUnavailable:
            return False
        value = found.get(b"save", found.get("save", b"")) if isinstance(found, dict) else b"".join(found[1:])
        return bool(value)
