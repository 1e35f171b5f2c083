"""Who sends a request, from its headers and its address: `Authenticator.principal`. One for each application.

A key is looked for in the settings and among the keys of the store; neither asks the store, so that a request with a
key costs some microseconds. Where an issuer is set, tokens are taken, too. Whether keys are asked for at all is said by
the settings alone: it does not change while the process runs.
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
from service.identity.tokens import Expired, Tokens, is_token


class Authenticator:
    """`asks_for_keys`: whether a key is asked for. `keyring` and `limits` are None until the store is open."""

    def __init__(
        self, keys: Keys, *, require_keys: bool = False, rate_limit: str = "", tokens: Tokens | None = None
    ) -> None:
        """`rate_limit`: of keys of the store without one of their own."""
        self._keys, self._rate_limit, self._tokens = keys, rate_limit, tokens
        self.asks_for_keys = bool(keys) or require_keys or tokens is not None
        self.keyring: Keyring | None = None
        self.limits: Limits | None = None
        self.guessing = Guessing()

    @asynccontextmanager
    async def opened(self, run: Run) -> AsyncIterator[None]:
        """With the keys and the counts of the store. `run`: `MemoryStore.run`."""
        keyring = Keyring(run, rate_limit=self._rate_limit)
        await keyring.start()
        self.keyring, self.limits = keyring, Limits(run)
        if self._tokens is not None:
            await self._tokens.keys.start()
        try:
            yield
        finally:
            if self._tokens is not None:
                await self._tokens.keys.stop()
            await keyring.stop()

    async def principal(self, headers: Iterable[tuple[bytes, bytes]], address: str) -> Principal:
        """Raises Unauthorized, LockedOut, or StoreUnavailable when it is not known whether a key is valid.

        `address`: of the caller, "" if unknown.
        """
        if not self.asks_for_keys:
            return ANYONE
        key = presented_key(headers)
        digest = hashed(key) if key else ""
        self.guessing.check(address, digest)
        try:
            principal = await self._principal(key, digest)
        except Expired:
            raise
        except Unauthorized:
            if key:
                self.guessing.failed(address)
            raise
        self.guessing.succeeded(address, digest)
        return principal

    async def _principal(self, key: str | None, digest: str) -> Principal:
        found = self._keys.principal(digest)
        if found is None and key and self.keyring is not None and is_made(key):
            found = self.keyring.principal(digest)
        if found is None and key and self._tokens is not None and is_token(key):
            found = await self._tokens.principal(key, digest)
        if found is None:
            raise Unauthorized("Send a valid API key as `Authorization: Bearer KEY` or `X-API-Key: KEY`.")
        return found
