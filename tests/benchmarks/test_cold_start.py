"""The counts of the measurement of first lists are those of the service."""

import numpy as np
import polars as pl

from model_store.event_types import EventTypes
from service.store.counts import SECONDS_PER_DAY
from service.store.events import DIGEST_BYTES, Event, item_digest
from service.usecases.counting import record_of
from tests.benchmarks.cold_start import Log
from tests.service.real import NOW

NUM_ITEMS, CELL = 30, 5 + 2 * DIGEST_BYTES


def test_days_before_a_time_are_those_that_the_service_counts() -> None:
    dice = np.random.default_rng(0)
    events = pl.DataFrame(
        {
            "user": np.repeat([0, 1, 2], [150, 20, 1]),  # of the first one the newest hundred count
            "row": dice.integers(0, NUM_ITEMS, 171),
            "timestamp": NOW + dice.integers(0, 40 * SECONDS_PER_DAY, 171),
        }
    ).sort("user", "timestamp")
    log, rows = Log.of(events, NUM_ITEMS), {item_digest(str(row)): row for row in range(NUM_ITEMS)}
    for now in (NOW + 15 * SECONDS_PER_DAY, NOW + 35 * SECONDS_PER_DAY + 7, NOW + 41 * SECONDS_PER_DAY):
        expected: dict[tuple[int, int], int] = {}
        for own in events.filter(pl.col("timestamp") < now).partition_by("user"):
            sent = [
                Event(f"e{number}", f"u{user}", str(row), at)
                for number, (user, row, at) in enumerate(own.select("user", "row", "timestamp").iter_rows())
            ]
            record = record_of(sent, lambda item_id: False, EventTypes())[1:]
            for start in range(0, len(record), CELL + 4):
                cell = record[start : start + CELL]
                key = int(cell[:5]), rows[cell[5 : 5 + DIGEST_BYTES]]
                expected[key] = expected.get(key, 0) + 1
        found = {
            (day, int(row)): int(count)
            for day, counts in log.days_before(now).items()
            for row, count in zip(counts.pairs[:, 0], counts.counts, strict=True)
        }
        assert found == expected
    assert log.came.tolist() == [events.filter(pl.col("row") == row)["timestamp"].min() for row in range(NUM_ITEMS)]
