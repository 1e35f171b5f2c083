"""API keys: they are held as SHA-256 digests and compared in constant time. Knows no web framework.

Keys are long and random (see `python -m service keys`), so a fast hash is enough; passwords would need a slow one. The
log shows a key as its `key_id`: the first 8 hex digits of its digest.
"""

import hashlib
import hmac
import ipaddress
import secrets
from collections.abc import Iterable

from service.errors import InsecureBind

HASH_PREFIX = "sha256:"
PROBES = frozenset({"/livez", "/readyz", "/startupz"})
# The pages and the API's description hold nothing of the shop; what they show comes from routes that need a key.
PAGES = frozenset({"/", "/docs", "/openapi.json"})
STATIC = "/static/"


def is_open(path: str) -> bool:
    """Whether the path answers without a key. `path`: percent-encoded, as it was sent."""
    return path in PROBES or path in PAGES or (path.startswith(STATIC) and "/" not in path.removeprefix(STATIC))


def hashed(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", errors="surrogatepass")).hexdigest()


def is_digest(text: str) -> bool:
    return len(text) == 64 and all(char in "0123456789abcdef" for char in text)


def new_key() -> tuple[str, str]:
    """A new key, and its entry for AUTOMR_API_KEYS: (key, "sha256:HEX")."""
    key = "amr_" + secrets.token_urlsafe(32)
    return key, HASH_PREFIX + hashed(key)


class Keys:
    """The valid keys. False when there are none: then no key is asked for."""

    def __init__(self, keys: Iterable[str] = ()) -> None:
        """`keys`: plain, or `sha256:HEX` as printed by `python -m service keys`."""
        self._digests = [_digest(key) for key in keys]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def key_id(self, presented: str) -> str | None:
        """The id of a valid key, else None. Compares with every key, so that the time it takes reveals nothing."""
        digest = hashed(presented)
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        return digest[:8] if any(matches) else None


def _digest(admitted: str) -> str:
    is_hashed = admitted.startswith(HASH_PREFIX)
    return admitted.removeprefix(HASH_PREFIX).lower() if is_hashed else hashed(admitted)


def presented_key(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    """The key of a request: `Authorization: Bearer KEY` or `X-API-Key: KEY`."""
    by_name = {name.lower(): value.decode("latin-1").strip() for name, value in headers}
    scheme, _, token = by_name.get(b"authorization", "").partition(" ")
    if scheme.lower() == "bearer" and token.strip():
        return token.strip()
    return by_name.get(b"x-api-key") or None


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def refuse_insecure_bind(host: str, *, has_keys: bool, allow_anonymous: bool) -> None:
    """Raises InsecureBind when other machines could reach a server that asks for no key."""
    if not (is_loopback(host) or has_keys or allow_anonymous):
        raise InsecureBind(
            f"{host} can be reached from other machines and no API key is set: put the line of "
            "`python -m service keys` into AUTOMR_API_KEYS, or say --allow-anonymous behind a gateway"
        )
