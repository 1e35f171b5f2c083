"""When a call is repeated, and how long to wait before: after 429, 503 and a broken connection.

After a time-out it is not: the service may still work on it, and more work does not make it faster.
"""

import random
from dataclasses import dataclass

import httpx

REPEATED_STATUSES = frozenset({429, 503})
# The request has not reached the service: it may be repeated whatever it does.
_NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)


@dataclass(frozen=True)
class Retries:
    """The wait before repetition n is random, at most `first_s` · 2ⁿ and `longest_s`: callers do not come all at once.

    When the service says how long to wait (`Retry-After`), the wait is that long plus a random part.
    """

    most: int = 4
    first_s: float = 0.1
    longest_s: float = 5.0

    def wait_s(self, repetition: int, retry_after_s: float = 0.0) -> float:
        """`repetition`: 0 before the first one."""
        return retry_after_s + random.uniform(0.0, min(self.longest_s, self.first_s * 2.0**repetition))


NO_RETRIES = Retries(most=0)


def is_repeatable(error: httpx.TransportError, *, is_idempotent: bool) -> bool:
    if isinstance(error, _NOT_SENT):
        return True
    return is_idempotent and isinstance(error, httpx.NetworkError | httpx.RemoteProtocolError)


def retry_after_s(answer: httpx.Response) -> float:
    """0 when the answer does not say it in seconds."""
    value = answer.headers.get("retry-after", "")
    return float(value) if value.isdigit() else 0.0
