"""Fair shares: a caller who floods the service does not take the places of the others.

While several callers ask, one that would have more than its equal part of the requests in work, and one more, is
*greedy*: it is admitted only to the first half of the waiting time. The other half stays free for those who ask little.
A caller who is alone has all of it. Callers are keys; where no key is asked for, all of them are one.
"""

import time
from collections import Counter, OrderedDict
from collections.abc import Callable

ASKING_S = 2.0  # a caller counts for so long after its last request
GREEDY_SHARE = 0.5


class Shares:
    """For one event loop. Remembers the callers of the last `ASKING_S`, and those with requests in work."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._asked: OrderedDict[str, float] = OrderedDict()  # when, the longest ago first
        self._in_work: Counter[str] = Counter()
        self._num_in_work = 0

    def part(self, owner: str) -> float:
        """Counts a request of `owner`; the part of the waiting time that it may use."""
        now = self._clock()
        self._asked[owner] = now
        self._asked.move_to_end(owner)
        while self._asked[first := next(iter(self._asked))] < now - ASKING_S:
            del self._asked[first]
        equal_part = (self._num_in_work + 1) / len(self._asked)
        is_greedy = len(self._asked) > 1 and self._in_work[owner] > equal_part
        return GREEDY_SHARE if is_greedy else 1.0

    def began(self, owner: str) -> None:
        self._in_work[owner] += 1
        self._num_in_work += 1

    def ended(self, owner: str) -> None:
        self._in_work[owner] -= 1
        self._num_in_work -= 1
        if not self._in_work[owner]:
            del self._in_work[owner]
