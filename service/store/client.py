"""The Redis page: the only client that reads and writes the keys of `keys.py`. Records and catalogue are opaque here.

Every change of a user is one atomic script; every command here may be repeated without further effect, so a caller
retries as it likes. A state is small (10 % over its record) while its hash is a listpack: the server wants
`hash-max-listpack-value` above the record size (see `embedded.py`). Knows neither torch nor HTTP; all errors of the
client leave as `StoreUnavailable`.
"""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Self
from urllib.parse import unquote

from redis.asyncio import BlockingConnectionPool, Redis, RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, RedisClusterException, RedisError

from service.errors import BadRequest, StartupError, StoreUnavailable
from service.store import scripts
from service.store.events import (
    Event,
    Recalled,
    Receipt,
    Remembered,
    Saved,
    UserCounts,
    UserStates,
    decode_events,
    decode_text,
    encode_text,
    make_cursor,
    read_cursor,
    read_json,
    remembered,
)
from service.store.keys import (
    ENCODE,
    GROUP,
    ITEMS,
    ITEMS_VERSION,
    Command,
    append_command,
    encode_commands,
    save_retrieval_command,
    save_states_command,
    script_command,
    user_keys,
    user_prefix,
)

log = logging.getLogger(__name__)

CLAIM_AFTER_MS = 30_000
MAX_CONNECTIONS = 64
SCHEMES = "redis://, rediss://, unix://, redis+cluster://, rediss+cluster://"


class MemoryStore:
    """One per process and event loop. Coroutines may run at once; each takes a connection of the pool."""

    def __init__(self, client: Redis | RedisCluster, *, timeout_s: float) -> None:
        self._client = client
        self._timeout_s = timeout_s
        self._slots = asyncio.Semaphore(MAX_CONNECTIONS // 2)

    @classmethod
    async def connect(cls, url: str, *, timeout_s: float = 2.0, client_name: str = "automr") -> Self:
        """For the URLs of `SCHEMES`. The server may be down: see `ping`."""
        options: dict[str, Any] = {
            "socket_timeout": timeout_s,
            "socket_connect_timeout": timeout_s,
            "client_name": client_name,
            "max_connections": MAX_CONNECTIONS,
            # once more, for pooled connections that died with a restarted server, but not after a timeout
            "retry": Retry(ExponentialBackoff(cap=0.05, base=0.01), 1, (RedisConnectionError,)),
        }
        scheme, _, rest = url.partition("://")
        try:
            if scheme.endswith("+cluster"):
                return cls(RedisCluster.from_url(f"{scheme[:-8]}://{rest}", **options), timeout_s=timeout_s)
            pool = BlockingConnectionPool.from_url(url, timeout=timeout_s, **options)
        except ValueError as error:
            reason = f"{scheme}://: {error}; known are {SCHEMES}"
            raise StartupError(f"cannot read the store URL ({reason})") from error
        return cls(Redis.from_pool(pool), timeout_s=timeout_s)

    async def close(self) -> None:
        with _translated():
            await self._client.aclose()

    async def ping(self) -> None:
        await self._call("EXISTS", ITEMS_VERSION)  # PING would ask every node of a cluster

    # ---- a user's events

    async def append(self, events: Sequence[Event]) -> list[bool]:
        """True where the event is new, False for a duplicate (same user and event id: the first one wins).

        The users are queued for encoding even when all was known, so a retry heals a crash between the two.
        """
        by_user: dict[str, list[int]] = {}
        for position, event in enumerate(events):
            by_user.setdefault(event.user_id, []).append(position)
        appends = [append_command([events[i] for i in positions]) for positions in by_user.values()]
        requests = encode_commands(by_user)
        if isinstance(self._client, RedisCluster):  # or another node hands a request out before its event is in
            answers = await self._run(appends)
            await self._run(requests)
        else:
            answers = await self._run(appends + requests)
        is_new = [False] * len(events)
        for positions, answer in zip(by_user.values(), answers, strict=False):
            for position, flag in zip(positions, answer, strict=True):
                is_new[position] = flag == 1
        return is_new

    async def recall(self, user_id: str, space: str, limit: int) -> list[Remembered]:
        """The newest `limit` events, oldest first, with their records. One round trip, O(limit)."""
        return (await self.recall_many([user_id], space, limit))[0].events

    async def recall_and_seen(self, user_id: str, space: str, limit: int) -> tuple[list[Remembered], bytes]:
        """As `recall`, and the `item_digest` of every event, end to end in any order. One round trip."""
        answer = await self._script(scripts.RECALL, user_keys(user_id, space), max(limit, 0), "1")
        return _recalled(user_id, answer).events, answer[-1] or b""

    async def recall_many(self, user_ids: Sequence[str], space: str, limit: int) -> list[Recalled]:
        """As `recall` for each of the users, in order, in one round trip."""
        keys = [user_keys(user_id, space) for user_id in user_ids]
        answers = await self._run([script_command(scripts.RECALL, each, max(limit, 0), "") for each in keys])
        recalled = []
        for each in zip(user_ids, answers, strict=True):
            await asyncio.sleep(0)  # gives way, since of many users it takes long
            recalled.append(_recalled(*each))
        return recalled

    async def events(self, user_id: str, *, before: str | None = None, limit: int) -> tuple[list[Event], str | None]:
        """A page, newest first, and the cursor of the next. What comes or goes meanwhile disturbs nothing."""
        if limit <= 0:
            raise BadRequest("limit must be positive")
        place = read_cursor(before) if before is not None else (b"", b"")
        keys = user_keys(user_id)
        members, bodies, score = await self._script(scripts.PAGE, keys, limit, *place)
        ids = [member[17:] for member in members[:limit]]
        page = _decoded(user_id, ids, bodies[: len(ids)])
        next_cursor = make_cursor(score, members[limit - 1]) if len(members) > limit else None
        return [event for event in page if event is not None], next_cursor

    async def counts(self, user_id: str, space: str) -> UserCounts:
        prefix = user_prefix(user_id)
        sizes = await self._run([("HLEN", prefix + "events"), ("HLEN", f"{prefix}states:{space}")])
        return UserCounts(*sizes)

    async def forget_user(self, user_id: str) -> Receipt:
        """Every key of the user, of all spaces, at once."""
        return Receipt(*await self._script(scripts.FORGET_USER, user_keys(user_id), user_prefix(user_id)))

    async def forget_event(self, user_id: str, event_id: str) -> bool:
        """With its states; windows over it go stale, so the caller then asks for encoding."""
        args = user_prefix(user_id), encode_text(event_id)
        return bool(await self._script(scripts.FORGET_EVENT, user_keys(user_id), *args))

    async def users(self) -> AsyncIterator[str]:
        """Everyone with events. By SCAN: who comes or goes meanwhile may be missed, some may come twice."""
        with _translated():
            async for key in self._client.scan_iter(match="automr:{*}:events", count=1000, _type="hash"):
                yield unquote(decode_text(key[8:-8]), errors="surrogatepass")

    # ---- what was derived from them

    async def save_states(self, space: str, states: Sequence[UserStates], limit: int) -> list[Saved]:
        """Of each user those whose event is still among its newest `keep`; others go. One round trip.

        `limit` as in the `recall_many` that they follow from.
        """
        return [Saved(*each) for each in await self._run([save_states_command(each, space, limit) for each in states])]

    async def save_retrievals(self, space: str, weights: Mapping[str, Mapping[str, float]]) -> None:
        """User id -> event id -> weight, for many users in one round trip; those who are unknown stay so."""
        await self._run([save_retrieval_command(user_id, space, each) for user_id, each in weights.items()])

    async def last_retrieval(self, user_id: str, space: str) -> dict[str, float]:
        """Event id -> weight; empty when there was none."""
        found = read_json(await self._call("GET", f"{user_prefix(user_id)}retrieval:{space}"))
        return {key: float(weight) for key, weight in found.items() if isinstance(weight, int | float)}

    # ---- the encode queue: at least once

    async def request_encoding(self, user_ids: Iterable[str]) -> None:
        await self._run(encode_commands(user_ids))

    async def next_encodings(self, consumer: str, *, count: int, block_ms: int) -> list[tuple[str, str]]:
        """(entry id, user id) of entries now ours; those another worker left for 30 s first. Waits up to
        `block_ms`, but always less than the client's timeout; may return none.
        """
        entries = await self._script(scripts.CLAIM, [ENCODE], GROUP, consumer, CLAIM_AFTER_MS, count)
        if not entries:
            block = min(max(block_ms, 1), int(self._timeout_s * 500))
            options = ("COUNT", count, "BLOCK", block, "STREAMS", ENCODE, ">")
            found = await self._call("XREADGROUP", "GROUP", GROUP, consumer, *options)
            entries = [(entry, fields.get(b"user")) for _, batch in found or () for entry, fields in batch]
        await self.encoded([entry.decode() for entry, user in entries if not user])  # not written by us
        return [(entry.decode(), decode_text(user)) for entry, user in entries if user]

    async def encoded(self, entry_ids: Sequence[str]) -> None:
        if entry_ids:
            await self._script(scripts.ENCODED, [ENCODE], GROUP, *entry_ids)

    async def backlog(self) -> int:
        return int(await self._call("XLEN", ENCODE))

    async def backlog_age_s(self) -> float:
        """How long the oldest entry has been waiting, by the server's clock; 0 when there is none."""
        return int(await self._script(scripts.BACKLOG_AGE, [ENCODE])) / 1000

    # ---- the catalogue overlay

    async def put_items(self, items: Mapping[str, Mapping[str, Any]]) -> None:
        """The version grows last; a crash in between is healed by the caller's retry."""
        if items:
            pairs = ((encode_text(item_id), json.dumps(dict(body))) for item_id, body in items.items())
            await self._call("HSET", ITEMS, *(part for pair in pairs for part in pair))
            await self._call("INCR", ITEMS_VERSION)

    async def load_items(self) -> dict[str, dict[str, Any]]:
        found = await self._call("HGETALL", ITEMS)
        return {decode_text(key): body for key, raw in found.items() if (body := read_json(raw))}

    async def items_version(self) -> int:
        raw = await self._call("GET", ITEMS_VERSION)
        return int(raw) if raw and raw.isdigit() else 0

    # ---- the wire

    async def _call(self, *command: Any) -> Any:
        return (await self._run([command]))[0]

    async def _script(self, script: scripts.Script, keys: Sequence[str], *args: Any) -> Any:
        return (await self._run([script_command(script, keys, *args)]))[0]

    async def _run(self, commands: Sequence[Command]) -> list[Any]:
        """All answers, or the first error."""
        if not commands:
            return []
        with _translated():
            if not isinstance(self._client, RedisCluster):
                return await self._send(commands)
            # its pipelines refuse EVALSHA, and each node has its own scripts
            sends = (self._send_alone(command) for command in commands)
            answers = await asyncio.gather(*sends, return_exceptions=True)
            for answer in answers:
                if isinstance(answer, BaseException):
                    raise answer
            return answers

    async def _send_alone(self, command: Command) -> Any:
        async with self._slots:
            return (await self._send([command]))[0]

    async def _send(self, commands: Sequence[Command]) -> list[Any]:
        """A server that lost its scripts gets them, and the whole list again."""
        try:
            return await self._attempt(commands)
        except NoScriptError:
            for script in scripts.ALL:
                await self._client.script_load(script.text)
            return await self._attempt(commands)

    async def _attempt(self, commands: Sequence[Command]) -> list[Any]:
        if len(commands) == 1:
            return [await self._client.execute_command(*commands[0])]
        pipeline = self._client.pipeline(transaction=False)
        for command in commands:
            pipeline.execute_command(*command)
        return list(await pipeline.execute())


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (RedisError, RedisClusterException, OSError) as error:
        raise StoreUnavailable(f"The memory store does not answer ({type(error).__name__}).") from error


def _recalled(user_id: str, answer: Sequence[Any]) -> Recalled:
    """What RECALL answered, with the oldest event first."""
    ids, bodies, records, log_name, _ = answer
    return Recalled(remembered(_decoded(user_id, ids, bodies)[::-1], records[::-1]), log_name)


def _decoded(user_id: str, ids: Sequence[bytes], bodies: Sequence[bytes | None]) -> list[Event | None]:
    events = decode_events(user_id, ids, bodies)
    if not all(events):
        log.warning("skipped %d of %d stored events: not readable", events.count(None), len(events))
    return events
