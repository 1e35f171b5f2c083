"""Which requests are admitted: those that are expected to be answered in time. Needs no torch.

A request waits in two places: in the queue of the model, and in the event loop of the server. A request that would be
late is refused at once. While most requests are refused, `service/http/protocol.py` refuses most of them before they
are read, as `Throttle` tells it. Callers have fair shares (`shares.py`); the admitted requests of a greedy caller wait
until few are in work (`line.py`). Lists, such as related items, have a line of their own.
"""

import asyncio
import itertools
import math
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

from service.engine.line import Line
from service.engine.shares import Shares
from service.errors import Overloaded
from service.identity.principal import NUM_LANES, caller, lane

_FORGET = 0.9  # weight of a batch relative to the next one: the last twenty batches count
_MIN_SPREAD = 0.01  # relative variance of batch sizes below which no slope can be fitted
# Shares of its time that an admitted request may be expected to wait for the model, and for the event loop. The rest is
# for what varies, and for what the estimates leave out.
_MODEL_SHARE, _SERVER_SHARE = 0.8, 0.6
_SLOW_STORE_S = 0.1  # longer than the store takes when it is well
_SLEEP_S = 0.01
_LEARN_EVERY_S = 0.1
_BUSY_SHARE = 0.3  # of the time by which sleeps of `_SLEEP_S` end late, from which on the event loop is busy
_LEAST_ANSWERS = 10
_ENOUGH = 32  # requests in work: with fewer, the answers are few because few were admitted
_MOST_SECONDS = 0.02  # an answer takes no longer, unless the loop stood still
_FORGET_QUIET = 0.9
_ACCEPTED_SHARE = 1.25  # requests that are read for each one that is admitted
_THROTTLE_WINDOW_S = 0.5
_ALONE_SHARE = 0.875  # of the waiting time for a key that asks alone; the rest is for one that asks rarely
# While a caller is greedy, a batch may take so many times as long as one job alone, and has at most this part of the
# jobs of a full one: times are uncertain, and small batches keep the event loop busy as well.
_QUICK, _QUICK_SHARE = 1.5, 8


class Pace:
    """Seconds of a batch as a line over its number of jobs: weighted least squares over the last batches.

    A batch costs a fixed time (the steps of the search) and a time for each job. In a large batch a job is several
    times cheaper than alone.
    """

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


class ServerPace:
    """Seconds that the event loop takes for one answer, learned while the loop is busy and has enough to answer.

    Everything that the loop does counts: recalling, answering, refusing others, taking events in.
    """

    def __init__(self, num_admitted: Callable[[], int]) -> None:
        self._num_admitted = num_admitted
        self.seconds = 0.0  # unknown until the loop was busy
        self.is_busy = False
        self._num_answers = 0
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._measure(), name="server-pace")

    def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def count_answer(self) -> None:
        self._num_answers += 1

    async def _measure(self) -> None:
        while True:
            self._num_answers, began = 0, time.monotonic()
            busy_s = await _lateness(_LEARN_EVERY_S)
            elapsed_s = time.monotonic() - began
            self.is_busy = busy_s > _BUSY_SHARE * elapsed_s
            if not self.is_busy or self._num_admitted() < _ENOUGH:
                self.seconds *= _FORGET_QUIET  # so that a standstill is forgotten
            elif self._num_answers >= _LEAST_ANSWERS:
                seconds = min(elapsed_s / self._num_answers, _MOST_SECONDS)
                self.seconds = (self.seconds + seconds) / 2 if self.seconds else seconds


async def _lateness(at_least_s: float) -> float:
    """The sum of the seconds by which short sleeps ended late: close to the time that passed if the loop is busy."""
    began, late_s = time.monotonic(), 0.0
    while time.monotonic() < began + at_least_s:
        due = time.monotonic() + _SLEEP_S
        await asyncio.sleep(_SLEEP_S)
        late_s += max(0.0, time.monotonic() - due)
    return late_s


class Throttle:
    """The share of requests to refuse unread, from the share that was refused lately.

    So a flood costs little. Some requests are always read, so that the end of the flood is noticed (B. Beyer et al.,
    Site Reliability Engineering, chapter 21, equation 1).
    """

    def __init__(self, random: random.Random) -> None:
        self._random = random
        self._num_requests = self._num_refused = 0.0
        self._forgot_at = 0.0

    def refuses(self) -> bool:
        """Counts a request. True if it is to be refused unread."""
        self._forget()
        num_accepted = self._num_requests - self._num_refused
        share = (self._num_requests - _ACCEPTED_SHARE * num_accepted) / (self._num_requests + 1)
        self._num_requests += 1
        if share <= 0 or self._random.random() >= share:
            return False
        self._num_refused += 1
        return True

    def count_refused(self) -> None:
        """A request that was read was refused."""
        self._num_refused = min(self._num_refused + 1, self._num_requests)

    def _forget(self) -> None:
        """Halves the counts for each window that has passed."""
        num_windows = int((time.monotonic() - self._forgot_at) / _THROTTLE_WINDOW_S)
        if num_windows:
            self._forgot_at += num_windows * _THROTTLE_WINDOW_S
            kept = 0.5 ** min(num_windows, 99)
            self._num_requests, self._num_refused = kept * self._num_requests, kept * self._num_refused


class Admission:
    """Admits a request while the requests before it leave enough time. For one event loop."""

    def __init__(self, *, max_queue: int, max_batch: int) -> None:
        self._max_queue, self._max_batch = max_queue, max_batch
        self._young: dict[int, float] = {}  # when the requests that came a moment ago were admitted
        self._tickets = itertools.count()
        self._num_admitted = 0  # requests without an answer
        self.model_pace = Pace()  # of the model's batches of recommendations
        self.server_pace = ServerPace(lambda: self._num_admitted)
        self.throttles = [Throttle(random.Random(number)) for number in range(NUM_LANES)]
        self._shares = Shares()
        self.line = Line(self._shares, self.quick_batch)
        self._lists = Line(self._shares, lambda: 1, rest=2.0)  # of a greedy caller two are in work, a third of the time
        self._num_lists = 0
        self.num_at_model = 0  # recommendations that the engine has sent to the model and that have no result yet

    @property
    def expected_wait_s(self) -> float:
        """Expected seconds until a request that comes now is answered; 0 when no other request is before it.

        So an idle service admits everything, and a wrong estimate corrects itself.
        """
        return max(self._model_wait_s(), self._server_wait_s())

    @property
    def is_reading(self) -> bool:
        """Whether an admitted request is in work."""
        return self._num_admitted > 0

    def sheds(self, lane: int = 0) -> bool:
        """Whether to refuse a request that has just come unread. Call it once for each request."""
        return self.throttles[lane].refuses() and self._num_admitted > 0  # an idle service reads everything

    @contextmanager
    def admitted(self, deadline: float) -> Iterator[None]:
        """Wraps a whole request that is due at `deadline`, a time of `time.monotonic()`.

        Raises Overloaded at once if the request would be late.
        """
        owner = caller.get().key_id
        part = self._shares.part(owner, alone=_ALONE_SHARE)
        left_s = part * (deadline - time.monotonic())
        is_late = self._model_wait_s() > _MODEL_SHARE * left_s or self._server_wait_s() > _SERVER_SHARE * left_s
        if is_late or self._num_admitted >= part * self._max_queue:
            if self.server_pace.is_busy:  # else there is time to read every request: some have longer deadlines
                self.throttles[lane.get()].count_refused()
            detail = "Too many requests are waiting to answer this one in time."
            raise Overloaded(detail, retry_after_s=self.expected_wait_s)
        self._num_admitted += 1
        self._shares.began(owner)
        ticket = next(self._tickets)
        self._young[ticket] = time.monotonic()
        try:
            yield
        finally:
            self._num_admitted -= 1
            self._shares.ended(owner)
            self._young.pop(ticket, None)
            self.server_pace.count_answer()

    @asynccontextmanager
    async def list_turn(self) -> AsyncIterator[None]:
        """Wraps a request for a list. Those of a greedy caller wait until few are in work.

        Raises Overloaded at once if too many wait.
        """
        owner = caller.get().key_id
        if self._num_lists >= self._shares.part(owner) * self._max_queue:
            raise Overloaded("Too many requests for lists are waiting.")
        self._num_lists += 1
        self._shares.began(owner)
        try:
            async with self._lists.turn():
                yield
        finally:
            self._num_lists -= 1
            self._shares.ended(owner)

    async def until_idle(self, timeout_s: float) -> None:
        """Waits until no admitted request is left, at most `timeout_s`."""
        ends = time.monotonic() + timeout_s
        while self._num_admitted and time.monotonic() < ends:
            await asyncio.sleep(_SLEEP_S)

    def quick_batch(self) -> int:
        """Most jobs of a batch that takes little longer than one job alone."""
        longest_s, size = _QUICK * self.model_pace.seconds(1), 1
        while size < self._max_batch // _QUICK_SHARE and self.model_pace.seconds(size + 1) <= longest_s:
            size += 1
        return size

    def _model_wait_s(self) -> float:
        if not self._num_admitted:
            return 0.0
        num_jobs = max(self.num_at_model + self.line.num_waiting, self._num_young()) + 1
        batch = self.quick_batch() if self.line.num_waiting else self._max_batch
        return self.model_pace.seconds(num_jobs, math.ceil(num_jobs / batch))

    def _server_wait_s(self) -> float:
        return self._num_admitted * self.server_pace.seconds

    def _num_young(self) -> int:
        """Requests that are at the model, or that it will get soon.

        Requests that the store has kept for long are not among them: a slow store must not close an idle model.
        """
        oldest = time.monotonic() - _SLOW_STORE_S
        while self._young and next(iter(self._young.values())) < oldest:
            del self._young[next(iter(self._young))]
        return len(self._young)
