"""All metrics of the service, for Prometheus. The only module that imports prometheus_client.

An attribute is the name of its metric without the prefix `automr_`. Labels are small closed sets: never a user, an item
or the path of a request.
"""

import contextlib
from datetime import datetime

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

CONTENT_TYPE = CONTENT_TYPE_LATEST


def geometric(first: float, factor: float, count: int) -> list[float]:
    return [float(f"{first * factor**power:.3g}") for power in range(count)]


SECONDS = geometric(0.000_5, 2, 16)  # 0.5 ms .. 16 s
LAG_SECONDS = geometric(0.005, 2, 18)  # 5 ms .. 11 min
COUNTS = [0.0, *geometric(1, 2, 8)]  # 0, 1, 2 .. 128
SHARES = [tenths / 10 for tenths in range(11)]
DISTANCES = [0.0, *geometric(0.001, 2, 16)]


class Metrics:
    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry if registry is not None else CollectorRegistry()
        self._requests()
        self._connections()
        self._recommendations()
        self._memory()
        self._catalogue()

    def _requests(self) -> None:
        self.http_requests_total = self._counter("http_requests_total", "Answers sent", "route", "method", "status")
        self.http_request_seconds = self._histogram(
            "http_request_seconds", "Time to answer", SECONDS, "route", "method"
        )
        self.rejected_total = self._counter("rejected_total", "Requests refused, by the name of the error", "reason")
        self.ready = self._gauge("ready", "1 when the service is ready for requests")
        self.warmup_seconds = self._gauge("warmup_seconds", "Time from start to ready")
        self.bundle_info = self._gauge("bundle_info", "The bundle that answers; always 1", "bundle", "space")
        self.bundle_created_seconds = self._gauge("bundle_created_seconds", "Unix time at which that bundle was made")
        self.bundle_switches_total = self._counter("bundle_switches_total", "Switches to another bundle")

    def _connections(self) -> None:
        self.connections = self._gauge("connections", "Open connections of callers")
        self.max_connections = self._gauge("max_connections", "Connections over this number are refused")
        self.closed_connections_total = self._counter(
            "closed_connections_total", "Connections that the service closed because of their number or time", "reason"
        )
        self.open_files = self._gauge("open_files", "Open files of the process, every 10 s")
        self.max_open_files = self._gauge("max_open_files", "Open files that the system allows")

    def _recommendations(self) -> None:
        self.stage_seconds = self._histogram("stage_seconds", "Time of one stage of a recommendation", SECONDS, "stage")
        self.batch_size = self._histogram("batch_size", "Jobs in one model call", COUNTS)
        self.queue_depth = self._gauge("queue_depth", "Jobs waiting for the model")
        self.expected_wait_seconds = self._gauge(
            "expected_wait_seconds", "Expected time until a request that comes now is answered"
        )
        self.window_cache_total = self._counter("window_cache_total", "Lookups in the window cache", "result")
        self.window_cache_bytes = self._gauge("window_cache_bytes", "Size of the window cache")
        self.fallback_total = self._counter("fallback_total", "Answers that were a fallback", "reason")
        self.source_total = self._counter("source_total", "Recommended items by source", "source")
        self.reason_total = self._counter("reason_total", "Recommended items by the voice behind them", "voice")
        self.explored_total = self._counter("explored_total", "Recommended items that exploration put into the list")
        self.queries_total = self._counter(
            "queries_total", "Requests with a query in words that the model answered, by how far", "level"
        )
        self.shown_lists_total = self._counter(
            "shown_lists_total", "Answers that are kept for events that name them, and those that were lost", "result"
        )
        self.outcomes = self._gauge(
            "outcomes", "Answers of a variant and what users did with them, of all processes", "variant", "outcome"
        )
        self.shadows_total = self._counter("shadows_total", "Answers that another variant computes, too", "result")
        self.shadow_overlap = self._histogram("shadow_overlap", "Share of items in both lists", SHARES)
        self.shadow_seconds = self._histogram("shadow_seconds", "Time of the variant that is not shown", SECONDS)
        self.memory_elements = self._histogram("memory_elements", "Memory elements used in an answer", COUNTS)
        self.grounding_distance = self._histogram(
            "grounding_distance", "Distance from a grounded item to the nearest generated title", DISTANCES
        )

    def _memory(self) -> None:
        self.interactions_total = self._counter("interactions_total", "Interactions received", "status")
        self.merged_events_total = self._counter("merged_events_total", "Events moved from guests to users")
        self.ingest_visible_lag_seconds = self._histogram(
            "ingest_visible_lag_seconds", "Acknowledged to encoded, by the worker in this process", LAG_SECONDS
        )
        self.store_breaker_open = self._gauge("store_breaker_open", "1 while the store hangs and is not asked")
        self.dead_letters = self._gauge("dead_letters", "Users who could not be encoded, see `service deadletters`")
        self.encode_backlog = self._gauge("encode_backlog", "Users waiting to be encoded")
        self.encode_lag_seconds = self._gauge("encode_lag_seconds", "Waiting time of the first of them")
        self.workers = self._gauge("workers", "Workers that empty the encode queue, of all processes")
        self.deletions_unfinished = self._gauge(
            "deletions_unfinished", "Deletions of users that were broken off, or are looked at again"
        )
        self.erasure_lag_seconds = self._gauge(
            "erasure_lag_seconds", "Since the first deletion whose bytes may still be in the files of the store"
        )
        self.stale_states_total = self._counter(
            "stale_states_total", "Stored states that were encoded again because their window had changed"
        )
        self.live_counts_changed_total = self._counter(
            "live_counts_changed_total", "Live counts that events changed, by the worker in this process"
        )
        self.live_counts_age_seconds = self._gauge(
            "live_counts_age_seconds", "Since this process last looked for new live counts"
        )

    def _catalogue(self) -> None:
        self.item_changes_total = self._counter("item_changes_total", "Changed items that this process took in")
        self.unusable_items_total = self._counter(
            "unusable_items_total", "Stored changes of items that were skipped, because they are not valid"
        )
        self.items_waiting = self._gauge(
            "items_waiting", "Changed items whose titles the model has yet to read; new ones are not recommended yet"
        )
        self.catalogue_age_seconds = self._gauge(
            "catalogue_age_seconds", "Since this process last knew every change of the catalogue"
        )

    def show_bundle(self, bundle: str, space: str, created_at: str) -> None:
        """Of several bundles that are loaded, the one that answers. `created_at`: an RFC 3339 time."""
        self.bundle_info.clear()
        with contextlib.suppress(ValueError):
            self.bundle_created_seconds.set(datetime.fromisoformat(created_at).timestamp())
        self.bundle_info.labels(bundle, space).set(1)

    def render(self) -> bytes:
        return generate_latest(self.registry)

    def _counter(self, name: str, help: str, *labels: str) -> Counter:
        return Counter(f"automr_{name}", help, labels, registry=self.registry)

    def _gauge(self, name: str, help: str, *labels: str) -> Gauge:
        return Gauge(f"automr_{name}", help, labels, registry=self.registry)

    def _histogram(self, name: str, help: str, buckets: list[float], *labels: str) -> Histogram:
        return Histogram(f"automr_{name}", help, labels, buckets=buckets, registry=self.registry)
