"""A collector for tests: takes what the exporter sends over HTTP and decodes it, with OpenTelemetry's own messages."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span


class Collector:
    """`bodies`: as they came. `hangs`: takes requests and does not answer."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.hangs = threading.Event()
        self.asked = threading.Event()
        self.endpoint = ""

    @property
    def spans(self) -> dict[str, list[Span]]:
        """By service."""
        found: dict[str, list[Span]] = {}
        for body in self.bodies:
            for group in ExportTraceServiceRequest.FromString(body).resource_spans:
                names = [each.value.string_value for each in group.resource.attributes if each.key == "service.name"]
                for scope in group.scope_spans:
                    found.setdefault(names[0], []).extend(scope.spans)
        return found

    @property
    def all(self) -> list[Span]:
        return [span for spans in self.spans.values() for span in spans]

    def named(self, name: str) -> list[Span]:
        return [span for span in self.all if span.name == name]

    def wait_for(self, is_there: Callable[[], object], timeout_s: float = 10.0) -> None:
        """The exporter sends every second."""
        end = time.monotonic() + timeout_s
        while not is_there():
            assert time.monotonic() < end, f"only these spans came: {sorted(span.name for span in self.all)}"
            time.sleep(0.02)


@contextmanager
def collector() -> Iterator[Collector]:
    opened = Collector()
    is_over = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            opened.asked.set()
            if opened.hangs.is_set():
                is_over.wait(30)
                return
            assert self.path == "/v1/traces"
            opened.bodies.append(body)
            self.send_response(200)
            self.send_header("content-type", "application/x-protobuf")
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Tests are silent."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    opened.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield opened
    finally:
        is_over.set()
        server.shutdown()
        server.server_close()
        thread.join()


def attributes(span: Span) -> dict[str, str | int]:
    return {
        each.key: each.value.string_value if each.value.HasField("string_value") else each.value.int_value
        for each in span.attributes
    }
