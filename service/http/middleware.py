"""ASGI middleware: AccessLog (ids, log, metrics), and BodyLimit (size). Between them is `access.guard`."""

import asyncio
import time
from collections.abc import Callable

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import Draining, Overloaded, PayloadTooLarge, ServiceError, status_of
from service.http.problems import KEY_ID, REQUEST_ID, from_service_error, internal
from service.identity.scopes import PROBES
from service.logs import RepeatedWarnings, request_context, request_id_from
from service.metrics import Metrics
from service.tracing import spans
from service.tracing.traces import Traces

log = structlog.get_logger("service.access")
repeated = RepeatedWarnings(log)

QUIET_PATHS = PROBES | {"/metrics"}
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class AccessLog:
    """Gives the request an id and a trace, counts it, writes its access line, answers unexpected errors with 500."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics, traces: Traces | None = None) -> None:
        """`traces`: None where no request is traced."""
        self.app = app
        self.metrics, self.traces = metrics, traces
        self._counters: dict[tuple[str, str, int], tuple[Callable[[], None], Callable[[float], None]]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = request_id_from(_header(scope, b"x-request-id"))
        # Routes get the path still percent-encoded, because an id may contain any character, also a slash.
        raw_path = scope.get("raw_path") or scope["path"].encode("ascii", "ignore")
        scope = {**scope, "path": raw_path.decode("ascii", "replace"), REQUEST_ID: request_id}
        begun = None if self.traces is None or scope["path"] in QUIET_PATHS else self._trace(self.traces, scope)
        if begun is None:
            with request_context(request_id):
                await self._answer(scope, receive, send)
        else:
            with request_context(request_id, begun.trace_id), spans.inside(begun):
                await self._answer(scope, receive, send, begun)

    def _trace(self, traces: Traces, scope: Scope) -> spans.Span | None:
        found = {name: _header(scope, name.encode("ascii")) for name in ("traceparent", "tracestate")}
        return traces.begin("request", {name: value for name, value in found.items() if value}, {})

    async def _answer(self, scope: Scope, receive: Receive, send: Send, span: spans.Span | None = None) -> None:
        started = time.perf_counter()
        status = 0

        async def send_named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                name = (b"x-request-id", scope[REQUEST_ID].encode("ascii"))
                message = {**message, "headers": [*message.get("headers", []), name]}
            await send(message)

        try:
            await self.app(scope, receive, send_named)
        except Exception:
            log.exception("unexpected error", route=route_of(scope), method=scope["method"])
            if status:  # the answer has begun: the server closes the connection
                raise
            await internal(scope)(scope, receive, send_named)
        except asyncio.CancelledError:  # the service stops, and the time for its last requests is over
            if status:
                raise
            await from_service_error(scope, Draining("The service stopped before the answer was ready."))(
                scope, receive, send_named
            )
        finally:
            self._account(scope, status, time.perf_counter() - started, span)

    def _account(self, scope: Scope, status: int, seconds: float, span: spans.Span | None) -> None:
        route, shown_status = route_of(scope), status or 499
        method = scope["method"] if scope["method"] in METHODS else "other"
        labels = route, method, shown_status
        if labels not in self._counters:  # a small set; a lookup by labels takes longer than counting
            requests, times = self.metrics.http_requests_total, self.metrics.http_request_seconds
            self._counters[labels] = requests.labels(*labels).inc, times.labels(route, method).observe
        count, observe = self._counters[labels]
        count()
        observe(seconds)
        is_quiet = route in QUIET_PATHS or shown_status == 429  # an overload must not flood the log
        write = log.debug if is_quiet else log.info
        facts = {"route": route, "method": method, "status": shown_status, "key_id": scope.get(KEY_ID)}
        write("request", ms=round(seconds * 1000, 2), **facts)
        if span is not None:
            self._describe(span, scope, f"{method} {route}", route, shown_status)

    def _describe(self, span: spans.Span, scope: Scope, name: str, route: str, status: int) -> None:
        """The template of the route, because a path may hold the id of a user."""
        facts: spans.Attributes = {
            "http.request.method": name.partition(" ")[0],
            "http.route": route,
            "http.response.status_code": status,
            "request_id": scope[REQUEST_ID],
        }
        span.describe(name, facts, str(status) if status >= 500 else "")


class BodyLimit:
    """413 for a body over the limit: at once by its declared length, else while it is read.

    All bodies together that requests in work have sent are bounded, too: over `max_bodies_bytes` a request gets 429.
    """

    def __init__(self, app: ASGIApp, *, max_body_bytes: int, max_bodies_bytes: int, metrics: Metrics) -> None:
        self.app = app
        self.max_body_bytes, self.max_bodies_bytes = max_body_bytes, max_bodies_bytes
        self.metrics = metrics
        self._held_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        detail = f"The body is larger than {self.max_body_bytes} bytes; send fewer elements at once."
        declared = (_header(scope, b"content-length") or "").lstrip("0")
        if declared.isdigit() and int(declared[:20]) > self.max_body_bytes:
            refusal = PayloadTooLarge(detail)
            count_rejection(self.metrics, refusal)
            await from_service_error(scope, refusal)(scope, receive, send)
            return
        received = 0

        async def receive_limited() -> Message:
            nonlocal received
            message = await receive()
            size = len(message.get("body", b""))
            received += size
            self._held_bytes += size
            if received > self.max_body_bytes:
                raise PayloadTooLarge(detail)
            if self._held_bytes > self.max_bodies_bytes:
                raise Overloaded("Too many large bodies are being received.")
            return message

        try:
            await self.app(scope, receive_limited, send)
        finally:
            self._held_bytes -= received


def count_rejection(metrics: Metrics, error: ServiceError) -> None:
    """Counts a request that is refused for another reason than its content; warns of those that the service causes."""
    status = status_of(error)
    if status in (401, 403, 413, 421, 429, 503, 504):
        metrics.rejected_total.labels(type(error).__name__).inc()
    if status in (429, 503, 504):
        warn_of_refusal(type(error).__name__)


def warn_of_refusal(reason: str) -> None:
    repeated.warning("requests refused", reason=reason)


def route_of(scope: Scope) -> str:
    """The template of the path, such as `/items/{item_id}`: a small set of labels."""
    return str(getattr(scope.get("route"), "path", "unmatched"))


def _header(scope: Scope, name: bytes) -> str | None:
    """`name` in lower case, as ASGI gives them."""
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == name), None)
