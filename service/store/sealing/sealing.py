"""Which records a user has: plain ones, or sealed ones with a data key that a master key wraps.

The wrapped key is stored with the user (`key` in `facts`) and comes along with every read, so a read is one round trip.
A writer knows the key from before; the script that writes compares it with the stored one, so nothing is ever sealed
with a key that is gone. A deletion removes the wrapped key at once. A key that was removed never comes back, because
only new keys are put. Knows no client but `MemoryStore.run`.
"""

import secrets
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

from service.errors import RecordsSealed
from service.store.events import decode_text, encode_text
from service.store.keys import SEALED_WITH, facts_key
from service.store.sealing.master import KEY_BYTES, MasterKeys
from service.store.sealing.records import PLAIN, Records, Sealed

_MOST_KNOWN = 10_000  # users whose keys are remembered
_NO_KEYS = "The records of the user are sealed, and this server has no AUTOMR_ENCRYPTION_KEYS."

Run = Callable[[Sequence[tuple[Any, ...]]], Awaitable[list[Any]]]


class Sealing:
    """For one event loop. `master` None: new records are plain."""

    def __init__(self, run: Run, master: MasterKeys | None = None) -> None:
        self._run, self.master = run, master
        self._known: OrderedDict[str, Sealed] = OrderedDict()
        self._is_registered = False

    async def problem(self) -> str | None:
        """Why records of the store cannot be read with the keys of this process; None if they can."""
        (found,) = await self._run([("HGETALL", SEALED_WITH)])
        pairs = found.items() if isinstance(found, dict) else zip(found[::2], found[1::2], strict=True)
        stored = {decode_text(name): check for name, check in pairs}
        if self.master is not None:
            return self.master.problem(stored)
        return "the store has sealed records, and AUTOMR_ENCRYPTION_KEYS is not set" if stored else None

    def of(self, user_id: str, wrapped: bytes | None) -> Records:
        """For records that were read together with this wrapped key. Raises RecordsSealed."""
        if not wrapped:
            self._known.pop(user_id, None)
            return PLAIN
        known = self._known.get(user_id)
        if known is None or known.wrapped != wrapped:
            if self.master is None:
                raise RecordsSealed(_NO_KEYS)
            known = Sealed(user_id, self.master.unwrap(wrapped, encode_text(user_id)), wrapped)
        self._keep(user_id, known)
        return known

    async def for_writing(self, user_ids: Iterable[str]) -> dict[str, Records]:
        """Those of each user; asks the store for keys that this process does not know. Raises RecordsSealed."""
        users = list(user_ids)
        if self.master is None:
            return dict.fromkeys(users, PLAIN)
        unknown = [user_id for user_id in users if user_id not in self._known]
        found = await self._run([("HGET", facts_key(user_id), "key") for user_id in unknown]) if unknown else []
        records: dict[str, Records] = {user_id: self._known[user_id] for user_id in users if user_id in self._known}
        if not all(found):
            await self._register()
        for user_id, wrapped in zip(unknown, found, strict=True):
            records[user_id] = self.of(user_id, wrapped) if wrapped else self._new(self.master, user_id)
        return records

    def changed(self, user_ids: Iterable[str]) -> None:
        """The store has another key for these users, or none. Raises RecordsSealed where this process can have none."""
        if self.master is None:
            raise RecordsSealed(_NO_KEYS)
        for user_id in user_ids:
            self._known.pop(user_id, None)

    async def _register(self) -> None:
        """Before the first new key: leaves word which master key seals this store. Raises RecordsSealed."""
        if self.master is None or self._is_registered:
            return
        if problem := await self.problem():
            raise RecordsSealed(f"New records cannot be sealed: {problem}.")
        await self._run([("HSET", SEALED_WITH, self.master.first, self.master.check)])
        self._is_registered = True

    def _new(self, master: MasterKeys, user_id: str) -> Sealed:
        data_key = secrets.token_bytes(KEY_BYTES)
        return Sealed(user_id, data_key, master.wrap(data_key, encode_text(user_id)), is_new=True)

    def _keep(self, user_id: str, known: Sealed) -> None:
        self._known[user_id] = known
        self._known.move_to_end(user_id)
        if len(self._known) > _MOST_KNOWN:
            self._known.popitem(last=False)
