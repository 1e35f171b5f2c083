"""Admission and batching: which jobs run next, which are refused. Counts, clocks and futures; knows no torch.

The event loop submits jobs, the engine takes batches; both may do so at any time. Two lanes: someone
waits for an interactive job, nobody for a background one. A batch holds jobs of one kind within a token
budget. The oldest job of a lane leads the next batch of that lane; jobs of a kind leave as they came.

A request that would be late is refused before it costs anything: what is ahead of it, at the pace of the last batches,
says how long it would take. An idle engine refuses nothing, so that a pace that was wrong is always measured again.
"""

import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from service.engine.pace import Correction, Pace
from service.errors import DeadlineExceeded, Draining, Overloaded, ServiceError

INTERACTIVE_KINDS = frozenset({"recommend", "call"})
BACKGROUND_KINDS = frozenset({"encode"})
BACKGROUND_SHARE = 8  # under load at least one batch in this many is a background one


@dataclass(eq=False)
class Job:
    """One unit of work. `deadline` is a time of the batcher's clock (`time.monotonic`), None = no hurry."""

    kind: str
    payload: Any
    cost_tokens: int
    deadline: float | None = None
    future: Future[Any] = field(default_factory=Future)
    submitted_at: float = 0.0  # set by Batcher.submit

    def __post_init__(self) -> None:
        if self.kind not in INTERACTIVE_KINDS | BACKGROUND_KINDS:
            raise ValueError(f"unknown kind of job {self.kind!r}: this is a bug in its sender")

    @property
    def is_background(self) -> bool:
        return self.kind in BACKGROUND_KINDS

    def is_expired(self, now: float) -> bool:
        return self.deadline is not None and now >= self.deadline


@dataclass
class Admission:
    """Of one request: whether its answer came too late to be of use."""

    has_missed: bool = False


class Batcher:
    """A bounded queue with two lanes. Thread-safe; each lane holds at most `max_queue` jobs.

    One thread takes batches and says with `ran` when it has run one.
    """

    def __init__(
        self,
        *,
        max_queue: int,
        max_batch: int,
        max_batch_tokens: int,
        wait_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.max_queue = max_queue
        self.max_batch = max_batch
        self.max_batch_tokens = max_batch_tokens
        self.wait_s = wait_s
        self._clock = clock
        self._interactive: deque[Job] = deque()
        self._background: deque[Job] = deque()
        self._changed = threading.Condition()
        self._is_closed = False
        self._passed_over = 0  # interactive batches given since background work began to wait
        self._paces = {kind: Pace() for kind in INTERACTIVE_KINDS | BACKGROUND_KINDS}
        self._correction = Correction()
        self._running: list[Job] = []
        self._running_since = 0.0
        self._num_admitted = 0  # requests whose job is still to come, waits or runs

    @property
    def depth(self) -> int:
        """Jobs waiting, both lanes."""
        with self._changed:
            return len(self._interactive) + len(self._background)

    @property
    def is_done(self) -> bool:
        """Closed and empty: the engine may end."""
        with self._changed:
            return self._is_closed and not self._interactive and not self._background

    @property
    def expected_s(self) -> float:
        """Seconds until a request that comes now would be answered; 0 when the engine is idle."""
        with self._changed:
            return self._expected_s()

    @contextmanager
    def admission(self, timeout_s: float) -> Iterator[Admission]:
        """Around all of a request that will submit one recommend job. Raises Overloaded when it would be late.

        Those admitted count from here on, though their jobs are still being prepared. What they took in the end,
        against what was expected, corrects the expectation: batches vary, and store and event loop take their time.
        """
        with self._changed:
            expected_s = self._expected_s()
            corrected_s = expected_s * self._correction.factor
            if corrected_s > timeout_s:
                detail = "Too many requests are waiting to answer this one in time."
                raise Overloaded(detail, retry_after_s=corrected_s)
            self._num_admitted += 1
        admission, started = Admission(), self._clock()
        try:
            yield admission
        finally:
            took_s = math.inf if admission.has_missed else self._clock() - started
            with self._changed:
                self._num_admitted -= 1
                self._correction.observe(expected_s, took_s)

    def submit(self, job: Job) -> Future[Any]:
        """Raises Overloaded at once when the lane is full, Draining after close()."""
        with self._changed:
            lane = self._background if job.is_background else self._interactive
            if self._is_closed:
                raise Draining("The service is shutting down.")
            expired = self._drop_dead(lane) if len(lane) >= self.max_queue else []
            is_full = len(lane) >= self.max_queue
            if not is_full:
                job.submitted_at = self._clock()
                lane.append(job)
                self._changed.notify_all()
        _fail(expired, DeadlineExceeded, "The deadline passed while the request waited.")
        if is_full:
            raise Overloaded(f"{self.max_queue} requests are waiting already.")
        job.future.add_done_callback(lambda _: self._leave(job))
        return job.future

    def next_batch(self, timeout: float | None = None) -> list[Job]:
        """Jobs of one kind, ready to run (no longer cancellable); [] after `timeout` or when closed.

        Once an interactive job is there, waits up to `wait_s` after its arrival for companions.
        """
        with self._changed:
            self._changed.wait_for(self._has_work, timeout)
            self._wait_for_companions()
            expired = self._drop_dead(self._interactive) + self._drop_dead(self._background) + self._drop_hopeless()
            batch = self._take(self._choose_lane())
            self._running, self._running_since = batch, self._clock()
        _fail(expired, DeadlineExceeded, "The deadline passed while the request waited.")
        return batch

    def ran(self, batch: list[Job]) -> None:
        """The batch that was taken last is done: its time is remembered, and nothing runs until the next one."""
        with self._changed:
            if batch:
                self._paces[batch[0].kind].observe(len(batch), self._clock() - self._running_since)
            self._running = []

    def close(self, *, drop: bool = False) -> None:
        """No new jobs. Queued ones are still handed out, or with `drop` fail with Draining now."""
        dropped: list[Job] = []
        with self._changed:
            self._is_closed = True
            if drop:
                dropped = [job for lane in (self._interactive, self._background) for job in lane]
                self._interactive.clear()
                self._background.clear()
            self._changed.notify_all()
        alive = [job for job in dropped if job.future.set_running_or_notify_cancel()]
        _fail(alive, Draining, "The service is shutting down.")

    def _expected_s(self) -> float:
        """Of what runs, what waits, what has been admitted, and one request more."""
        counts = Counter(job.kind for job in self._interactive)
        num_running = sum(job.kind == "recommend" for job in self._running)
        counts["recommend"] = max(counts["recommend"], self._num_admitted - num_running)
        if not self._running and not counts.total():
            return 0.0
        counts["recommend"] += 1
        num_batches = {kind: math.ceil(count / self.max_batch) for kind, count in counts.items()}
        seconds = sum(self._paces[kind].seconds(count, num_batches[kind]) for kind, count in counts.items())
        return self._running_s() + seconds + self._background_s(sum(num_batches.values()))

    def _running_s(self) -> float:
        """What is left of the batch that runs."""
        if not self._running:
            return 0.0
        expected_s = self._paces[self._running[0].kind].seconds(len(self._running))
        return max(0.0, expected_s - (self._clock() - self._running_since))

    def _background_s(self, num_batches: int) -> float:
        """What goes to background work while so many interactive batches run."""
        if not self._background:
            return 0.0
        num_due = (self._passed_over + num_batches) // (BACKGROUND_SHARE - 1)
        num_jobs = min(len(self._background), self.max_batch)
        return self._paces[self._background[0].kind].seconds(num_due * num_jobs, num_due)

    def _has_work(self) -> bool:
        return bool(self._interactive or self._background or self._is_closed)

    def _wait_for_companions(self) -> None:
        while self._interactive and not self._is_closed and not self._is_batch_full():
            left = self._interactive[0].submitted_at + self.wait_s - self._clock()
            if left <= 0 or not self._changed.wait(left):
                return

    def _is_batch_full(self) -> bool:
        kind = self._interactive[0].kind
        costs = [job.cost_tokens for job in self._interactive if job.kind == kind]
        return len(costs) >= self.max_batch or sum(costs) >= self.max_batch_tokens

    def _leave(self, job: Job) -> None:
        """A cancelled job makes room at once, and is no longer waited for."""
        if job.future.cancelled():
            with self._changed:
                lane = self._background if job.is_background else self._interactive
                if job in lane:
                    lane.remove(job)

    def _drop_dead(self, lane: deque[Job]) -> list[Job]:
        """Takes out what was cancelled or is too late; returns the latter, to be told outside the lock."""
        dead = [job for job in lane if job.future.cancelled() or job.is_expired(self._clock())]
        return self._drop(lane, dead)

    def _drop_hopeless(self) -> list[Job]:
        """Those that would be late even in the next batch. Somebody is left, or the pace were never seen again."""
        waiting = [job for job in self._interactive if job.kind == "recommend"]
        hurried = sorted((job for job in waiting if job.deadline is not None), key=lambda job: job.deadline or 0.0)
        hopeless: list[Job] = []
        for job in hurried:
            num_left = len(waiting) - len(hopeless)
            done = self._clock() + self._paces["recommend"].seconds(min(num_left, self.max_batch))
            if num_left == 1 or not job.is_expired(done):
                break
            hopeless.append(job)
        return self._drop(self._interactive, hopeless)

    @staticmethod
    def _drop(lane: deque[Job], jobs: list[Job]) -> list[Job]:
        for job in jobs:
            lane.remove(job)
        return [job for job in jobs if job.future.set_running_or_notify_cancel()]

    def _choose_lane(self) -> deque[Job]:
        is_due = self._passed_over >= BACKGROUND_SHARE - 1
        if self._background and (is_due or not self._interactive):
            self._passed_over = 0
            return self._background
        self._passed_over = self._passed_over + 1 if self._background else 0
        return self._interactive

    def _take(self, lane: deque[Job]) -> list[Job]:
        """The oldest job and the next ones of its kind that fit; one job above the budget goes alone."""
        batch: list[Job] = []
        tokens = 0
        for job in [job for job in lane if job.kind == lane[0].kind]:
            is_full = len(batch) >= self.max_batch or tokens + job.cost_tokens > self.max_batch_tokens
            if batch and is_full:
                break
            lane.remove(job)
            if job.future.set_running_or_notify_cancel():
                batch.append(job)
                tokens += job.cost_tokens
        return batch


def _fail(jobs: Iterable[Job], error: type[ServiceError], detail: str) -> None:
    for job in jobs:  # an exception of its own for each: a shared one would gather everybody's traceback
        job.future.set_exception(error(detail))
