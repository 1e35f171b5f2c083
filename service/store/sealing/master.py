"""Master keys: they wrap the data keys of users. They come from the settings and are never stored.

In: lines `ID=KEY`, with a key of 32 bytes in base64. The first key wraps; all of them unwrap, so a key is rotated by
putting a new one in front. A wrapped key is the id, a colon, a nonce and the data key under AES-256-GCM.
"""

import base64
import binascii
import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable, Mapping

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from service.errors import RecordsSealed

KEY_BYTES, NONCE_BYTES = 32, 12
_ID = re.compile(r"[A-Za-z0-9._-]{1,32}")


class MasterKeys:
    """At least one key. Immutable."""

    def __init__(self, keys: Mapping[str, bytes]) -> None:
        self._keys = {name: AESGCM(key) for name, key in keys.items()}
        self._checks = {name: check_of(key) for name, key in keys.items()}
        self.first = next(iter(keys))

    @classmethod
    def read(cls, lines: Iterable[str]) -> "MasterKeys":
        """Raises ValueError, without text of a key."""
        keys: dict[str, bytes] = {}
        for number, line in enumerate(lines, start=1):
            name, _, text = line.strip().partition("=")
            try:
                key = base64.b64decode(text.strip(), validate=True)
            except binascii.Error:
                key = b""
            if not _ID.fullmatch(name) or len(key) != KEY_BYTES:
                raise ValueError(f"key {number} is not ID=KEY with 32 bytes in base64, as of: openssl rand -base64 32")
            if name in keys:
                raise ValueError(f"two keys have the id {name}")
            keys[name] = key
        return cls(keys)

    @property
    def check(self) -> bytes:
        """Says which key the first one is, without telling it."""
        return self._checks[self.first]

    def problem(self, stored: Mapping[str, bytes]) -> str | None:
        """What is wrong with these keys for a store that was sealed with keys of these ids and checks."""
        if missing := sorted(stored.keys() - self._keys.keys()):
            return f"the store is sealed with the key {missing[0]}, which AUTOMR_ENCRYPTION_KEYS lacks"
        if wrong := sorted(name for name, check in stored.items() if check != self._checks[name]):
            return f"the key {wrong[0]} of AUTOMR_ENCRYPTION_KEYS is not the one with which the store is sealed"
        return None

    def wrap(self, data_key: bytes, user: bytes) -> bytes:
        nonce = secrets.token_bytes(NONCE_BYTES)
        return self.first.encode() + b":" + nonce + self._keys[self.first].encrypt(nonce, data_key, user)

    def unwrap(self, wrapped: bytes, user: bytes) -> bytes:
        """Raises RecordsSealed: the key is missing, is another one, or the wrapped key is of another user."""
        name, _, rest = wrapped.partition(b":")
        key = self._keys.get(name.decode("ascii", "replace"))
        if key is None:
            raise RecordsSealed("The records of the user are sealed with a master key that this server does not have.")
        try:
            return key.decrypt(rest[:NONCE_BYTES], rest[NONCE_BYTES:], user)
        except (InvalidTag, ValueError):
            raise RecordsSealed("The master key of this server does not open the records of the user.") from None

    def is_first(self, wrapped: bytes) -> bool:
        return wrapped.startswith(self.first.encode() + b":")


def check_of(key: bytes) -> bytes:
    return hmac.digest(key, b"automr master key", hashlib.sha256)[:16].hex().encode()
