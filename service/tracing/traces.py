"""Opens the tracing of a process where the settings ask for it. Without an endpoint, no library is imported."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from service.errors import SettingsError
from service.tracing import spans
from service.tracing.spans import Attributes, Span

if TYPE_CHECKING:
    from service.tracing.export import Exporting


class Traces:
    """Of one process. `endpoint`: of a collector that speaks OTLP over HTTP, such as http://collector:4318; empty: off.

    `ratio`: share of traces that are recorded, of those whose caller does not say.
    """

    def __init__(self, endpoint: str = "", *, ratio: float = 1.0, service: str = "automr") -> None:
        self.endpoint, self.ratio, self.service = endpoint, ratio, service
        self._exporting: Exporting | None = None

    @contextmanager
    def opened(self) -> Iterator["Traces"]:
        """Records from now on; at the end sends what is left, for a short time. Raises SettingsError."""
        if not self.endpoint:
            yield self
            return
        try:
            from service.tracing.export import Exporting
        except ImportError:
            problem = "AUTOMR_OTLP_ENDPOINT: traces need more libraries: pip install 'automr[otel]'"
            raise SettingsError([problem]) from None
        self._exporting = Exporting(self.endpoint, ratio=self.ratio, service=self.service)
        spans.use(self._exporting)
        try:
            yield self
        finally:
            spans.use(None)
            exporting, self._exporting = self._exporting, None
            exporting.stop()

    def begin(
        self, name: str, headers: Mapping[str, str], attributes: Attributes, at: float | None = None
    ) -> Span | None:
        """See `spans.Tracer`; None also while it is not open."""
        return None if self._exporting is None else self._exporting.begin(name, headers, attributes, at)
