"""How long the engine will take: learned from the batches it has run. Counts and seconds; knows no torch.

A batch costs something whatever is in it (the steps of the search) and something for each job. Both are needed to tell
how fast a queue will empty: in large batches a job is several times cheaper than alone.
"""

import math

_FORGET = 0.9  # weight of a batch against the one after it: about the last twenty count
_MIN_SPREAD = 0.01  # relative variance of batch sizes below which they say nothing about a single job
_CERTAINTY = 0.99  # share of requests that are in time when they are admitted just so
_STEP = 0.2  # of a logarithm: the last few hundred requests count most
_MOST = 2.0  # a standstill makes hundreds late at once, and must not keep others out long after it


class Correction:
    """How much longer than expected requests take when they take long: what the `_CERTAINTY` quantile of the ratio is.

    Followed by stochastic approximation (Robbins and Monro 1951): up by a long step where a request took longer than
    that, otherwise down by a short one; where the quantile is, the two cancel out.
    """

    def __init__(self) -> None:
        self._log_factor = 0.0

    def observe(self, expected_s: float, actual_s: float) -> None:
        """A request for which nothing was expected had nothing ahead of it, and says nothing about a queue."""
        if expected_s > 0:
            is_late = actual_s > expected_s * self.factor
            step = _STEP * (_CERTAINTY - (not is_late))
            self._log_factor = min(max(0.0, self._log_factor + step), math.log(_MOST))

    @property
    def factor(self) -> float:
        """At least 1: callers who left early prove nothing."""
        return math.exp(self._log_factor)


class Pace:
    """Seconds of a batch of one kind as a line over its jobs: weighted least squares over the last batches."""

    def __init__(self) -> None:
        self._weight = self._x = self._y = self._xx = self._xy = 0.0

    def observe(self, num_jobs: int, seconds: float) -> None:
        self._weight = _FORGET * self._weight + 1
        self._x = _FORGET * self._x + num_jobs
        self._y = _FORGET * self._y + seconds
        self._xx = _FORGET * self._xx + num_jobs * num_jobs
        self._xy = _FORGET * self._xy + num_jobs * seconds

    def seconds(self, num_jobs: int, num_batches: int = 1) -> float:
        """Expected, for so many jobs in so many batches; 0 as long as nothing has run."""
        if not self._weight:
            return 0.0
        slope = self._slope()
        fixed = (self._y - slope * self._x) / self._weight
        return num_batches * fixed + num_jobs * slope

    def _slope(self) -> float:
        """Seconds a job, neither negative nor more than there would be without a fixed part."""
        highest, mean = self._y / self._x, self._x / self._weight
        variance = self._xx / self._weight - mean * mean
        if variance <= _MIN_SPREAD * mean * mean:
            return highest
        slope = (self._xy / self._weight - mean * self._y / self._weight) / variance
        return min(max(slope, 0.0), highest)
