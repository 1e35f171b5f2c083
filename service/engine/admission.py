"""Which requests are admitted: those that the model is expected to answer in time. Needs no torch.

A batch costs a fixed time (the steps of the search) and a time for each job. Both are learned from the batches that
have run. In a large batch a job is several times cheaper than alone.
"""

import itertools
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

from service.errors import Overloaded

_FORGET = 0.9  # weight of a batch relative to the next one: the last twenty batches count
_MIN_SPREAD = 0.01  # relative variance of batch sizes below which no slope can be fitted
_HEADROOM = 0.75  # share of its time that an admitted request may be expected to take: batches vary
_SLOW_STORE_S = 0.1  # longer than the store takes when it is well


class Pace:
    """Seconds of a batch as a line over its number of jobs: weighted least squares over the last batches."""

    def __init__(self) -> None:
        self._weight = self._x = self._y = self._xx = self._xy = 0.0

    def observe(self, num_jobs: int, seconds: float) -> None:
        self._weight = _FORGET * self._weight + 1
        self._x = _FORGET * self._x + num_jobs
        self._y = _FORGET * self._y + seconds
        self._xx = _FORGET * self._xx + num_jobs * num_jobs
        self._xy = _FORGET * self._xy + num_jobs * seconds

    def seconds(self, num_jobs: int, num_batches: int = 1) -> float:
        """Expected seconds of `num_jobs` jobs in `num_batches` batches; 0 before the first batch."""
        if not self._weight:
            return 0.0
        slope = self._slope()
        fixed = (self._y - slope * self._x) / self._weight
        return num_batches * fixed + num_jobs * slope

    def _slope(self) -> float:
        """Seconds a job: not negative, and not more than the mean time a job without a fixed part."""
        highest, mean = self._y / self._x, self._x / self._weight
        variance = self._xx / self._weight - mean * mean
        if variance <= _MIN_SPREAD * mean * mean:
            return highest
        slope = (self._xy / self._weight - mean * self._y / self._weight) / variance
        return min(max(slope, 0.0), highest)


class Admission:
    """Admits a request while the requests before it leave enough time. For one event loop."""

    def __init__(self, *, max_queue: int, max_batch: int) -> None:
        self._max_queue, self._max_batch = max_queue, max_batch
        self._recalling: dict[int, float] = {}  # when the requests that are not yet at the model were admitted
        self._tickets = itertools.count()
        self.pace = Pace()  # of the model's batches of recommendations
        self.num_at_model = 0  # recommendations that were sent to the model and have no result yet

    @property
    def expected_wait_s(self) -> float:
        """Expected seconds until a request that comes now is answered; 0 when no other request is before it.

        So an idle model admits everything, and a wrong estimate corrects itself.
        """
        num_before = self._num_before()
        if not num_before:
            return 0.0
        return self.pace.seconds(num_before + 1, math.ceil((num_before + 1) / self._max_batch))

    @contextmanager
    def admitted(self, deadline: float) -> Iterator[None]:
        """Wraps what a request does before the model gets it. `deadline` is a time of `time.monotonic()`.

        Raises Overloaded at once if the request would be late.
        """
        expected_s, now = self.expected_wait_s, time.monotonic()
        if expected_s > _HEADROOM * (deadline - now):
            detail = "Too many requests are waiting to answer this one in time."
            raise Overloaded(detail, retry_after_s=expected_s)
        if self.num_at_model + len(self._recalling) >= self._max_queue:
            raise Overloaded(f"{self._max_queue} requests are waiting already.", retry_after_s=expected_s)
        ticket = next(self._tickets)
        self._recalling[ticket] = now
        try:
            yield
        finally:
            self._recalling.pop(ticket, None)

    def _num_before(self) -> int:
        """Forgets requests that the store has kept for long: a slow store must not close a model that is idle."""
        oldest = time.monotonic() - _SLOW_STORE_S
        while self._recalling and next(iter(self._recalling.values())) < oldest:
            del self._recalling[next(iter(self._recalling))]
        return self.num_at_model + len(self._recalling)
