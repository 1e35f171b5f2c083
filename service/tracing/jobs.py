"""Spans of jobs in the process of the model, each below the span of the server that waits for the job.

In: where a job belongs, and when its batch ran. Out: a span from its arrival to the end of its batch, and in it one for
the queue and one for each stage that the result names in `timings_s`.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from service.tracing.spans import Span, Tracer


def trace_jobs(
    tracer: Tracer,
    kind: str,
    arrived: Mapping[int, tuple[str, float]],
    results: Sequence[Any],
    *,
    began: float,
    ended: float,
) -> None:
    """A batch ran. `arrived`: for each job of it the span above it, empty for none, and when the job came.

    Times are those of `time.monotonic()`. A stage is one of the whole batch, so all its jobs show the same times.
    """
    offset = time.time() - time.monotonic()
    for result in results:
        parent, came = arrived.get(result.id, ("", 0.0))
        if not parent:  # also of jobs that were dropped when the batch was formed
            continue
        job = tracer.begin(kind, {"traceparent": parent}, {"batch_size": len(arrived)}, came + offset)
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
