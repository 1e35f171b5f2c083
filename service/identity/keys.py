"""API keys: their form, the keys of the settings, where a request holds its key, and when a server needs keys.

Keys are held as SHA-256 digests. Made keys have 256 random bits, which nobody can try out, so a fast hash is enough;
passwords would need a slow one. Only digests are compared: what the time of a comparison reveals of a digest says
nothing about its key, and the comparison takes constant time nevertheless.
"""

import hashlib
import hmac
import ipaddress
import secrets
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from service.errors import InsecureBind
from service.identity.principal import Principal
from service.identity.scopes import ALL, SCOPES, Scope

HASH_PREFIX = "sha256:"
LEAST_LENGTH = 16
_START, _NUM_BYTES = "amr_", 32
SHOWN_LENGTH = 8  # of a key, for recognition: "amr_" and 4 of its 43 random characters


def hashed(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", errors="surrogatepass")).hexdigest()


def is_digest(text: str) -> bool:
    return len(text) == 64 and all(char in "0123456789abcdef" for char in text)


def new_secret() -> str:
    return _START + secrets.token_urlsafe(_NUM_BYTES)


def is_made(key: str) -> bool:
    """Whether the key has the form of `new_secret`, as all keys of the store."""
    return key.startswith(_START) and len(key) == len(_START) + -(-_NUM_BYTES * 8 // 6)


def new_key() -> tuple[str, str]:
    """A new key, and its entry for AUTOMR_API_KEYS: (key, "sha256:HEX")."""
    key = new_secret()
    return key, HASH_PREFIX + hashed(key)


class Entry(NamedTuple):
    """An entry of AUTOMR_API_KEYS. `length` is that of the key, None for a hash."""

    digest: str
    scopes: frozenset[Scope]
    length: int | None


def read_entry(text: str) -> Entry:
    """`KEY`, `sha256:HEX`, or one of them after its scopes: `recommend+ingest=KEY`. Raises ValueError."""
    names, has_scopes, rest = text.partition("=")
    scopes = frozenset(scope for scope in SCOPES if scope in names.split("+"))
    # A key may contain "=" itself: only known scopes in front of it are scopes.
    if not has_scopes or len(scopes) != len(names.split("+")):
        scopes, rest = ALL, text
    if not rest:
        raise ValueError("there is no key behind the scopes")
    if not rest.startswith(HASH_PREFIX):
        return Entry(hashed(rest), scopes, len(rest))
    digest = rest.removeprefix(HASH_PREFIX).lower()
    if not is_digest(digest):
        raise ValueError("sha256: must be followed by 64 hex digits")
    return Entry(digest, scopes, None)


class Keys:
    """The keys of the settings. False when there are none."""

    def __init__(self, entries: Iterable[str] = (), *, rate_limit: str = "") -> None:
        """Entries as `read_entry` takes them. The same key in several entries has all their scopes."""
        self._principals: dict[str, Principal] = {}
        for entry in map(read_entry, entries):
            known = self._principals.get(entry.digest)
            scopes = entry.scopes | known.scopes if known else entry.scopes
            self._principals[entry.digest] = Principal(entry.digest[:8], scopes, rate_limit=rate_limit)

    def __bool__(self) -> bool:
        return bool(self._principals)

    def principal(self, digest: str) -> Principal | None:
        """Who has the key with this digest; None if nobody. Compares with every key, in constant time each."""
        found = None
        for known, principal in self._principals.items():
            if hmac.compare_digest(digest, known):
                found = principal
        return found


def presented_key(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    """The key of a request: `Authorization: Bearer KEY` or `X-API-Key: KEY`."""
    other = None
    for name, value in headers:
        name = name.lower()
        if name == b"authorization":
            scheme, _, token = value.decode("latin-1").strip().partition(" ")
            if scheme.lower() == "bearer" and token.strip():
                return token.strip()
        elif name == b"x-api-key":
            other = value.decode("latin-1").strip() or other
    return other


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def num_short(entries: Sequence[str]) -> int:
    """How many of the entries are plain keys that are too short to be safe."""
    return sum(each.length is not None and each.length < LEAST_LENGTH for each in map(read_entry, entries))


def refuse_insecure_bind(host: str, *, has_keys: bool, allow_anonymous: bool, entries: Sequence[str] = ()) -> None:
    """Raises InsecureBind when other machines could reach a server that asks for no key, or for one that can be tried
    out. `has_keys`: whether a key is asked for; `entries`: the keys of the settings.
    """
    if is_loopback(host) or allow_anonymous:
        return
    if not has_keys:
        raise InsecureBind(
            f"{host} can be reached from other machines and no API key is set: put the line of "
            "`python -m service keys` into AUTOMR_API_KEYS, or say --allow-anonymous behind a gateway"
        )
    if number := num_short(entries):
        raise InsecureBind(
            f"{host} can be reached from other machines and {number} of the keys in AUTOMR_API_KEYS have fewer than "
            f"{LEAST_LENGTH} characters: `python -m service keys` makes long ones"
        )
