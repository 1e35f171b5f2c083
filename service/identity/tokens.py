"""Callers with a signed token (JWT, RFC 7519) of an issuer instead of a key.

    token → header: algorithm and key id → key of the issuer → signature, issuer, audience, times → scopes, tenant

Against confusion of algorithms: only those of the settings count, each only with a key of its own kind; secret keys
(HS256) come from a file and never from a URL, where anyone could read them. A verified token is remembered until it
expires, because verifying takes longer than all the rest. A token cannot be revoked, so issue short ones.
"""

import hashlib
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jwt

from service.errors import Unauthorized
from service.identity.issuer import IssuerKeys
from service.identity.principal import Principal
from service.identity.scopes import OF_ALL_TENANTS, SCOPES

TENANT = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")
_MOST_REMEMBERED = 4096
_MOST_LENGTH = 8192
_NOT_VALID = "The token is not valid: check its issuer, audience, times and signature."


@dataclass(frozen=True)
class Issuer:
    """What a token must be. `tenant_claim` "": tokens have no tenant; else each must name one."""

    issuer: str
    audience: str
    algorithms: tuple[str, ...]
    leeway_s: float = 30.0
    scopes_claim: str = "scope"
    tenant_claim: str = ""
    rate_limit: str = ""


class Expired(Unauthorized):
    """A token that was good until its time was over: not a guess."""


def is_token(credential: str) -> bool:
    return credential.startswith("eyJ") and credential.count(".") == 2


class Tokens:
    """For one event loop."""

    def __init__(self, issuer: Issuer, keys: IssuerKeys, *, clock: Callable[[], float] = time.time) -> None:
        self._issuer, self.keys, self._clock = issuer, keys, clock
        self._remembered: OrderedDict[str, tuple[Principal, float]] = OrderedDict()
        self._number = keys.number

    async def principal(self, token: str, digest: str) -> Principal:
        """Raises Unauthorized, and NotReady while the keys of the issuer are not known. `digest`: of the token."""
        if self._number != self.keys.number:  # a key may have been taken back
            self._number = self.keys.number
            self._remembered.clear()
        known = self._remembered.get(digest)
        if known is not None and known[1] > self._clock():
            return known[0]
        principal, ends = await self._verified(token)
        self._remembered[digest] = principal, ends
        if len(self._remembered) > _MOST_REMEMBERED:
            self._remembered.popitem(last=False)
        return principal

    async def _verified(self, token: str) -> tuple[Principal, float]:
        """Who sent the token, and until when it may be remembered."""
        if len(token) > _MOST_LENGTH:
            raise Unauthorized("The token is too long.")
        issuer = self._issuer
        try:
            header = jwt.get_unverified_header(token)
            algorithm, key_id = header.get("alg"), header.get("kid")
            if algorithm not in issuer.algorithms or not isinstance(key_id, str | None):
                raise Unauthorized("The token is signed by an algorithm that is not accepted.")
            key = await self.keys.find(key_id, algorithm)
            if key is None:
                raise Unauthorized("The token is signed by an unknown key.")
            claims = jwt.decode(
                token,
                key,
                algorithms=[algorithm],
                audience=issuer.audience,
                issuer=issuer.issuer,
                leeway=issuer.leeway_s,
                options={"require": ["exp", "iss", "aud"]},
            )
        except jwt.ExpiredSignatureError:
            raise Expired("The token has expired.") from None
        except (jwt.PyJWTError, ValueError, TypeError, RecursionError):
            raise Unauthorized(_NOT_VALID) from None
        return self._principal(claims), float(claims["exp"]) + issuer.leeway_s

    def _principal(self, claims: Mapping[str, Any]) -> Principal:
        """The subject may name a person, so logs get a digest of it."""
        given = claims.get(self._issuer.scopes_claim, "")
        names = given.split() if isinstance(given, str) else given if isinstance(given, list) else []
        scopes = frozenset(scope for scope in SCOPES if scope in names)
        tenant = ""
        if self._issuer.tenant_claim:
            tenant = str(claims.get(self._issuer.tenant_claim, ""))
            if not TENANT.fullmatch(tenant):
                raise Unauthorized(f"The token names no tenant in `{self._issuer.tenant_claim}`.")
        subject = str(claims.get("sub") or claims.get("client_id") or "")
        digest = hashlib.sha256(f"{tenant}\n{subject}".encode("utf-8", "surrogatepass")).hexdigest()
        scopes = scopes - OF_ALL_TENANTS if tenant else scopes
        return Principal(f"jwt_{digest[:12]}", scopes, tenant, self._issuer.rate_limit)
