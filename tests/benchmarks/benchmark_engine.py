"""The engine against its floor, and against Hugging Face `generate` with the same weights, beams and answers.

Weights are random in a known shape (`world.py`): `demo`, `smollm2` (what the recipe of
this name makes of SmolLM2), `0.5b` (Qwen2.5-0.5B) or `7b` (Llama-2-7B, on a GPU only).
AutoMR answers from a prompt of 10 items and 90 memories. Its matrices are packed as in a server (`prepacked.py`).

`floor`      lower bound of the time for the tokens that were read (`floor.py`)
`hf 10`      `generate` constrained to the catalogue, 10 items in the prompt: the same task as AutoMR without memory
`hf 100`     the same with 100 items in the prompt; at demo size, and with --long, 500 items as well
`window`     a request whose window is in the cache (`window_cache.py`), and a request whose window is new
`bfloat16`   the engine in another precision (`precision.py`), also `int8`: time, and agreement of the answers

Prints tables and, last, one line of JSON.

    PYTHONPATH=. python tests/benchmarks/benchmark_engine.py [--size 0.5b] [--device cuda] [--beams 10] [--long]
"""

import argparse
import copy
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import cycle
from typing import Any

import torch
from transformers import PreTrainedModel

from model_store.answers import Answer
from model_store.bundle import Bundle
from model_store.inference import encode, recommend
from model_store.lm.precision import Precision, set_precision
from model_store.lm.prepacked import prepack_matrices
from model_store.lm.window_cache import WindowCache
from tests.benchmarks.floor import Work, counted
from tests.benchmarks.machine import bandwidth, last_line, matrix_rate, median_ms, paired, table
from tests.benchmarks.peer import Generate, Generated
from tests.benchmarks.world import (
    DTYPES,
    SHAPES,
    Reader,
    Shape,
    Shop,
    make_bundle,
    make_model,
    make_query,
    make_readers,
    make_shop,
    quiet_library,
)

RESULTS = 10  # k
BATCHES = (1, 8)
OTHERS: tuple[Precision, ...] = ("bfloat16", "int8")
SCORE_TOLERANCE = 1e-2  # nats, of a whole title
_REPEATS = {"demo": 10, "smollm2": 5, "0.5b": 2, "7b": 5}


@dataclass
class Bench:
    """The parts of one run. `twin`: the whole model over the same weights as the split model of the bundle."""

    size: str
    shape: Shape
    shop: Shop
    bundle: Bundle
    twin: PreTrainedModel
    readers: list[Reader]
    device: str
    dtype: torch.dtype
    answers: dict[str, list[Any]] = field(default_factory=dict)

    @property
    def num_beams(self) -> int:
        return self.bundle.manifest.generation.num_beams

    def answer(
        self, readers: Sequence[Reader], *, with_memory: bool = True, windows: WindowCache | None = None
    ) -> list[Answer]:
        queries = [make_query(self.bundle, each, num_results=RESULTS, with_memory=with_memory) for each in readers]
        return recommend(self.bundle, queries, windows)

    def title(self, row: int) -> tuple[int, ...]:
        return self.bundle.prompt.title_tokens(self.bundle.catalogue.items[row].title)

    def prompt_of(self, reader: Reader, num_items: int) -> list[int]:
        """Token ids of the bundle's prompt, but with any number of items."""
        prompt, titles = self.bundle.prompt, reader.titles[-num_items:]
        return [*prompt.head, *(token for title in titles for token in prompt.title_tokens(title))]


def make_bench(size: str, *, device: str, dtype: torch.dtype, num_beams: int | None) -> Bench:
    shape = SHAPES[size]
    shop = make_shop(shape)
    model = make_model(shape, shop, dtype=dtype, device=device)
    twin = _twin(model)
    bundle = make_bundle(model, shape, shop, num_beams=num_beams)
    prepack_matrices(bundle.lm)  # as the service does
    readers = make_readers(bundle, max(BATCHES))
    return Bench(size, shape, shop, bundle, twin, readers, device, dtype)


def _twin(model: PreTrainedModel) -> PreTrainedModel:
    """Another object over the same weights. It stays whole when the bundle splits the model."""
    return copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})


# --- against the floor ------------------------------------------------------------------------------------------------


def against_floor(bench: Bench, batch_size: int, repeats: int) -> dict[str, Any]:
    readers = bench.readers[:batch_size]
    with counted(bench.bundle.lm) as work:
        answers = bench.answer(readers)
    _must_be_counted(work, batch_size)
    answered: list[list[Answer]] = []
    (seconds,) = paired([lambda: answered.append(bench.answer(readers))], repeats, device=bench.device, warm_up=0)
    bench.answers[f"batch {batch_size}"] = answers
    floor_ms = 1000 * work.floor_s(bench.shape, dtype=bench.dtype, device=bench.device)
    stages = {stage: median_ms([each[0].timings_s[stage] for each in answered]) for stage in answers[0].timings_s}
    return {
        "ms": median_ms(seconds),
        "floor_ms": floor_ms,
        "times_floor": median_ms(seconds) / floor_ms,
        "stages_ms": stages,
        "prompt_tokens": list(work.prompt_tokens),
        "beam_tokens": work.beam_tokens,
        "head_rows": work.head_rows,
        "steps": len(work.steps) - 1,
    }


def _must_be_counted(work: Work, batch_size: int) -> None:
    """Raises SystemExit if tokens were read by methods that `counted` does not wrap: the floor is too low."""
    if not work.beam_tokens or min(work.prompt_tokens) < batch_size:
        raise SystemExit("the engine reads tokens by methods that floor.py does not count")


# --- against Hugging Face generate ------------------------------------------------------------------------------------


def against_generate(bench: Bench, num_items: int, repeats: int, *, warm_up: int) -> dict[str, Any]:
    """One request at a time, both ways in turn. With 10 items in the prompt the answers are compared too."""
    sequences = [bench.bundle.prompt.title_tokens(title) for title in bench.shop.titles]
    peer = Generate(bench.twin, sequences, terminator=bench.bundle.prompt.terminator[0])
    ours, plain, theirs = (cycle(bench.readers) for _ in range(3))
    found: list[list[Generated]] = []
    without_memory: list[Answer] = []

    def ask_peer() -> None:
        prompt = bench.prompt_of(next(theirs), num_items)
        found.append(peer(prompt, num_beams=bench.num_beams, num_results=RESULTS))

    ways: list[Callable[[], Any]] = [lambda: bench.answer([next(ours)]), ask_peer]
    compared = num_items == bench.bundle.prompt.spec.recent_length
    if compared:
        ways.append(lambda: without_memory.extend(bench.answer([next(plain)], with_memory=False)))
    seconds = paired(ways, repeats, device=bench.device, warm_up=warm_up)
    result: dict[str, Any] = {
        "prompt_tokens": len(bench.prompt_of(bench.readers[0], num_items)),
        "automr_ms": median_ms(seconds[0]),
        "hf_ms": median_ms(seconds[1]),
        "times_faster": median_ms(seconds[1]) / median_ms(seconds[0]),
    }
    if compared:
        result |= {"automr_without_memory_ms": median_ms(seconds[2])}
        result |= _agreement_with_peer(bench, without_memory, found)
    return result


def _agreement_with_peer(
    bench: Bench, answers: Sequence[Answer], found: Sequence[Sequence[Generated]]
) -> dict[str, float]:
    """The beams differ (here whole edges of the trie, there single tokens), so the ends of the lists may differ.

    Raises SystemExit when the same title has different scores.
    """
    ours = [{bench.title(item.row): item.score for item in answer.items} for answer in answers]
    theirs = [{each.tokens: each.score for each in lists} for lists in found]
    shared = [(one[title], two[title]) for one, two in zip(ours, theirs, strict=True) for title in one.keys() & two]
    worst = max((abs((mine or 0.0) - yours) for mine, yours in shared), default=float("inf"))
    if bench.dtype == torch.float32 and worst > SCORE_TOLERANCE:
        raise SystemExit(f"the scores of the same title differ by {worst:.2g} nats")
    pairs = list(zip(ours, theirs, strict=True))
    return {
        "top1_same": statistics.mean(next(iter(one)) == next(iter(two)) for one, two in pairs),
        "top10_shared": statistics.mean(len(one.keys() & two) / len(one) for one, two in pairs),
        "our_best_is_as_good": statistics.mean(_best(one) >= _best(two) - SCORE_TOLERANCE for one, two in pairs),
        "worst_score_difference": worst,
    }


def _best(scores: dict[tuple[int, ...], Any]) -> float:
    return max(float(score) for score in scores.values() if score is not None)


# --- a window in the cache --------------------------------------------------------------------------------------------


def after_event(bench: Bench, repeats: int) -> dict[str, float]:
    """One request. Its window is new, or in the cache because the worker has encoded it. The answers must agree."""
    reader = bench.readers[:1]
    known = WindowCache(keeps_keys_values=True)
    encode(bench.bundle.lm, [bench.bundle.prompt.tokens(reader[0].titles)], known)
    ways = {
        "no_cache": lambda: bench.answer(reader),
        "new_window": lambda: bench.answer(reader, windows=WindowCache(keeps_keys_values=True)),
        "known_window": lambda: bench.answer(reader, windows=known),
    }
    rows = [[item.row for item in way()[0].items] for way in ways.values()]
    if rows[0] != rows[1] or rows[0] != rows[2]:
        raise SystemExit("a cached window changes the answer")
    none, new, hit = paired(list(ways.values()), repeats, device=bench.device, warm_up=0)
    return {
        "no_cache_ms": median_ms(none),
        "new_window_ms": median_ms(new),
        "known_window_ms": median_ms(hit),
        "times_faster": median_ms(new) / median_ms(hit),
    }


# --- other precisions -------------------------------------------------------------------------------------------------


def in_precision(bench: Bench, precision: Precision, repeats: int) -> dict[str, Any]:
    """The largest batch in this precision (`precision.py`), in turn with the original precision, and one request."""
    size = max(BATCHES)
    bundle = make_bundle(copy.deepcopy(bench.twin), bench.shape, bench.shop, num_beams=bench.num_beams)
    set_precision(bundle.lm, precision)
    prepack_matrices(bundle.lm)
    dtype = getattr(torch, precision)
    other = replace(bench, bundle=bundle)
    with counted(bundle.lm) as work:
        answers = other.answer(bench.readers[:size])
    ways = [partial(each.answer, bench.readers[:size]) for each in (bench, other)]
    plain, cast = paired(ways, repeats, device=bench.device, warm_up=0)
    (one,) = paired([partial(other.answer, bench.readers[:1])], 2 * repeats, device=bench.device, warm_up=1)
    floor_ms = 1000 * work.floor_s(bench.shape, dtype=dtype, device=bench.device)
    return {
        "ms": median_ms(cast),
        "one_ms": median_ms(one),
        "times_faster": median_ms(plain) / median_ms(cast),
        "floor_ms": floor_ms,
        "times_floor": median_ms(cast) / floor_ms,
        **_agreement(bench.answers[f"batch {size}"], answers),
    }


def _agreement(expected: Sequence[Answer], found: Sequence[Answer]) -> dict[str, float]:
    rows = [[[item.row for item in answer.items] for answer in answers] for answers in (expected, found)]
    pairs = list(zip(*rows, strict=True))
    return {
        "top1_same": statistics.mean(one[0] == two[0] for one, two in pairs),
        "top10_shared": statistics.mean(len(set(one) & set(two)) / len(one) for one, two in pairs),
    }


# --- all of it --------------------------------------------------------------------------------------------------------


def measure(bench: Bench, *, is_long: bool, repeats: int) -> dict[str, Any]:
    fast = bench.size == "demo"
    floors = {f"batch_{size}": against_floor(bench, size, repeats) for size in BATCHES}
    peers = {"hf_10": against_generate(bench, 10, repeats, warm_up=int(fast))}
    peers["hf_100"] = against_generate(bench, 100, repeats if fast else 1, warm_up=0)
    if fast or is_long:
        peers["hf_500"] = against_generate(bench, 500, 1, warm_up=0)
    others: list[Precision] = (
        [] if bench.dtype != torch.float32 else ["bfloat16"] if is_gpu(bench.device) else [*OTHERS]
    )
    precision = {name: in_precision(bench, name, max(1, repeats // 2)) for name in others}
    return {
        "recommend": floors,
        "window": after_event(bench, repeats),
        "peers": peers,
        "precision": precision,
    }


def is_gpu(device: str) -> bool:
    return torch.device(device).type == "cuda"


def report(bench: Bench, results: dict[str, Any]) -> str:
    """Tables of the results of `measure`."""
    floors = [("AutoMR, 90 memories", "ms", "floor, ms", "× floor", "prompt tokens", "beam tokens", "steps")]
    for name, row in results["recommend"].items():
        counts = [row["prompt_tokens"][0], row["beam_tokens"], row["steps"]]
        floors.append((name.replace("_", " of "), row["ms"], row["floor_ms"], row["times_floor"], *counts))
    peers = [("HF generate, ms", "prompt tokens", "HF", "AutoMR", "× faster", "same best", "shared of 10")]
    for name, row in results["peers"].items():
        agreement = [row.get("top1_same"), row.get("top10_shared")]
        sizes = [row["prompt_tokens"], row["hf_ms"], row["automr_ms"], row["times_faster"]]
        peers.append((f"{name.removeprefix('hf_')} items in the prompt", *sizes, *agreement))
    window = results["window"]
    windows = [
        ("one request, ms", "without cache", "new window", "cached window", "× faster"),
        ("AutoMR, 90 memories", *window.values()),
    ]
    parts = [table(floors), _stages(results), table(windows), table(peers)]
    if results["precision"]:
        kinds = [
            ("", "one, ms", f"{max(BATCHES)}, ms", "floor, ms", "× floor", "× faster", "same best", "shared of 10")
        ]
        for name, row in results["precision"].items():
            columns = ("one_ms", "ms", "floor_ms", "times_floor", "times_faster", "top1_same", "top10_shared")
            kinds.append((name, *(row[column] for column in columns)))
        parts.append(table(kinds))
    return "\n\n".join(parts)


def _stages(results: dict[str, Any]) -> str:
    rows = results["recommend"]
    stages = list(next(iter(rows.values()))["stages_ms"])
    return table(
        [("stages, ms", *stages), *((name.replace("_", " of "), *rows[name]["stages_ms"].values()) for name in rows)]
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SHAPES, default="demo")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=DTYPES, help="default: float32, on a GPU bfloat16")
    parser.add_argument("--beams", type=int, help="default: 20 at demo size, otherwise 10")
    parser.add_argument("--repeats", type=int, help="timed runs of each way")
    parser.add_argument("--long", action="store_true", help="also 500 items in the prompt; takes minutes at 0.5b")
    arguments = parser.parse_args(argv)
    on_gpu = is_gpu(arguments.device)
    if arguments.size == "7b" and not on_gpu:
        print("7b needs a GPU: --device cuda", file=sys.stderr)
        return 2
    if arguments.size == "demo":
        torch.set_num_threads(1)  # as in the service for so small a model; also the fastest for `generate`
    dtype = DTYPES[arguments.dtype or ("bfloat16" if on_gpu else "float32")]
    with quiet_library():
        bench = make_bench(arguments.size, device=arguments.device, dtype=dtype, num_beams=arguments.beams)
        rates = matrix_rate(dtype, device=arguments.device), bandwidth(device=arguments.device)
        print(
            f"{arguments.size}: {bench.shape.num_parameters / 1e6:,.0f} M parameters, {len(bench.shop.titles)} titles, "
            f"{bench.num_beams} beams; {rates[0] / 1e9:,.0f} GFLOP/s, {rates[1] / 1e9:,.0f} GB/s\n"
        )
        results = measure(bench, is_long=arguments.long, repeats=arguments.repeats or _REPEATS[arguments.size])
    setting = {"size": arguments.size, "device": arguments.device, "dtype": str(dtype), "beams": bench.num_beams}
    limits = {"matrix_gflops": rates[0] / 1e9, "bandwidth_gb_s": rates[1] / 1e9}
    print(report(bench, results))
    print(last_line(f"engine {arguments.size}", {**setting, **limits, **results}, device=arguments.device))
    return 0


if __name__ == "__main__":
    sys.exit(main())
