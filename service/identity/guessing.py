"""Lockout of who tries keys: after many wrong keys from one address, the address is refused for a while.

A locked address gets no answer about any key, right or wrong, or guessing could go on. Only keys that were right from
this address shortly before go on working, so that a wrong caller behind the same proxy does not stop the others. Each
process counts for itself, in bounded memory.
"""

import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from service.errors import LockedOut

MOST_FAILURES = 20
WINDOW_S = 300.0  # in which the failures are counted, and for which the lock holds
_MOST_ADDRESSES = 10_000
_MOST_KEYS = 16  # that an address may have shown to be right
_IPV6_BITS = 64  # a household has so many of the 128 for itself


@dataclass
class _Address:
    began: float
    num_failures: int = 0
    locked_until: float = 0.0
    right: dict[str, None] = field(default_factory=dict)  # digests of keys that were right


class Guessing:
    """For one event loop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._addresses: OrderedDict[str, _Address] = OrderedDict()

    def check(self, address: str, digest: str) -> None:
        """Raises LockedOut. `digest`: of the presented key, "" without one."""
        known = self._addresses.get(_network(address))
        if known is None or known.locked_until <= (now := self._clock()) or digest in known.right:
            return
        raise LockedOut("Too many wrong keys came from this address.", retry_after_s=known.locked_until - now)

    def succeeded(self, address: str, digest: str) -> None:
        known = self._known(address)
        known.right[digest] = None
        if len(known.right) > _MOST_KEYS:
            del known.right[next(iter(known.right))]

    def failed(self, address: str) -> None:
        known, now = self._known(address), self._clock()
        if now - known.began > WINDOW_S:
            known.began, known.num_failures = now, 0
        known.num_failures += 1
        if known.num_failures >= MOST_FAILURES:
            known.locked_until = now + WINDOW_S
            known.began, known.num_failures = now, 0

    def _known(self, address: str) -> _Address:
        """The address that was seen longest ago is forgotten when there are too many."""
        name = _network(address)
        known = self._addresses.get(name)
        if known is None:
            known = self._addresses[name] = _Address(self._clock())
            if len(self._addresses) > _MOST_ADDRESSES:
                self._addresses.popitem(last=False)
        self._addresses.move_to_end(name)
        return known


def _network(address: str) -> str:
    """Callers choose among the addresses of their IPv6 network, so these count as one."""
    if ":" not in address:
        return address
    try:
        return str(ipaddress.IPv6Network((address.partition("%")[0], _IPV6_BITS), strict=False))
    except ValueError:
        return address
