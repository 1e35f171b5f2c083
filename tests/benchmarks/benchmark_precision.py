"""Agreement of bfloat16 and int8 with float32: recommendations of a trained bundle (default: the demo's).

There is one request for a user after each of its events from the 11th on; the events are the demo's, or those of the
data set that the bundle was trained on. Each precision encodes windows and memory
itself, as a server with this precision would. The ten items of each answer are compared. Prints a table and, last, one
line of JSON. About a minute.

    PYTHONPATH=. python tests/benchmarks/benchmark_precision.py [--bundle DIR] [--data DATA] [--requests 500]
"""

import argparse
import statistics
import sys
from collections.abc import Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from model_store.answers import Query
from model_store.bundle import Bundle
from model_store.inference import encode, recommend
from model_store.lm.precision import Precision, set_precision
from model_store.lm.prepacked import prepack_matrices
from tests.benchmarks.benchmark_engine import RESULTS
from tests.benchmarks.machine import last_line, table
from tests.benchmarks.serving import ROOT, demo_events
from tests.benchmarks.world import quiet_library
from training.data.dataset import load_dataset

OTHERS: tuple[Precision, ...] = ("bfloat16", "int8")
_BATCH = 16

Titles = list[str]


def histories(bundle: Bundle, events: Sequence[dict[str, Any]], num_requests: int) -> list[Titles]:
    """Titles of a user at the time of each request, oldest first; more than fit in the window."""
    rows, items = bundle.catalogue.rows, bundle.catalogue.items
    found: list[Titles] = []
    for _, own in groupby(sorted(events, key=itemgetter("user_id", "timestamp")), key=itemgetter("user_id")):
        titles = [items[rows[event["item_id"]]].title for event in own]
        found += [titles[:stop] for stop in range(bundle.prompt.spec.recent_length + 1, len(titles) + 1)]
    kept = np.random.default_rng(0).permutation(len(found))[:num_requests]
    return [found[place] for place in np.sort(kept)]


def answers(bundle: Bundle, asked: Sequence[Titles]) -> list[list[int]]:
    """Catalogue rows of the ten items of each answer."""
    batches = [asked[start : start + _BATCH] for start in range(0, len(asked), _BATCH)]
    found = [answer for batch in batches for answer in recommend(bundle, [_query(bundle, titles) for titles in batch])]
    return [[item.row for item in answer.items] for answer in found]


def _query(bundle: Bundle, titles: Titles) -> Query:
    """All items are allowed, so that only the model decides which are best."""
    recent = bundle.prompt.spec.recent_length
    stops = range(1, len(titles) - recent + 1)[-bundle.manifest.memory.max_elements :]
    memory = encode(bundle.lm, [bundle.prompt.tokens(titles[max(0, stop - recent) : stop]) for stop in stops])
    return Query(bundle.prompt.tokens(titles), memory, np.ones(len(bundle.catalogue), dtype=bool), RESULTS)


def open_bundle(path: Path, precision: Precision) -> Bundle:
    bundle = Bundle.open(path)
    set_precision(bundle.lm, precision)
    prepack_matrices(bundle.lm)
    return bundle


def measure(path: Path, events: Sequence[dict[str, Any]], num_requests: int) -> dict[str, Any]:
    plain = open_bundle(path, "float32")
    asked = histories(plain, events, num_requests)
    expected = answers(plain, asked)
    result: dict[str, Any] = {"requests": len(asked)}
    for precision in OTHERS:
        pairs = list(zip(expected, answers(open_bundle(path, precision), asked), strict=True))
        result[precision] = {
            "top1_same": statistics.mean(one[0] == two[0] for one, two in pairs),
            "top10_shared": statistics.mean(len({*one} & {*two}) / len(one) for one, two in pairs),
        }
    return result


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=ROOT / "model_store/bundles/demo")
    parser.add_argument("--data", type=Path, help="data set of the bundle; needed for all but the demo's")
    parser.add_argument("--requests", type=int, default=500)
    arguments = parser.parse_args(argv)
    if arguments.data is None and not (arguments.bundle / "demo-interactions.jsonl").is_file():
        print(f"{arguments.bundle}: not a demo bundle; make one with `make demo`, or name --data", file=sys.stderr)
        return 2
    events = load_dataset(arguments.data).interactions.to_dicts() if arguments.data else demo_events(arguments.bundle)
    with quiet_library():
        result = measure(arguments.bundle, events, arguments.requests)
    rows = [(name, *(result[name][key] for key in ("top1_same", "top10_shared"))) for name in OTHERS]
    print(table([(f"{result['requests']} requests", "same best", "shared of 10"), *rows]))
    print(last_line("precision", result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
