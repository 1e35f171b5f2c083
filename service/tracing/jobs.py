"""Spans of jobs in the process of the model, each below the span of the server that waits for the job.

In: where a job belongs, and when its batch ran. Out: a span from its arrival to the end of its batch, and in it one for
the queue and one for each stage that the result names in `timings_s`.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from service.tracing.spans import Span, Tracer


class JobTraces:
    """Times are those of `time.monotonic()`."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer
        self._parents: dict[int, str] = {}

    def expect(self, job_id: int, traceparent: str) -> None:
        """The job with this id comes next."""
        self._parents[job_id] = traceparent

    def forget(self, job_ids: Sequence[int]) -> None:
        for job_id in job_ids:
            self._parents.pop(job_id, None)

    def ran(self, kind: str, arrived: Mapping[int, float], results: Sequence[Any], began: float, ended: float) -> None:
        """A batch ran. `arrived`: when each job of it came.

        A stage is one of the whole batch, so all jobs of the batch show the same times.
        """
        offset = time.time() - time.monotonic()
        for result in results:
            parent, came = self._parents.pop(result.id, None), arrived.get(result.id)
            if parent is None or came is None:
                continue
            facts = {"batch_size": len(arrived)}
            job = self._tracer.begin(kind, {"traceparent": parent}, facts, came + offset)
            if job is not None:
                job.child("queue", {}, came + offset).end(at=began + offset)
                _add_stages(job, getattr(result, "timings_s", {}), began + offset)
                job.end("Failed" if type(result).__name__ == "Failed" else "", ended + offset)


def _add_stages(job: Span, timings_s: Mapping[str, float], at: float) -> None:
    """One after the other."""
    for stage, seconds in timings_s.items():
        part = job.child(stage, {}, at)
        at += seconds
        part.end(at=at)
