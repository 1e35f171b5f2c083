"""The keys by which an issuer signs tokens: a JWKS document (RFC 7517), from a file or a URL, followed while serving.

A file is looked at every `_FILE_EVERY_S`. A URL is asked every `_URL_EVERY_S`, and at once for a key that is not known,
but at most every `_ASK_AGAIN_S`: so a rotated key works with its first token, and tokens with invented key ids cost the
issuer nothing. While a source cannot be read, the last keys go on.
"""

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import httpx
import jwt
import structlog

from service.background import Repeated
from service.errors import NotReady
from service.identity.algorithms import CURVES, RSA, SECRET
from service.logs import RepeatedWarnings

log = structlog.get_logger("service.identity.issuer")
repeated = RepeatedWarnings(log)

_FILE_EVERY_S, _URL_EVERY_S, _ASK_AGAIN_S = 5.0, 600.0, 30.0
_MOST_BYTES, _TIMEOUT_S = 1 << 20, 5.0
_LEAST_SECRET_BYTES, _LEAST_RSA_BITS = 32, 2048


@dataclass(frozen=True)
class IssuerKey:
    key_id: str | None
    algorithms: tuple[str, ...]  # that it may sign by
    key: Any  # as PyJWT takes it


def is_url(source: str) -> bool:
    return source.startswith(("https://", "http://"))


class IssuerKeys:
    """One for each process and event loop. `number` grows with each change of the keys; 0: none are known yet.

    `problem`: why the source could not be read the last time, "" if it could. `clock_off_s`: by how much our clock is
    ahead of that of the server behind the URL; 0 for a file.
    """

    def __init__(
        self,
        source: str,
        *,
        transport: httpx.AsyncBaseTransport | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.number, self.problem, self.clock_off_s = 0, "", 0.0
        self._source, self._transport, self._clock = source, transport, clock
        self._keys: list[IssuerKey] = []
        self._text = b""
        self._asked_at = float("-inf")
        self._asking = asyncio.Lock()
        every_s = _URL_EVERY_S if is_url(source) else _FILE_EVERY_S
        self._following = Repeated("issuer-keys", self._ask, every_s=every_s)

    async def start(self) -> None:
        await self._ask()
        self._following.start()

    async def stop(self) -> None:
        await self._following.stop()

    @property
    def num_keys(self) -> int:
        return len(self._keys)

    @property
    def algorithms(self) -> set[str]:
        """By which the known keys may sign."""
        return {name for each in self._keys for name in each.algorithms}

    async def find(self, key_id: str | None, algorithm: str) -> Any:
        """The key that signs by this algorithm; None for an unknown one. A token without key id needs a single key.

        Raises NotReady while no keys are known.
        """
        found = self._find(key_id, algorithm)
        if found is None and is_url(self._source):
            async with self._asking:
                found = self._find(key_id, algorithm)
                if found is None and self._clock() - self._asked_at >= _ASK_AGAIN_S:
                    await self._ask()
                    found = self._find(key_id, algorithm)
        if not self.number:
            raise NotReady("The keys of the issuer of tokens are not known yet.")
        return found

    def _find(self, key_id: str | None, algorithm: str) -> Any:
        fit = [each for each in self._keys if algorithm in each.algorithms and key_id in (None, each.key_id)]
        return fit[0].key if len(fit) == 1 else None

    async def _ask(self) -> None:
        self._asked_at = self._clock()
        try:
            text = await (self._fetched() if is_url(self._source) else asyncio.to_thread(self._read))
            self.problem = ""
            if text == self._text:
                return
            keys = _keys(text, with_secrets=not is_url(self._source))
        except (OSError, ValueError, RecursionError, httpx.HTTPError, jwt.PyJWTError) as error:
            self.problem = f"{type(error).__name__} {error}".strip()
            repeated.warning("the keys of the issuer of tokens cannot be read", error=type(error).__name__)
            return
        self._text, self._keys = text, keys
        self.number += 1
        log.info("keys of the issuer of tokens were read", keys=len(keys))

    def _read(self) -> bytes:
        path = Path(self._source)
        if path.stat().st_size > _MOST_BYTES:
            raise ValueError("too large")
        return path.read_bytes()

    async def _fetched(self) -> bytes:
        """Redirects are not followed: the setting names the source."""
        text = b""
        async with (
            httpx.AsyncClient(transport=self._transport, timeout=_TIMEOUT_S, follow_redirects=False) as client,
            asyncio.timeout(2 * _TIMEOUT_S),
            client.stream("GET", self._source) as answer,
        ):
            if answer.status_code != 200:
                raise ValueError(f"status {answer.status_code}")
            self.clock_off_s = _ahead_of(answer.headers.get("date"))
            async for part in answer.aiter_bytes():
                text += part
                if len(text) > _MOST_BYTES:
                    raise ValueError("too large")
        return text


def _ahead_of(date: str | None) -> float:
    """Seconds by which our clock is ahead of this date of an answer; 0 where it has none."""
    try:
        return time.time() - parsedate_to_datetime(date or "").timestamp()
    except (ValueError, TypeError):
        return 0.0


def _keys(text: bytes, *, with_secrets: bool) -> list[IssuerKey]:
    """The keys of the document that may sign tokens; unknown kinds are skipped. Raises ValueError if none is left."""
    document = json.loads(text)
    listed = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(listed, list):
        raise ValueError("no JWKS document")
    found = [_key(each, with_secrets) for each in listed if isinstance(each, dict)]
    keys = [each for each in found if each is not None]
    if not keys:
        raise ValueError("no key that signs tokens")
    return keys


def _key(facts: Mapping[str, Any], with_secrets: bool) -> IssuerKey | None:
    kind = facts.get("kty")
    fits: tuple[str, ...] = {"RSA": RSA, "oct": SECRET if with_secrets else ()}.get(
        str(kind), CURVES.get(str(facts.get("crv")), ())
    )
    if "alg" in facts:
        fits = tuple(name for name in fits if name == facts["alg"])
    if not fits or facts.get("use", "sig") != "sig":
        return None
    try:
        key = jwt.PyJWK(dict(facts), algorithm=fits[0]).key
    except (jwt.PyJWTError, ValueError, TypeError):
        return None
    is_short = (kind == "oct" and len(key) < _LEAST_SECRET_BYTES) or (kind == "RSA" and key.key_size < _LEAST_RSA_BITS)
    if is_short:
        log.error("a key of the issuer of tokens is too short and is not used")
        return None
    return IssuerKey(facts.get("kid"), fits, key)
