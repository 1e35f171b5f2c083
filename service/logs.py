"""Log lines: one JSON object each on stderr (or coloured text), every one with the id of its request.

Never in a line: keys, user ids, titles, bodies. Libraries that use `logging` come out in the same form.
"""

import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO
from uuid import uuid4

import structlog

_SANE_REQUEST_ID = re.compile(r"[!-~]{1,128}")
_SHARED: list[Any] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
]


def configure(*, level: str = "info", format: str = "json", stream: TextIO | None = None) -> None:
    """Sets up logging for this process; call it once, from an entry point."""
    renderer: list[Any] = [structlog.dev.ConsoleRenderer()]
    if format == "json":  # a plain traceback: the structured one prints local variables, which hold user text
        renderer = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=_SHARED,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderer],
        )
    )
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
    logging.getLogger("faiss").setLevel(logging.WARNING)  # it reports every instruction set it does not find
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *_SHARED,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
    )


def request_id_from(presented: str | None) -> str:
    """The caller's id when it is short and printable, else a new one."""
    return presented if presented and _SANE_REQUEST_ID.fullmatch(presented) else uuid4().hex


@contextmanager
def request_context(request_id: str) -> Iterator[None]:
    """Every line logged inside carries the request id."""
    with structlog.contextvars.bound_contextvars(request_id=request_id):
        yield
