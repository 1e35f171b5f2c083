"""Who sends a request: a key, a token of an issuer, or anyone where no key is asked for."""

from contextvars import ContextVar
from dataclasses import dataclass

from service.identity.scopes import ALL, Scope


@dataclass(frozen=True)
class Principal:
    """`key_id` names the key in logs and shares; "" for anyone. `tenant` "": the users without a tenant.

    `rate_limit`: such as "100/second; 100000/day", "" for none.
    """

    key_id: str
    scopes: frozenset[Scope] = ALL
    tenant: str = ""
    rate_limit: str = ""


NUM_LANES = 64
ANYONE = Principal("")

# Of the request in work; parts far below the HTTP interface ask it for fair shares.
caller: ContextVar[Principal] = ContextVar("caller", default=ANYONE)
lane: ContextVar[int] = ContextVar("lane", default=0)  # see `lane_of`


def lane_of(key: str | None) -> int:
    """The lane of a caller, by the key that it presents, before anyone knows whether the key is right.

    What is refused unread is told apart by lanes, not by callers, so that wrong keys cost no memory. Two callers may
    share one.
    """
    return hash(key) % NUM_LANES if key else 0
