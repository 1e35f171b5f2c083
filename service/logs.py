"""Logging: one JSON object per line on stderr (or coloured text), with the id of the request.

Lines contain no API keys, user ids, titles or bodies. Lines of libraries that use `logging` get the same form.
"""

import logging
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TextIO
from uuid import uuid4

import msgspec
import structlog

_SANE_REQUEST_ID = re.compile(r"[!-~]{1,128}")
_SHARED: list[Any] = [
    structlog.contextvars.merge_contextvars,
    structlog.processors.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
]


def configure(*, level: str = "info", format: str = "json", stream: TextIO | None = None) -> None:
    """Sets up logging for this process; call it once, from an entry point.

    Our own lines are written directly: in a profile of a request, `logging` took three quarters of the time of a line.
    """
    renderer: list[Any] = [structlog.dev.ConsoleRenderer()]
    if format == "json":  # a plain traceback, because a structured one shows local variables, which hold user text
        renderer = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(serializer=_json)]
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=_SHARED,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderer],
        )
    )
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
    logging.getLogger("faiss").setLevel(logging.WARNING)  # it logs every CPU feature that is missing
    structlog.configure(
        processors=[*_SHARED, *renderer],
        logger_factory=structlog.WriteLoggerFactory(stream or sys.stderr),
        wrapper_class=structlog.make_filtering_bound_logger(level),
    )


def _json(line: dict[str, Any], **options: Any) -> str:
    return msgspec.json.encode(line, enc_hook=repr).decode()


def request_id_from(presented: str | None) -> str:
    """The caller's id when it is short and printable, else a new one."""
    return presented if presented and _SANE_REQUEST_ID.fullmatch(presented) else uuid4().hex


@contextmanager
def request_context(request_id: str, trace_id: str | None = None) -> Iterator[None]:
    """Adds the request id, and that of a trace, to every line that is logged inside."""
    trace = {} if trace_id is None else {"trace_id": trace_id}
    with structlog.contextvars.bound_contextvars(request_id=request_id, **trace):
        yield


class RepeatedWarnings:
    """Warnings and errors that may come with every request: at most one line a minute for each kind.

    The first one is logged at once. A later line has `count`: how many there were since the line before it, itself
    included. Kinds are an event and its facts: a small closed set, because each is remembered. For one event loop.
    """

    def __init__(self, logger: Any, *, every_s: float = 60.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._logger, self._every_s, self._clock = logger, every_s, clock
        self._quiet_until: dict[tuple[Any, ...], float] = {}
        self._counts: Counter[tuple[Any, ...]] = Counter()

    def warning(self, event: str, **facts: str) -> None:
        self._log(self._logger.warning, event, facts)

    def exception(self, event: str, **facts: str) -> None:
        """An error with its traceback; call it while the exception is handled."""
        self._log(self._logger.exception, event, facts)

    def _log(self, write: Callable[..., Any], event: str, facts: Mapping[str, str]) -> None:
        kind = event, *facts.items()
        self._counts[kind] += 1
        now = self._clock()
        if now >= self._quiet_until.get(kind, now):
            self._quiet_until[kind] = now + self._every_s
            write(event, **facts, count=self._counts.pop(kind))
