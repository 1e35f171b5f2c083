"""The keys of the store in this process: looked up without the store, which is followed in the background.

A change by another process is known here within `LOOK_EVERY_S` and the time of one call to the store. While the store
is unavailable, the keys that are known go on working for `MOST_AGE_S`; nobody can revoke one meanwhile. After that they
get 503, because a key may have been revoked that this process alone does not know of.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import structlog

from service.background import Repeated
from service.errors import KeyConflict, StoreUnavailable, UnknownKey
from service.identity.keys import SHOWN_LENGTH, hashed, new_secret
from service.identity.principal import Principal, caller
from service.identity.scopes import OF_ALL_TENANTS, SCOPES, Scope
from service.identity.stored import KeyRecord, KeyStore, Run, Secret, new_id

log = structlog.get_logger("service.identity.keyring")

LOOK_EVERY_S = 2.0
MOST_AGE_S = 3600.0
USED_EVERY_S = 60
DAY_S = 86_400
MOST_OVERLAP_S = 30 * DAY_S
_MOST_KEYS = 1000
_MOST_SECRETS = 3  # of a record
_MOST_ATTEMPTS = 20  # of a change while others change keys, too


@dataclass(frozen=True)
class NewKey:
    name: str
    scopes: Sequence[Scope]
    tenant: str = ""
    rate_limit: str = ""
    expires_at: float | None = None


class Keyring:
    """One for each store of a process, for one event loop."""

    def __init__(self, run: Run, *, rate_limit: str = "", clock: Callable[[], float] = time.time) -> None:
        """`rate_limit`: of keys without one of their own."""
        self._store, self._rate_limit, self._clock = KeyStore(run), rate_limit, clock
        self._version = -1
        self._by_digest: dict[str, tuple[Principal, float]] = {}  # and until when
        self._read_at = float("-inf")
        self._used: dict[str, int] = {}  # since they were saved
        self._following = Repeated("api-keys", self._catch_up, every_s=LOOK_EVERY_S)
        self._saving = Repeated("last-use-of-api-keys", self._save_used, every_s=USED_EVERY_S)

    async def start(self) -> None:
        """Also where the store is unavailable: then its keys are refused until it answers."""
        await self._following.once()
        self._following.start()
        self._saving.start()

    async def stop(self) -> None:
        await self._following.stop()
        await self._saving.stop()
        await self._saving.once()

    def principal(self, digest: str) -> Principal | None:
        """Who has the key with this digest; None if nobody. Raises StoreUnavailable when this is not known any more.

        A dict finds it: the digest of a random key is as good as random, so the time of a look-up tells nothing that
        helps to find a key.
        """
        now = self._clock()
        found = self._by_digest.get(digest)
        if self._read_at < now - MOST_AGE_S and (found is not None or not self._by_digest):
            raise StoreUnavailable("The memory store is unavailable, so it is not known whether this key is valid.")
        if found is None or found[1] <= now:
            return None
        principal, _ = found
        self._used[principal.key_id] = int(now) // USED_EVERY_S * USED_EVERY_S
        return principal

    async def listed(self) -> list[tuple[KeyRecord, int | None]]:
        """All records, the oldest first, and when each was used last, to the minute. Raises StoreUnavailable."""
        await self._save_used()
        _, records = await self._store.read()
        used = await self._store.used()
        return [(each, used.get(each.id)) for each in sorted(records.values(), key=lambda each: each.created_at)]

    async def create(self, wanted: NewKey) -> tuple[str, KeyRecord]:
        """A new key, which is shown this once, and its record. Raises KeyConflict and StoreUnavailable."""
        if wanted.tenant and (wrong := OF_ALL_TENANTS.intersection(wanted.scopes)):
            raise KeyConflict(f"{', '.join(sorted(wrong))} concern all tenants: a key of one tenant cannot have them.")
        key, now = new_secret(), self._clock()
        record = KeyRecord(
            id=new_id(),
            name=wanted.name,
            scopes=tuple(scope for scope in SCOPES if scope in wanted.scopes),
            created_at=now,
            secrets=(_secret(key),),
            tenant=wanted.tenant,
            rate_limit=wanted.rate_limit,
            expires_at=wanted.expires_at,
        )

        def add(records: dict[str, KeyRecord]) -> KeyRecord:
            if len(records) >= _MOST_KEYS:
                raise KeyConflict(f"There are {_MOST_KEYS} keys; revoke some first.")
            return record

        await self._change(record.id, add)
        log.info("key created", key=record.id, by=caller.get().key_id)
        return key, record

    async def rotate(self, key_id: str, *, overlap_s: float) -> tuple[str, KeyRecord]:
        """A further key for a record; the keys before it end after `overlap_s`. Raises UnknownKey."""
        key = new_secret()

        def rotated(records: dict[str, KeyRecord]) -> KeyRecord:
            record, now = _of(records, key_id), self._clock()
            ends = now + overlap_s
            old = [replace(each, expires_at=min(each.expires_at or ends, ends)) for each in record.secrets]
            kept = [each for each in old if (each.expires_at or ends) > now][: _MOST_SECRETS - 1]
            return replace(record, secrets=(_secret(key), *kept))

        record = await self._change(key_id, rotated)
        assert record is not None
        log.info("key rotated", key=key_id, by=caller.get().key_id)
        return key, record

    async def revoke(self, key_id: str) -> None:
        """Raises UnknownKey."""

        def removed(records: dict[str, KeyRecord]) -> None:
            _of(records, key_id)

        await self._change(key_id, removed)
        log.info("key revoked", key=key_id, by=caller.get().key_id)
        self._used.pop(key_id, None)

    async def _change(
        self, key_id: str, change: Callable[[dict[str, KeyRecord]], KeyRecord | None]
    ) -> KeyRecord | None:
        for _ in range(_MOST_ATTEMPTS):
            version, records = await self._store.read()
            record = change(records)
            if await self._store.write(version, key_id, record):
                await self._following.once()  # here the change counts at once
                return record
        raise KeyConflict("Other changes of keys came in between; try again.")

    async def _catch_up(self) -> None:
        """Raises StoreUnavailable. The records are read only when they have changed."""
        asked_at = self._clock()
        if self._version < 0 or await self._store.version() != self._version:
            self._version, records = await self._store.read()
            self._by_digest = {
                secret.sha256: (self._principal(record), _earliest(record.expires_at, secret.expires_at))
                for record in records.values()
                for secret in record.secrets
            }
        self._read_at = asked_at

    def _principal(self, record: KeyRecord) -> Principal:
        scopes = frozenset(record.scopes)
        return Principal(
            record.id,
            scopes - OF_ALL_TENANTS if record.tenant else scopes,
            record.tenant,
            record.rate_limit or self._rate_limit,
        )

    async def _save_used(self) -> None:
        known = {principal.key_id for principal, _ in self._by_digest.values()}
        used, self._used = {name: then for name, then in self._used.items() if name in known}, {}
        try:
            await self._store.save_used(used)
        except StoreUnavailable:
            self._used = used | self._used
            raise


def shown(record: KeyRecord, last_used_at: int | None = None) -> dict[str, Any]:
    """The record for people: without digests, times in whole seconds."""
    return {
        "id": record.id,
        "name": record.name,
        "scopes": list(record.scopes),
        "created_at": int(record.created_at),
        "tenant": record.tenant,
        "rate_limit": record.rate_limit,
        "expires_at": _whole(record.expires_at),
        "last_used_at": last_used_at,
        "secrets": [{"prefix": each.shown, "expires_at": _whole(each.expires_at)} for each in record.secrets],
    }


def _whole(time: float | None) -> int | None:
    return None if time is None else int(time)


def _of(records: dict[str, KeyRecord], key_id: str) -> KeyRecord:
    if key_id not in records:
        raise UnknownKey("There is no such key in the store.")
    return records[key_id]


def _secret(key: str) -> Secret:
    return Secret(hashed(key), key[:SHOWN_LENGTH])


def _earliest(*times: float | None) -> float:
    return min((time for time in times if time is not None), default=float("inf"))
