"""Two processes under torchrun give the weights of one process with the same batches; only the first one writes.

Each of the processes runs this file as a program.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from model_store.lm.split_lm import SplitLM
from tests.conftest import make_model
from training.run.distributed import is_main, leave_process_group, rank, wait_for_main, world_size
from training.run.loop import Progress, Schedule, fit
from training.run.program import run_program

ROOT = Path(__file__).resolve().parents[3]
SCHEDULE = Schedule(max_steps=6, learning_rate=0.01, warmup_steps=2, evaluate_every=2, accumulate=3)
NUM_PROCESSES, NUM_BATCHES = 2, 4  # accumulate = 3, rounded up to a multiple of two processes


class Stopped(Exception):
    """Raised instead of a kill."""


class Run:
    """A small language model, called through its two halves, that learns to predict random tokens."""

    def __init__(self, stop_before: int | None = None) -> None:
        # Each process starts with other weights; those of main are used.
        self.lm = SplitLM(make_model("llama", seed=rank()), 2)
        self.stop_before = stop_before
        self.batches: list[int] = []

    def loss_at(self, batch: int) -> Tensor:
        if batch == self.stop_before:
            raise Stopped
        self.batches.append(batch)
        return self.loss(torch.randint(400, (2, 6), generator=torch.Generator().manual_seed(batch)))

    def loss(self, tokens: Tensor) -> Tensor:
        mask = torch.ones_like(tokens)
        logits = self.lm.head(self.lm.top_hidden(self.lm.bottom(tokens, mask), mask))
        return F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())

    def validate(self) -> float:
        assert is_main(), "only main may validate"
        with torch.inference_mode():
            return float(self.loss(torch.arange(40).view(4, 10)))

    def fit(self, checkpoints: Path, schedule: Schedule = SCHEDULE) -> Progress:
        parameters = dict(self.lm.model.named_parameters())
        return fit(parameters, self.loss_at, self.validate, schedule, checkpoints=checkpoints, label="test")

    def weights(self) -> dict[str, Tensor]:
        return {name: parameter.detach() for name, parameter in self.lm.model.named_parameters()}


def interrupted_and_resumed(checkpoints: Path) -> Run:
    try:
        Run(stop_before=3 * NUM_BATCHES + rank()).fit(checkpoints)
    except Stopped:
        wait_for_main()
    run = Run()
    run.fit(checkpoints)
    return run


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the final weights and a report of each process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)

    def stage(arguments: argparse.Namespace) -> dict[str, Any]:
        torch.use_deterministic_algorithms(True)
        own = arguments.out / f"process-{rank()}"
        run = Run()
        state = run.fit(own / "checkpoints")
        resumed = interrupted_and_resumed(arguments.out / "common")
        facts = {"batches": run.batches, "best_loss": state.best_loss, "world_size": world_size()}
        facts |= {"resumed_batches": resumed.batches, "was_main": leave_process_group(), "left_size": world_size()}
        save_file(run.weights(), own / "weights.safetensors")
        save_file(resumed.weights(), own / "resumed.safetensors")
        (own / "report.json").write_text(json.dumps(facts))
        return facts

    return run_program(stage, parser.parse_args(argv), is_shared=True)


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("together")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={NUM_PROCESSES}"]
    done = subprocess.run(
        [*launch, "-m", "tests.training.run.test_distributed", str(out)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (out / "stdout").write_text(done.stdout)
    return out


def report(together: Path, process: int) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((together / f"process-{process}" / "report.json").read_text())
    return facts


def test_two_processes_give_the_weights_of_one_process(together: Path, tmp_path: Path) -> None:
    alone = Run()
    state = alone.fit(tmp_path, replace(SCHEDULE, accumulate=NUM_BATCHES))
    assert alone.batches == list(range(SCHEDULE.max_steps * NUM_BATCHES))
    assert report(together, 0)["best_loss"] == pytest.approx(state.best_loss, abs=1e-5)
    for name, found in load_file(together / "process-0" / "weights.safetensors").items():
        assert torch.allclose(found, alone.weights()[name], atol=1e-5), f"{name} depends on the number of processes"


def test_each_batch_is_computed_once(together: Path) -> None:
    first, second = (report(together, process)["batches"] for process in range(NUM_PROCESSES))
    assert sorted(first + second) == list(range(SCHEDULE.max_steps * NUM_BATCHES))
    assert len(first) == len(second), "both processes computed the same batch"


@pytest.mark.parametrize("file", ["weights.safetensors", "resumed.safetensors"])
def test_all_processes_hold_the_same_weights(file: str, together: Path) -> None:
    first, second = (load_file(together / f"process-{process}" / file) for process in range(NUM_PROCESSES))
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), f"{name} differs"


def test_a_resumed_run_equals_an_uninterrupted_one(together: Path) -> None:
    assert report(together, 1)["resumed_batches"][0] == 2 * NUM_BATCHES + 1, "it should resume at the last validation"
    whole, resumed = (load_file(together / "process-0" / f"{name}.safetensors") for name in ("weights", "resumed"))
    for name, tensor in whole.items():
        assert torch.equal(tensor, resumed[name]), f"{name} differs"


def test_only_the_first_process_writes_and_prints(together: Path) -> None:
    assert list((together / "process-1" / "checkpoints").iterdir()) == [], "two processes write the same files"
    assert (together / "process-0" / "checkpoints" / "best.safetensors").is_file()
    (line,) = (together / "stdout").read_text().splitlines()
    assert json.loads(line)["was_main"] is True


def test_after_leaving_the_group_a_process_is_alone(together: Path) -> None:
    reports = [report(together, process) for process in range(NUM_PROCESSES)]
    assert [facts["world_size"] for facts in reports] == [NUM_PROCESSES, NUM_PROCESSES]
    assert [(facts["was_main"], facts["left_size"]) for facts in reports] == [(True, 1), (False, 1)]


if __name__ == "__main__":
    sys.exit(main())
