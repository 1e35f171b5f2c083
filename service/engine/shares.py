"""Fair shares: a caller who floods the service does not take the places of the others.

While several callers ask, one that would have more than its equal part of the requests in work, and one more, is
*greedy*: it is admitted only to the first half of the waiting time. The other half stays free for those who ask little.
A caller who is alone has nearly all of it. Callers are keys; where no key is asked for, all of them are one.
"""

import time
from collections import Counter, OrderedDict
from collections.abc import Callable

from service.identity.principal import ANYONE

ASKING_S = 5.0  # a caller counts for so long after its last request
GREEDY_SHARE = 0.5


def is_greedy(own: int, of_all: int, num_callers: int) -> bool:
    """Whether a caller would have more than its equal part of the requests, and one more."""
    return num_callers > 1 and own > (of_all + 1) / num_callers


class Shares:
    """For one event loop. Remembers the callers of the last `ASKING_S`, and those with requests in work."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.asked: OrderedDict[str, float] = OrderedDict()  # who asks, and when last; the longest ago comes first
        self._in_work: Counter[str] = Counter()
        self._num_in_work = 0

    def part(self, owner: str, *, alone: float = 1.0) -> float:
        """Counts a request of `owner`; the part of the waiting time that it may use.

        `alone`: the part of a key while no other one has asked lately.
        """
        now = self._clock()
        self.asked[owner] = now
        self.asked.move_to_end(owner)
        while self.asked[first := next(iter(self.asked))] < now - ASKING_S:
            del self.asked[first]
        if len(self.asked) == 1 and owner != ANYONE.key_id:  # where no key is asked for, nobody else can come
            return alone
        return GREEDY_SHARE if is_greedy(self._in_work[owner], self._num_in_work, len(self.asked)) else 1.0

    def began(self, owner: str) -> None:
        self._in_work[owner] += 1
        self._num_in_work += 1

    def ended(self, owner: str) -> None:
        self._in_work[owner] -= 1
        self._num_in_work -= 1
        if not self._in_work[owner]:
            del self._in_work[owner]
