"""Who sends a request, from its headers and its address: `Gate.principal`. One for each application.

A key is looked for in the settings and among the keys of the store; neither asks the store, so that a request with a
key costs some microseconds. Whether keys are asked for at all is said by the settings alone: it does not change while
the process runs.
"""

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

from service.errors import Unauthorized
from service.identity.guessing import Guessing
from service.identity.keyring import Keyring
from service.identity.keys import Keys, hashed, is_made, presented_key
from service.identity.limits import Limits
from service.identity.principal import ANYONE, Principal
from service.identity.stored import Run


class Gate:
    """`is_closed`: whether a key is asked for. `keyring` and `limits` are None until the store is open."""

    def __init__(self, keys: Keys, *, require_keys: bool = False, rate_limit: str = "") -> None:
        """`rate_limit`: of keys of the store without one of their own."""
        self._keys, self._rate_limit = keys, rate_limit
        self.is_closed = bool(keys) or require_keys
        self.keyring: Keyring | None = None
        self.limits: Limits | None = None
        self.guessing = Guessing()

    @asynccontextmanager
    async def opened(self, run: Run) -> AsyncIterator[None]:
        """With the keys and the counts of the store. `run`: `MemoryStore.run`."""
        keyring = Keyring(run, rate_limit=self._rate_limit)
        await keyring.start()
        self.keyring, self.limits = keyring, Limits(run)
        try:
            yield
        finally:
            await keyring.stop()

    async def principal(self, headers: Iterable[tuple[bytes, bytes]], address: str) -> Principal:
        """Raises Unauthorized, LockedOut, or StoreUnavailable when it is not known whether a key is valid.

        `address`: of the caller, "" if unknown.
        """
        if not self.is_closed:
            return ANYONE
        key = presented_key(headers)
        digest = hashed(key) if key else ""
        self.guessing.check(address, digest)
        principal = self._principal(key, digest) if key else None
        if principal is not None:
            self.guessing.succeeded(address, digest)
            return principal
        if key:
            self.guessing.failed(address)
        raise Unauthorized("Send a valid API key as `Authorization: Bearer KEY` or `X-API-Key: KEY`.")

    def _principal(self, key: str, digest: str) -> Principal | None:
        found = self._keys.principal(digest)
        if found is None and self.keyring is not None and is_made(key):
            found = self.keyring.principal(digest)
        return found
