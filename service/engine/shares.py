"""Fair shares: a caller who floods the service does not take the places of the others.

While several callers ask, one that would have more than its equal part of the requests in work, and one more, is
*greedy*: it is admitted only to the first half of the waiting time. The other half stays free for those who ask little.
A caller who is alone has all of it. Callers are keys; where no key is asked for, all of them are one.
"""

import time
from collections import Counter, OrderedDict
from collections.abc import Callable

ASKING_S = 5.0  # a caller counts for so long after its last request
GREEDY_SHARE = 0.5


class Shares:
    """For one event loop. Remembers the callers of the last `ASKING_S`, and those with requests in work."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._asked: OrderedDict[str, float] = OrderedDict()  # when, the longest ago first
        self._in_work: Counter[str] = Counter()
        self._num_in_work = 0

    def asks(self, owner: str) -> None:
        """`owner` sends a request."""
        self._asked[owner] = self._clock()
        self._asked.move_to_end(owner)
        self._forget()

    def part(self, owner: str) -> float:
        """The part of the waiting time that a request of `owner` may use."""
        return GREEDY_SHARE if self.is_greedy(owner) else 1.0

    def is_greedy(self, owner: str) -> bool:
        """Whether `owner` would have more than its equal part, and one more."""
        self._forget()
        return len(self._asked) > 1 and self._in_work[owner] > (self._num_in_work + 1) / len(self._asked)

    def began(self, owner: str) -> None:
        self._in_work[owner] += 1
        self._num_in_work += 1

    def ended(self, owner: str) -> None:
        self._in_work[owner] -= 1
        self._num_in_work -= 1
        if not self._in_work[owner]:
            del self._in_work[owner]

    def _forget(self) -> None:
        oldest = self._clock() - ASKING_S
        while self._asked and self._asked[first := next(iter(self._asked))] < oldest:
            del self._asked[first]
