"""Records spans with OpenTelemetry and sends them to a collector (OTLP over HTTP). The only module that imports it.

A thread sends batches. While the collector is slow or unavailable, spans wait in a queue of bounded length; those that
find it full are dropped, so nobody waits for the collector. The library reads its own variables
(`OTEL_EXPORTER_OTLP_HEADERS`, `OTEL_RESOURCE_ATTRIBUTES`, …). Baggage of callers is neither read nor passed on.
"""

import threading
from collections.abc import Mapping

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Span as Recorded
from opentelemetry.trace import SpanKind, StatusCode, Tracer, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from service.tracing.spans import Attributes

_SEND_S = 5.0  # time limit of one call to the collector
_STOP_S = 1.0
_MOST_WAITING = 4096  # spans


class Exporting:
    """A `spans.Tracer`. Thread-safe."""

    def __init__(self, endpoint: str, *, ratio: float, service: str) -> None:
        self._provider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(ratio)),
            resource=Resource.create({"service.name": service}),
            shutdown_on_exit=False,  # `stop` does it, in bounded time
        )
        exporter = OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces", timeout=_SEND_S)
        processor = BatchSpanProcessor(
            exporter, max_queue_size=_MOST_WAITING, schedule_delay_millis=1000, max_export_batch_size=512
        )
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("automr")
        self._propagator = TraceContextTextMapPropagator()

    def begin(
        self, name: str, headers: Mapping[str, str], attributes: Attributes, at: float | None = None
    ) -> "RecordedSpan | None":
        context = self._propagator.extract(headers, Context()) if headers else Context()
        recorded = self._tracer.start_span(name, context, SpanKind.SERVER, attributes, start_time=_nanoseconds(at))
        return RecordedSpan(recorded, self._tracer) if recorded.is_recording() else None

    def stop(self) -> None:
        """Sends what is left, for `_STOP_S` seconds at most. Threads of the library do not outlive the process."""
        ending = threading.Thread(target=self._provider.shutdown, name="traces-end", daemon=True)
        ending.start()
        ending.join(_STOP_S)


class RecordedSpan:
    """A `spans.Span`."""

    def __init__(self, recorded: Recorded, tracer: Tracer) -> None:
        self._recorded, self._tracer = recorded, tracer
        identity = recorded.get_span_context()
        self.trace_id = f"{identity.trace_id:032x}"
        self.traceparent = f"00-{self.trace_id}-{identity.span_id:016x}-01"

    def child(self, name: str, attributes: Attributes, at: float | None = None) -> "RecordedSpan":
        context = set_span_in_context(self._recorded, Context())
        return RecordedSpan(
            self._tracer.start_span(name, context, attributes=attributes, start_time=_nanoseconds(at)), self._tracer
        )

    def describe(self, name: str, attributes: Attributes, error: str) -> None:
        self._recorded.update_name(name)
        self._recorded.set_attributes(dict(attributes))
        self._fail(error)

    def end(self, error: str = "", at: float | None = None) -> None:
        self._fail(error)
        self._recorded.end(_nanoseconds(at))

    def _fail(self, error: str) -> None:
        """Without the text of the exception, which may hold data of a user."""
        if error:
            self._recorded.set_attribute("error.type", error)
            self._recorded.set_status(StatusCode.ERROR)


def _nanoseconds(at: float | None) -> int | None:
    return None if at is None else round(at * 1e9)
