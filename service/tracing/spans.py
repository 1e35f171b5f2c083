"""Spans: what a request did, and for how long. Imports no library; `export.py` records them and sends them away.

A part of the service says `with span("store"):`. Inside a trace that is recorded, this makes a span below the current
one; everywhere else it does nothing, and costs one look at a context variable. Names and attributes are fixed words and
numbers: no ids of users or items, no titles, no queries.
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import Context, ContextVar, copy_context
from typing import Protocol

Attributes = Mapping[str, str | int | float]


class Span(Protocol):
    """A span that is recorded. `trace_id`: 32 hex digits. `traceparent`: of W3C, for a child in another process.

    `at`: Unix seconds at which it began or ended, if that is not now.
    """

    trace_id: str
    traceparent: str

    def child(self, name: str, attributes: Attributes, at: float | None = None) -> "Span": ...

    def describe(self, name: str, attributes: Attributes, error: str) -> None:
        """Gives it another name, more attributes and, if it is not empty, the kind of an error."""

    def end(self, error: str = "", at: float | None = None) -> None: ...


class Tracer(Protocol):
    def begin(
        self, name: str, headers: Mapping[str, str], attributes: Attributes, at: float | None = None
    ) -> Span | None:
        """The first span of this process in a trace; None if the trace is not recorded.

        `headers` `traceparent` and `tracestate`: of the caller, who then decides whether it is recorded.
        """


_current: ContextVar[Span | None] = ContextVar("span", default=None)
_tracer: ContextVar[Tracer | None] = ContextVar("tracer", default=None)
_NOTHING = nullcontext()


def span(name: str, **attributes: str | int | float) -> AbstractContextManager[Span | None]:
    """A span below the current one, if there is one. An exception is recorded as the name of its class."""
    parent = _current.get()
    return _NOTHING if parent is None else inside(parent.child(name, attributes))


def root(name: str, **attributes: str | int | float) -> AbstractContextManager[Span | None]:
    """The first span of a trace of background work, in tasks that were started while a tracer was in use."""
    tracer = _tracer.get()
    begun = None if tracer is None else tracer.begin(name, {}, attributes)
    return _NOTHING if begun is None else inside(begun)


@contextmanager
def inside(begun: Span) -> Iterator[Span]:
    """What is done here belongs to this span, which ends with it."""
    token = _current.set(begun)
    try:
        yield begun
    except BaseException as error:
        begun.end(type(error).__name__)
        raise
    else:
        begun.end()
    finally:
        _current.reset(token)


def use(tracer: Tracer | None) -> None:
    """For `root`, in this task and those that it starts from now on."""
    _tracer.set(tracer)


def without_span() -> Context:
    """The context of a task that outlives the request which starts it: its work is not that of the request."""
    context = copy_context()
    context.run(_current.set, None)
    return context
