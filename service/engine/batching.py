"""Which jobs run together, and in which order. Runs in the process of the model; needs no torch.

There are two lanes. A caller waits for the result of an interactive job; nobody waits for a background job. A batch
holds jobs of one kind within a token budget. Callers take turns, so that one with many jobs does not keep the others
waiting: whoever was served the longest ago comes first, with the oldest job. While jobs of several callers wait, one
with many jobs has no more of a batch than the next one, or a small share. A job that would be late is dropped before
the model works on it. While callers come, background batches are small, because whoever comes waits for them.
"""

from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")

BACKGROUND_KINDS = frozenset({"encode", "count", "fill"})
BACKGROUND_SHARE = 8  # under load at least one batch in this many is a background batch
SMALL_SHARE = 8  # a small batch has an eighth of the jobs
_CALLERS_COME_S = 1.0  # for so long after the last one


@dataclass(frozen=True, eq=False)
class Job(Generic[T]):
    """One unit of work. `deadline` and `arrived_at` are times of one clock; no `deadline` = no hurry.

    `caller`: who takes turns; see `service.identity.principal.lane_of`.
    """

    id: int
    kind: str
    payload: T
    cost_tokens: int
    deadline: float = float("inf")
    arrived_at: float = 0.0
    caller: int = 0


class Batcher(Generic[T]):
    """Not thread-safe."""

    def __init__(
        self, *, max_batch: int, max_batch_tokens: int, expected_s: Callable[[int], float] = lambda num_jobs: 0.0
    ) -> None:
        """`expected_s(n)`: expected seconds of an interactive batch of n jobs with a deadline."""
        self.max_batch, self.max_batch_tokens, self._expected_s = max_batch, max_batch_tokens, expected_s
        self._interactive: deque[Job[T]] = deque()
        self._background: deque[Job[T]] = deque()
        self._num_passed_over = 0  # interactive batches since background jobs began to wait
        self._interactive_at = float("-inf")  # when the last interactive batch was formed
        self._served: dict[int, int] = {}  # caller -> number of the batch that served it last
        self._num_served = 0

    def __len__(self) -> int:
        return len(self._interactive) + len(self._background)

    def add(self, job: Job[T]) -> None:
        (self._background if job.kind in BACKGROUND_KINDS else self._interactive).append(job)

    def cancel(self, job_id: int) -> None:
        """Removes the job if it still waits."""
        for lane in (self._interactive, self._background):
            for job in [job for job in lane if job.id == job_id]:
                lane.remove(job)

    def next_batch(self, now: float) -> tuple[list[Job[T]], list[Job[T]]]:
        """The jobs to run now, all of one kind, and the jobs that were dropped because they would be late."""
        late = self._drop_late(now)
        lane = self._choose_lane()
        if lane is self._interactive:
            batch = self._take(lane, self._in_turns(self._part()), self.max_batch)
            if batch:
                self._interactive_at, self._num_served = now, self._num_served + 1
                self._served |= dict.fromkeys((job.caller for job in batch), self._num_served)
            return batch, late
        callers_come = now - self._interactive_at < _CALLERS_COME_S
        return self._take(lane, lane, self._small if callers_come else self.max_batch), late

    @property
    def _small(self) -> int:
        return max(1, self.max_batch // SMALL_SHARE)

    def _drop_late(self, now: float) -> list[Job[T]]:
        """Drops the jobs whose deadline ends before the next batch would, the most urgent first.

        Keeps one job whose deadline has not passed, so that the time of a batch keeps being measured.
        """
        late = []
        waiting = sorted(
            (job for job in self._interactive if job.deadline < float("inf")), key=lambda job: job.deadline
        )
        for number, job in enumerate(waiting):
            num_left = len(waiting) - number
            is_last = num_left == 1 and job.deadline > now
            if is_last or job.deadline > now + self._expected_s(min(num_left, self.max_batch)):
                break
            self._interactive.remove(job)
            late.append(job)
        return late

    def _choose_lane(self) -> deque[Job[T]]:
        is_due = self._num_passed_over >= BACKGROUND_SHARE - 1
        if self._background and (is_due or not self._interactive):
            self._num_passed_over = 0
            return self._background
        self._num_passed_over = self._num_passed_over + 1 if self._background else 0
        return self._interactive

    def _part(self) -> int:
        """Most jobs of one caller in a batch that others wait for: a flood would make it long."""
        counts = Counter(job.caller for job in self._interactive).most_common(2)
        return max(self._small, counts[1][1]) if len(counts) == 2 else self.max_batch

    def _in_turns(self, part: int) -> list[Job[T]]:
        """The first job of each caller, then the second of each, and so on, at most `part` of each."""
        num_before: Counter[int] = Counter()
        places: list[tuple[int, int]] = []
        for job in self._interactive:
            places.append((num_before[job.caller], self._served.get(job.caller, 0)))
            num_before[job.caller] += 1
        pairs = sorted(zip(places, self._interactive, strict=True), key=lambda pair: pair[0])
        return [job for (number, _), job in pairs if number < part]

    def _take(self, lane: deque[Job[T]], ordered: Sequence[Job[T]], most: int) -> list[Job[T]]:
        """The first job and the next jobs of its kind that fit. A job above the token budget runs alone."""
        batch: list[Job[T]] = []
        tokens = 0
        for job in [job for job in ordered if job.kind == ordered[0].kind]:
            is_full = len(batch) >= most or tokens + job.cost_tokens > self.max_batch_tokens
            if batch and is_full:
                break
            batch.append(job)
            tokens += job.cost_tokens
        for job in batch:
            lane.remove(job)
        return batch
