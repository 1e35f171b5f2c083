"""Growth of latency and bytes with the history of a user, the catalogue, the batch, the clients and the load.

`history`    /recommend on a real server, and all bytes of the user in the store
`catalogue`  the engine in this process with synthetic titles: masks of allowed items, and constrained search
`batch`      the engine in this process, with queries of different users in a batch
`clients`    closed loops against a real server: answers per second and latency
`load`       events posted at a share of the encoding capacity of the server: time until they are visible as memory

Figures and one `growth.json` go to `--out`. Prints one table each and, last, one line of JSON. About five minutes.

    PYTHONPATH=. python tests/benchmarks/growth.py [--bundle DIR] [--out DIR] [--only history ...] [--max-items N]
"""

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import redis.asyncio

from model_store.answers import Query
from model_store.bundle import Bundle
from model_store.catalogue.catalogue import Catalogue
from model_store.catalogue.items import Item
from model_store.inference import recommend
from service.store.keys import user_prefix
from tests.benchmarks.benchmark_catalogue import NUM_WORDS, SPECIAL, titles_of
from tests.benchmarks.benchmark_catalogue import make_prompt as make_catalogue_prompt
from tests.benchmarks.benchmark_service import history
from tests.benchmarks.curves import draw
from tests.benchmarks.load import Load, generate
from tests.benchmarks.machine import ROOT, last_line, median_ms, paired, percentile_ms, table, timed
from tests.benchmarks.serving import (
    Server,
    demo_events,
    ingest,
    quantile_between,
    running_server,
    wait_until_encoded,
)
from tests.benchmarks.world import SHAPES, make_bundle, make_model, make_query, make_readers, make_shop, quiet_library

LENGTHS = (10, 50, 100, 500, 1000, 5000)
CATALOGUES = (1_000, 10_000, 100_000, 1_000_000)
BATCHES = (1, 2, 4, 8, 16, 32, 64)
CLIENTS = (1, 2, 4, 8, 16, 32, 64)
SHARES = (0.1, 0.3, 0.5, 0.7, 0.9)
ENGINE_STAGES = ("encode", "retrieve", "generate", "ground")
NUM_REQUESTS = 40  # for each length of history
NUM_SEARCHES = 15  # for each catalogue and each batch size
NUM_SEEN = 1000
CLIENTS_S, LOAD_S = 3.0, 8.0
BUSY_USERS, BURST_EVENTS = 200, 2000
EVENTS_PER_POST = 20
NEWEST = 1_760_000_000

Rows = list[dict[str, float]]


# --- a real server ----------------------------------------------------------------------------------------------------


def by_history(server: Server, items: Sequence[str]) -> Rows:
    """Recommendations for users in turn, who have the same newest items.

    Seen items are not excluded, so all requests rank the same items.
    """
    whole = history("anyone", max(LENGTHS), items)
    for length in LENGTHS:
        ingest(server, [{**event, "user_id": f"of-{length}"} for event in whole[-length:]], size=500)
    wait_until_encoded(server)
    engine: dict[int, list[float]] = {length: [] for length in LENGTHS}

    def ask(length: int) -> None:
        timings = server.post("/recommend", {"user_id": f"of-{length}", "k": 10, "exclude_seen": False})["timings_ms"]
        engine[length].append(sum(timings.get(stage, 0.0) for stage in ENGINE_STAGES) / 1000)

    seconds = paired([partial(ask, length) for length in LENGTHS], NUM_REQUESTS, warm_up=3)
    return [
        {
            "events": length,
            "p50_ms": median_ms(laps),
            "p99_ms": percentile_ms(laps, 99),
            "engine_p50_ms": median_ms(engine[length][3:]),
            **asyncio.run(bytes_of_user(server.store_url, f"of-{length}")),
        }
        for length, laps in zip(LENGTHS, seconds, strict=True)
    ]


async def bytes_of_user(store_url: str, user_id: str) -> dict[str, float]:
    """Bytes of all keys of a user, and of its states alone, as the store counts them, overhead included."""
    client = redis.asyncio.Redis.from_url(store_url)
    try:
        keys = [key async for key in client.scan_iter(match=f"{user_prefix(user_id)}*")]
        sizes = {key: int(await client.execute_command("MEMORY", "USAGE", key, "SAMPLES", 0)) for key in keys}
    finally:
        await client.aclose()
    states = sum(size for key, size in sizes.items() if b":states:" in key)
    return {"bytes": sum(sizes.values()), "states_bytes": states}


def by_clients(server: Server, users: Sequence[str]) -> Rows:
    bodies = [{"user_id": user_id, "k": 10} for user_id in users]
    generate(Load(server.port, "/recommend", bodies, 1.0, num_clients=8))  # warm
    outcomes = {clients: generate(Load(server.port, "/recommend", bodies, CLIENTS_S, clients)) for clients in CLIENTS}
    return [
        {
            "clients": clients,
            "per_s": outcome.rate,
            "p50_ms": percentile_ms(outcome.answered_s, 50),
            "p99_ms": percentile_ms(outcome.answered_s, 99),
            "refused": len(outcome.refused_s),
            "lost": outcome.lost,
        }
        for clients, outcome in outcomes.items()
    ]


def by_load(server: Server, items: Sequence[str]) -> Rows:
    """The encoding capacity is measured first, with posts of the same kind.

    Users take turns: many events of one user at once are much less work.
    """
    users = [f"busy-{number}" for number in range(BUSY_USERS)]
    ingest(server, [event for user_id in users for event in history(user_id, 20, items)], size=500)
    wait_until_encoded(server)
    times = count(NEWEST)
    burst = [_event(users, items, next(times)) for _ in range(BURST_EVENTS)]
    started = time.perf_counter()
    ingest(server, burst, size=EVENTS_PER_POST)
    wait_until_encoded(server)
    capacity = len(burst) / (time.perf_counter() - started)
    return [_lag(server, users, items, share=share, capacity=capacity, times=times) for share in SHARES]


def _lag(
    server: Server, users: Sequence[str], items: Sequence[str], *, share: float, capacity: float, times: "count[int]"
) -> dict[str, float]:
    rate = share * capacity / EVENTS_PER_POST
    posts = [
        {"interactions": [_event(users, items, next(times)) for _ in range(EVENTS_PER_POST)]}
        for _ in range(round(2 * LOAD_S * rate) + 10)
    ]
    before = server.metrics()
    outcome = generate(Load(server.port, "/interactions", posts, LOAD_S, rate=rate))
    drained_s, _ = timed(lambda: wait_until_encoded(server))
    after = server.metrics()
    name = "ingest_visible_lag_seconds"
    return {
        "share": share,
        "capacity_per_s": capacity,
        "events_per_s": EVENTS_PER_POST * len(outcome.answered_s) / outcome.elapsed_s,
        "p50_ms": 1000 * quantile_between(before, after, name, 0.5),
        "p99_ms": 1000 * quantile_between(before, after, name, 0.99),
        "drained_s": drained_s,
        "refused": len(outcome.refused_s),
    }


def _event(users: Sequence[str], items: Sequence[str], now: int) -> dict[str, Any]:
    return {"user_id": users[now % len(users)], "item_id": items[now % len(items)], "timestamp": now}


# --- the engine in this process ---------------------------------------------------------------------------------------


def by_batch() -> Rows:
    shape = SHAPES["demo"]
    shop = make_shop(shape)
    bundle = make_bundle(make_model(shape, shop), shape, shop)
    queries = [make_query(bundle, reader) for reader in make_readers(bundle, max(BATCHES), num_events=20)]
    ways = [partial(recommend, bundle, queries[:size]) for size in BATCHES]
    seconds = paired(ways, NUM_SEARCHES)
    return [
        {"batch": size, "p50_ms": median_ms(laps), "per_query_ms": median_ms(laps) / size}
        for size, laps in zip(BATCHES, seconds, strict=True)
    ]


def by_catalogue(max_items: int) -> Rows:
    """One query at a time, from different users, each with `NUM_SEEN` seen items."""
    shape = replace(SHAPES["demo"], vocab_size=len(SPECIAL) + NUM_WORDS)
    shop = make_shop(shape)
    bundle = make_bundle(make_model(shape, shop), shape, shop)
    bundle.prompt = make_catalogue_prompt()
    sizes = [size for size in CATALOGUES if size <= max_items]
    return [_search(bundle, size) for size in sizes]


def _search(bundle: Bundle, num_items: int) -> dict[str, float]:
    rng = np.random.default_rng(0)
    titles = titles_of(num_items, rng)
    items = (Item(f"item{row}", title) for row, title in enumerate(titles))
    built_s, bundle.catalogue = timed(lambda: Catalogue(items, bundle.prompt))
    queries = iter([_query(bundle, titles, rng) for _ in range(2 * NUM_SEARCHES + 2)])
    trie = bundle.catalogue.trie

    def mask() -> None:
        trie.allow(next(queries).allowed).among(trie.children(trie.root))

    masks, searches = paired([mask, lambda: recommend(bundle, [next(queries)])], NUM_SEARCHES)
    return {"items": num_items, "built_s": built_s, "mask_ms": median_ms(masks), "p50_ms": median_ms(searches)}


def _query(bundle: Bundle, titles: Sequence[str], rng: np.random.Generator) -> Query:
    seen = rng.choice(len(titles), min(NUM_SEEN, len(titles) // 2), replace=False)
    allowed = bundle.catalogue.available(0)
    allowed[seen] = False
    memory = rng.standard_normal((90, bundle.lm.hidden_size)).astype(np.float16)
    return Query(bundle.prompt.tokens([titles[row] for row in seen[:10]]), memory, allowed, 10)


# --- run and report ---------------------------------------------------------------------------------------------------


def measure(bundle: Path, only: Sequence[str], max_items: int) -> dict[str, Rows]:
    events = demo_events(bundle)
    users, items = sorted({event["user_id"] for event in events}), sorted({event["item_id"] for event in events})

    def on_server(curve: Callable[[Server], Rows]) -> Rows:
        with running_server(bundle) as server:
            ingest(server, events)
            wait_until_encoded(server)
            return curve(server)

    curves: dict[str, Callable[[], Rows]] = {
        "history": lambda: on_server(lambda server: by_history(server, items)),
        "catalogue": lambda: by_catalogue(max_items),
        "batch": by_batch,
        "clients": lambda: on_server(lambda server: by_clients(server, users)),
        "load": lambda: on_server(lambda server: by_load(server, items)),
    }
    found = {}
    for name in only or curves:
        found[name] = curves[name]()
        print(f"{name}\n{table([list(found[name][0]), *(list(row.values()) for row in found[name])])}\n", flush=True)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=ROOT / "model_store/bundles/demo")
    parser.add_argument("--out", type=Path, default=ROOT / "tests/benchmarks/results")
    parser.add_argument("--only", nargs="*", default=[], choices=["history", "catalogue", "batch", "clients", "load"])
    parser.add_argument("--max-items", type=int, default=max(CATALOGUES))
    arguments = parser.parse_args(argv)
    if not (arguments.bundle / "demo-interactions.jsonl").is_file():
        print(f"{arguments.bundle}: not a demo bundle; make one with `make demo`", file=sys.stderr)
        return 2
    started = time.perf_counter()
    with quiet_library():
        found = measure(arguments.bundle, arguments.only, arguments.max_items)
    line = last_line("growth", {**found, "seconds": time.perf_counter() - started})
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "growth.json").write_text(json.dumps(json.loads(line), indent=1) + "\n", encoding="utf-8")
    for name, figure in draw(found).items():
        figure.savefig(arguments.out / f"{name}.png", dpi=150)
    print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
