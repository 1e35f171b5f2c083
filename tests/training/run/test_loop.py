"""The training loop: a resumed run equals an uninterrupted one, and the best weights are kept."""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.run.loop import Progress, Schedule, fit
from training.run.stage import StageError

SCHEDULE = Schedule(max_steps=20, learning_rate=0.05, warmup_steps=3, evaluate_every=4, patience=100)


class Problem:
    """A noisy regression with dropout; a batch depends on its number only."""

    def __init__(self, stop_before: int | None = None) -> None:
        torch.manual_seed(5)
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 1))
        self.stop_before = stop_before
        self.steps: list[int] = []

    def loss_at(self, step: int) -> Tensor:
        if step == self.stop_before:
            raise KeyboardInterrupt
        self.steps.append(step)
        inputs = torch.randn(16, 4, generator=torch.Generator().manual_seed(step))
        return F.mse_loss(self.net(inputs), inputs.sum(dim=1, keepdim=True))

    def validate(self) -> float:
        inputs = torch.randn(64, 4, generator=torch.Generator().manual_seed(10_000))
        self.net.eval()
        with torch.inference_mode():
            loss = F.mse_loss(self.net(inputs), inputs.sum(dim=1, keepdim=True))
        self.net.train()
        return float(loss)

    def fit(self, checkpoints: Path, schedule: Schedule = SCHEDULE) -> Progress:
        parameters = dict(self.net.named_parameters())
        return fit(parameters, self.loss_at, self.validate, schedule, checkpoints=checkpoints, label="test")

    def weights(self) -> Tensor:
        return torch.cat([parameter.detach().flatten() for parameter in self.net.parameters()])


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Progress, Tensor]:
    problem = Problem()
    return problem.fit(tmp_path_factory.mktemp("whole")), problem.weights()


@pytest.mark.parametrize("stop_before", [1, 8, 10, 19])
def test_a_resumed_run_equals_an_uninterrupted_one(
    stop_before: int, tmp_path: Path, uninterrupted: tuple[Progress, Tensor]
) -> None:
    with pytest.raises(KeyboardInterrupt):
        Problem(stop_before).fit(tmp_path)
    resumed = Problem()
    torch.manual_seed(77)  # as in another process
    state = resumed.fit(tmp_path)
    assert resumed.steps[0] == stop_before // 4 * 4, "it should resume at the last validation"
    assert (state, resumed.weights().tolist()) == (uninterrupted[0], uninterrupted[1].tolist())


class Halves(Problem):
    """The same regression in batches of 8, two of which are one batch of 16. Without dropout, whose masks differ."""

    def __init__(self, stop_before: int | None = None, num_parts: int = 2) -> None:
        super().__init__(stop_before)
        self.net[2] = nn.Identity()
        self.num_parts = num_parts

    def loss_at(self, batch: int) -> Tensor:
        if batch == self.stop_before:
            raise KeyboardInterrupt
        self.steps.append(batch)
        step, part = divmod(batch, self.num_parts)
        inputs = torch.randn(16, 4, generator=torch.Generator().manual_seed(step)).chunk(self.num_parts)[part]
        return F.mse_loss(self.net(inputs), inputs.sum(dim=1, keepdim=True))


def test_two_half_batches_equal_one_batch(tmp_path: Path) -> None:
    whole, halves = Halves(num_parts=1), Halves()
    expected = whole.fit(tmp_path / "whole")
    state = halves.fit(tmp_path / "halves", replace(SCHEDULE, accumulate=2))
    assert halves.steps == list(range(2 * SCHEDULE.max_steps)), "a step takes the next two batches"
    assert state.best_loss == pytest.approx(expected.best_loss, abs=1e-5)
    assert torch.allclose(halves.weights(), whole.weights(), atol=1e-5)


@pytest.mark.parametrize("stop_before", [17, 24])
def test_a_run_interrupted_within_a_step_resumes_at_a_step(stop_before: int, tmp_path: Path) -> None:
    schedule = replace(SCHEDULE, accumulate=2)
    whole, resumed = Halves(), Halves()
    whole.fit(tmp_path / "whole", schedule)
    with pytest.raises(KeyboardInterrupt):
        Halves(stop_before).fit(tmp_path / "cut", schedule)
    resumed.fit(tmp_path / "cut", schedule)
    assert resumed.steps[0] == stop_before // 8 * 8, "there are four steps of two batches between validations"
    assert torch.equal(resumed.weights(), whole.weights())


def test_a_finished_run_repeats_no_step(tmp_path: Path) -> None:
    first, again = Problem(), Problem()
    first.fit(tmp_path)
    again.fit(tmp_path)
    assert again.steps == []
    assert torch.equal(first.weights(), again.weights())


def debris_of_a_later_evaluation(directory: Path) -> None:
    """The files after a kill between writing the weights and `progress.json`."""
    (directory / "last-12.safetensors").write_bytes(b"whole, but not yet announced")


def debris_of_a_write(directory: Path) -> None:
    for name in (".last-12.safetensors.draft", ".best.safetensors.draft", ".progress.json.draft"):
        (directory / name).write_bytes(b"half")


def debris_of_a_clean_up(directory: Path) -> None:
    """The files after a kill before older weights were removed."""
    (directory / "last-4.safetensors").write_bytes(b"old")


@pytest.mark.parametrize("leave", [debris_of_a_later_evaluation, debris_of_a_write, debris_of_a_clean_up])
def test_a_kill_between_writes_changes_nothing(
    leave: Callable[[Path], None], tmp_path: Path, uninterrupted: tuple[Progress, Tensor]
) -> None:
    with pytest.raises(KeyboardInterrupt):
        Problem(stop_before=10).fit(tmp_path)
    leave(tmp_path)
    resumed = Problem()
    resumed.fit(tmp_path)
    assert torch.equal(resumed.weights(), uninterrupted[1]), f"{leave.__name__} changed the result"
    left = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert left == ["best.safetensors", "last-20.safetensors"], "old checkpoints must be removed"


def scripted(losses: list[float], tmp_path: Path, patience: int) -> tuple[Progress, float]:
    """Trains one parameter that grows in every step, with the given validation losses. Returns its final value."""
    weight = nn.Parameter(torch.zeros(1))
    remaining: Iterator[float] = iter(losses)
    schedule = Schedule(
        max_steps=100, learning_rate=0.1, warmup_steps=0, weight_decay=0, evaluate_every=1, patience=patience
    )
    state = fit(
        {"weight": weight},
        lambda step: -weight.sum(),
        lambda: next(remaining),
        schedule,
        checkpoints=tmp_path,
        label="",
    )
    return state, weight.item()


def test_it_stops_after_patience_and_restores_the_best_weights(tmp_path: Path) -> None:
    state, weight = scripted([3, 2, 2.5, 2, 9, 1], tmp_path, patience=3)
    assert (state.step, state.best_step, state.best_loss) == (5, 2, 2), (
        "it should stop after three validations without a better one"
    )
    assert 0.19 < weight < 0.21, f"{weight}: the best weights are those after two steps of 0.1"


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_divergence_is_an_error(loss: float, tmp_path: Path) -> None:
    with pytest.raises(StageError, match="diverged"):
        scripted([1, loss], tmp_path, patience=5)


def test_the_learning_rate_warms_up_then_falls_to_a_tenth() -> None:
    rates = [SCHEDULE.rate(step) for step in range(SCHEDULE.max_steps + 1)]
    assert rates[:3] == pytest.approx([0.05 / 3, 0.1 / 3, 0.05])
    assert all(later <= earlier for earlier, later in pairwise(rates[3:]))
    assert rates[-1] == pytest.approx(0.005)


@pytest.mark.parametrize("stop_before", [None, 6, 14])
def test_validations_before_choose_after_do_not_count(stop_before: int | None, tmp_path: Path) -> None:
    """The validation loss only rises, so the first validation that counts is the best, also in a resumed run."""

    def run(problem: Problem) -> Progress:
        return fit(
            dict(problem.net.named_parameters()),
            problem.loss_at,
            lambda: float(problem.steps[-1]),
            replace(SCHEDULE, patience=1),
            checkpoints=tmp_path,
            label="test",
            choose_after=8,
        )

    if stop_before is not None:
        with pytest.raises(KeyboardInterrupt):
            run(Problem(stop_before))
    state = run(Problem())
    assert (state.best_step, state.step) == (12, 16), "validations at steps 4 and 8 do not count"


def test_the_last_step_counts_if_no_other_does(tmp_path: Path) -> None:
    problem = Problem()
    parameters = dict(problem.net.named_parameters())
    options: dict[str, Any] = {"checkpoints": tmp_path, "label": "test", "choose_after": 1000}
    assert fit(parameters, problem.loss_at, problem.validate, SCHEDULE, **options).best_step == SCHEDULE.max_steps
