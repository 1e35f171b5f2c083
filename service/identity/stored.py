"""API keys in the store: their records as JSON, written one change at a time.

`automr:{+keys}:records` holds a record for each key: never a key, only its SHA-256 digest. A writer names the version
that it has read, so two writers cannot overwrite each other; each change raises the version. Takes `MemoryStore.run`;
its errors come through.
"""

import json
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import structlog
from pydantic import ConfigDict, TypeAdapter

from service.identity.rates import parse
from service.identity.scopes import SCOPES, Scope
from service.logs import RepeatedWarnings
from service.store.events import decode_text, read_json
from service.store.keys import KEY_RECORDS, KEYS_USED, KEYS_VERSION

log = structlog.get_logger("service.identity.stored")
repeated = RepeatedWarnings(log)

Run = Callable[[Sequence[tuple[Any, ...]]], Awaitable[list[Any]]]

_MOST_DIGITS = 15  # of a version

# KEYS: records, version, used; ARGV: the version that was read, key id, record or ""  ->  1 if it was written
_WRITE = """
local version = redis.call('GET', KEYS[2]) or '0'
if not string.match(version, '^%d+$') or #version > 15 then
  version = '0'
  redis.call('SET', KEYS[2], version)
end
if version ~= ARGV[1] then return 0 end
if ARGV[3] == '' then
  redis.call('HDEL', KEYS[1], ARGV[2])
  redis.call('HDEL', KEYS[3], ARGV[2])
else
  redis.call('HSET', KEYS[1], ARGV[2], ARGV[3])
end
redis.call('INCR', KEYS[2])
return 1
"""


_ALL_KNOWN = ConfigDict(extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True)
class Secret:
    """One key of a record. `shown`: its first characters. `expires_at`: a time, None for as long as the record."""

    __pydantic_config__ = _ALL_KNOWN

    sha256: str
    shown: str
    expires_at: float | None = None


@dataclass(frozen=True)
class KeyRecord:
    """Times are Unix seconds. `secrets`: the newest first; older ones are being replaced, and expire."""

    __pydantic_config__ = _ALL_KNOWN

    id: str
    name: str
    scopes: tuple[Scope, ...]
    created_at: float
    secrets: tuple[Secret, ...]
    tenant: str = ""
    rate_limit: str = ""
    expires_at: float | None = None


_RECORDS = TypeAdapter(KeyRecord)


def new_id() -> str:
    return "key_" + secrets.token_hex(6)


class KeyStore:
    def __init__(self, run: Run) -> None:
        self._run = run

    async def version(self) -> int:
        (found,) = await self._run([("GET", KEYS_VERSION)])
        return _version(found)

    async def count(self) -> int:
        """How many records there are, those that cannot be read among them."""
        (found,) = await self._run([("HLEN", KEY_RECORDS)])
        return int(found)

    async def read(self) -> tuple[int, dict[str, KeyRecord]]:
        """The version and all records by id. A record that cannot be read is skipped, so its key is refused."""
        version, found = await self._run([("GET", KEYS_VERSION), ("HGETALL", KEY_RECORDS)])
        records = [record_of(decode_text(name), raw) for name, raw in found.items()]
        return _version(version), {each.id: each for each in records if each is not None}

    async def write(self, version: int, key_id: str, record: KeyRecord | None) -> bool:
        """Writes or (None) deletes a record. False if something changed since `version`: read again."""
        body = "" if record is None else json.dumps(asdict(record))
        keys = KEY_RECORDS, KEYS_VERSION, KEYS_USED
        (is_written,) = await self._run([("EVAL", _WRITE, len(keys), *keys, version, key_id, body)])
        return bool(is_written)

    async def save_used(self, times: Mapping[str, int]) -> None:
        """When these keys were used last."""
        if times:
            await self._run([("HSET", KEYS_USED, *(part for pair in times.items() for part in pair))])

    async def used(self) -> dict[str, int]:
        (found,) = await self._run([("HGETALL", KEYS_USED)])
        return {decode_text(name): int(raw) for name, raw in found.items() if raw.isdigit()}


def _version(raw: bytes | None) -> int:
    """0 where another program wrote something else; the next change writes a version again."""
    return int(raw) if raw is not None and raw.isdigit() and len(raw) <= _MOST_DIGITS else 0


def record_of(key_id: str, raw: bytes) -> KeyRecord | None:
    """None for a record that cannot be read, or that has a fact that this version does not know."""
    facts = read_json(raw)
    try:
        named = facts.pop("scopes")
        scopes = [scope for scope in SCOPES if scope in named]
        record = _RECORDS.validate_python({**facts, "scopes": scopes})
        parse(record.rate_limit)
        if record.id != key_id:
            raise ValueError(key_id)
        return record
    except (KeyError, TypeError, ValueError):
        repeated.warning("a stored key cannot be read and is refused", key_id=key_id[:32])
        return None
