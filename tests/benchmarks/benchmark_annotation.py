"""Annotation of all memory elements of a target: the shared prefix of training against one pass per element.

Three ways to compute the same log-probabilities, with the same weights, in the same run:

`each`     for every element, the bottom half reads the window of the element, then prompt and answer; the top half
           reads prompt, memory element and answer. No cache, no batch; logits are computed for the answer only.
`batched`  the same work, with all elements of a target in one batch.
`shared`   as training does it: each window is read once, whatever the number of targets that have it in memory; prompt
           and answer are read once; all elements share the top half's keys and values of the prompt. The time includes
           reading the windows; `states kept` is the same without it, as for a user whose windows are already encoded.

Targets are consecutive events of one user. The floor is the number of operations of the linear layers in the shared
way, divided by the measured rate of large matrix products. Prints a table and, last, one line of JSON. Fails when the
results differ.

    python tests/benchmarks/benchmark_annotation.py [--targets 16] [--elements 90] [--laps 3]
"""

import argparse
import statistics
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from model_store.lm.split_lm import SplitLM
from tests.benchmarks.machine import last_line, matrix_rate, table, timed
from training.lm.likelihood import answer_log_probs, encode_answers
from training.lm.states import States, encode_prompts
from training.lm.windows import Example
from training.memory.annotations import annotate

RECENT = 10  # K
TOLERANCE = 1e-3  # nats, of a whole answer
BATCH = 16  # targets at a time, as in the recipes


class Size(NamedTuple):
    name: str
    hidden_size: int
    num_layers: int
    split_layer: int
    vocab_size: int
    title_tokens: int


SIZES = (
    Size("demo, 64 x 3", 64, 3, 1, 3000, 3),
    Size("mid, 512 x 8", 512, 8, 4, 16000, 3),
    Size("mid, item tokens", 512, 8, 4, 16000, 1),
)


class Reader(NamedTuple):
    """One user. `prompts`: of the window that ends at each event. `examples`: targets with equally many memories."""

    prompts: list[list[int]]
    examples: list[Example]

    @property
    def num_windows(self) -> int:
        """Number of windows that are a memory of at least one target."""
        return int(self.examples[-1].memory_positions[-1]) + 1


def make_lm(size: Size) -> SplitLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=size.vocab_size,
        hidden_size=size.hidden_size,
        intermediate_size=2 * size.hidden_size,
        num_hidden_layers=size.num_layers,
        num_attention_heads=max(4, size.hidden_size // 64),
        tie_word_embeddings=True,
    )
    lm = SplitLM(LlamaForCausalLM(config), size.split_layer)
    lm.model.requires_grad_(False)
    return lm


def make_reader(size: Size, num_targets: int, num_elements: int) -> Reader:
    rng = np.random.default_rng(0)
    first = num_elements + RECENT
    titles = rng.integers(1, size.vocab_size, (first + num_targets, size.title_tokens))
    prompts = [titles[max(0, end - RECENT) : end].flatten().tolist() for end in range(1, len(titles))]
    examples = [
        Example(0, at, prompts[at - 1], tuple(titles[at].tolist()), np.arange(at - first, at - RECENT))
        for at in range(first, len(titles))
    ]
    return Reader(prompts, examples)


# --- three ways ------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def each(lm: SplitLM, reader: Reader, example: Example) -> list[float]:
    """(1 + M,) log-probabilities: without memory, then with each element."""
    scores = _scores(lm, example, torch.zeros(1, 0, lm.hidden_size))
    for position in example.memory_positions:
        window = torch.tensor([reader.prompts[position]])
        state = lm.bottom(window, torch.ones_like(window))[:, -1:]
        scores += _scores(lm, example, state.half())  # stored states are float16
    return scores


@torch.inference_mode()
def batched(lm: SplitLM, reader: Reader, example: Example) -> list[float]:
    states = torch.from_numpy(encode_prompts(lm, [reader.prompts[position] for position in example.memory_positions]))
    return _scores(lm, example, torch.zeros(1, 0, lm.hidden_size)) + _scores(lm, example, states[:, None])


def _scores(lm: SplitLM, example: Example, memory: Tensor) -> list[float]:
    """One whole pass for each row of `memory` (B, S, D), S = 0 or 1."""
    batch = encode_answers(lm, [example.prompt] * len(memory), [example.answer] * len(memory))
    mask = torch.ones(memory.shape[:2], dtype=torch.long)
    scores: list[float] = answer_log_probs(lm, batch, memory, mask, "insert").tolist()
    return scores


def shared(lm: SplitLM, reader: Reader) -> list[list[float]]:
    """All targets of the user, as training annotates them; the windows are encoded first."""
    return score_targets(lm, reader, encode_prompts(lm, reader.prompts[: reader.num_windows]))


def score_targets(lm: SplitLM, reader: Reader, states: NDArray[np.float16]) -> list[list[float]]:
    kept = States(lm.hidden_size, {0: 0}, {0: states})
    found = annotate(lm, reader.examples, kept, placement="insert", batch_size=BATCH)
    return [annotation.log_probs.tolist() for annotation in found]


# --- the floor -------------------------------------------------------------------------------------------------------


def num_operations(size: Size, reader: Reader) -> float:
    """Multiplications and additions of the linear layers in the shared way, for all targets."""
    layer = 2 * 10 * size.hidden_size**2  # four products of attention, three of an MLP of twice the width
    targets = reader.examples
    windows = sum(map(len, reader.prompts[: reader.num_windows]))
    bottom = windows + sum(len(target.prompt) + len(target.answer) for target in targets)
    branches = sum(1 + len(target.memory_positions) for target in targets)
    top = sum(len(target.prompt) - 1 for target in targets) + branches * (1 + size.title_tokens)
    head = 2 * branches * size.title_tokens * size.vocab_size * size.hidden_size
    return layer * (size.split_layer * bottom + (size.num_layers - size.split_layer) * top) + head


# --- measuring -------------------------------------------------------------------------------------------------------


def measure(size: Size, *, num_targets: int, num_elements: int, num_laps: int) -> dict[str, float]:
    """Medians of milliseconds per target. The ways take turns, so that other load on the machine hits all of them."""
    lm, reader = make_lm(size), make_reader(size, num_targets, num_elements)
    states = encode_prompts(lm, reader.prompts[: reader.num_windows])
    expected = score_targets(lm, reader, states)  # also warms up
    laps: dict[str, list[float]] = {"each": [], "batched": [], "shared": [], "states_kept": []}
    for number in range(num_laps):
        example, row = reader.examples[number % num_targets], [expected[number % num_targets]]
        ways: dict[str, tuple[Callable[[], Any], Any, int]] = {
            "each": (partial(_alone, each, lm, reader, example), row, 1),
            "batched": (partial(_alone, batched, lm, reader, example), row, 1),
            "shared": (partial(shared, lm, reader), expected, num_targets),
            "states_kept": (partial(score_targets, lm, reader, states), expected, num_targets),
        }
        for name, (function, scores, count) in ways.items():
            seconds, found = timed(function)
            laps[name].append(1000 * seconds / count)
            must_agree(name, found, scores)
    rate = matrix_rate()
    medians = {f"{name}_ms": statistics.median(values) for name, values in laps.items()}
    return {
        **medians,
        "times_faster": medians["each_ms"] / medians["shared_ms"],
        "times_faster_states_kept": medians["each_ms"] / medians["states_kept_ms"],
        "times_faster_than_batched": medians["batched_ms"] / medians["shared_ms"],
        "floor_ms": 1000 * num_operations(size, reader) / rate / num_targets,
        "times_floor": medians["shared_ms"] / (1000 * num_operations(size, reader) / rate / num_targets),
        "matrix_gflops": rate / 1e9,
    }


def _alone(way: Callable[..., list[float]], lm: SplitLM, reader: Reader, example: Example) -> list[list[float]]:
    return [way(lm, reader, example)]


def must_agree(name: str, found: Sequence[Sequence[float]], expected: Sequence[Sequence[float]]) -> None:
    worst = float(np.abs(np.subtract(found, expected)).max())
    if worst > TOLERANCE:
        raise SystemExit(f"{name} differs from the shared way by {worst:.2g} nats")


_COLUMNS = {
    "each": "each_ms",
    "batched": "batched_ms",
    "shared": "shared_ms",
    "states kept": "states_kept_ms",
    "floor": "floor_ms",
    "each/shared": "times_faster",
    "each/kept": "times_faster_states_kept",
}


def report(results: dict[str, dict[str, float]]) -> str:
    rows = [(name, *(result[column] for column in _COLUMNS.values())) for name, result in results.items()]
    return table([("per target, ms", *_COLUMNS), *rows])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", type=int, default=16)
    parser.add_argument("--elements", type=int, default=90)
    parser.add_argument("--laps", type=int, default=3)
    arguments = parser.parse_args(argv)
    counts = {"num_targets": arguments.targets, "num_elements": arguments.elements}
    results = {size.name: measure(size, num_laps=arguments.laps, **counts) for size in SIZES}
    print(report(results))
    print(last_line("annotation", {**counts, **results}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
