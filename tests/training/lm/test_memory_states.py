"""States of memories equal those of single windows, also where all windows of a history are read as one sequence."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from model_store.lm.split_lm import SplitLM
from tests.conftest import make_model
from tests.training.small import RECENT, diary, small_windows
from training.lm import memory_states as module
from training.lm.memory_states import Stretch, memory_states, read_alone

SPLIT = diary()
WANTED = [(0, [0, 1, 2, 3, 9, 10, 17]), (1, [4]), (3, [0]), (3, [2, 14])]  # users and positions


def wanted(recent_length: int = RECENT) -> list[tuple[Stretch, Sequence[int]]]:
    windows = small_windows(SPLIT, recent_length=recent_length)
    head = windows.prompt.head
    return [
        (Stretch(windows.title_tokens(SPLIT.histories[user].items), head, recent_length), places)
        for user, places in WANTED
    ]


def one_by_one(lm: SplitLM, recent_length: int = RECENT) -> Tensor:
    windows = small_windows(SPLIT, recent_length=recent_length)
    states = []
    for user, places in WANTED:
        for place in places:
            tokens = torch.tensor([windows.prompt_ending_at(user, place)])
            states.append(lm.bottom(tokens, torch.ones_like(tokens))[0, -1])
    return torch.stack(states)


@pytest.mark.parametrize("recent_length", [1, RECENT, 8])
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gemma", "gpt_neox"])
@pytest.mark.parametrize("split_layer", [1, 2])
@torch.inference_mode()
def test_states_are_those_of_full_windows(split_layer: int, architecture: str, recent_length: int) -> None:
    lm = SplitLM(make_model(architecture), split_layer)
    found = memory_states(lm, wanted(recent_length))
    torch.testing.assert_close(found, one_by_one(lm, recent_length), atol=1e-5, rtol=1e-4)


def test_a_layer_reads_all_windows_of_a_history_together(monkeypatch: pytest.MonkeyPatch) -> None:
    lm, num_tokens = SplitLM(make_model("llama"), 1), []

    def counted(tokens: Tensor, *rest: Any, **named: Any) -> Tensor:
        num_tokens.append(tokens.numel())
        return bottom(tokens, *rest, **named)

    bottom = lm.bottom
    monkeypatch.setattr(lm, "bottom", counted)
    stretch = wanted(8)[0][0]
    history = [(stretch, range(len(stretch.titles)))]
    memory_states(lm, history)
    together = sum(num_tokens)
    num_tokens.clear()
    read_alone(lm, history)
    assert 2 * together < sum(num_tokens), "reading together reads as many tokens as reading alone"


def test_both_ways_give_the_same_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    gradients = []
    for way in (memory_states, module.read_alone):
        lm = SplitLM(make_model("llama"), 1)
        lm.model.requires_grad_(True)
        states = way(lm, wanted())
        (states * torch.randn(states.shape, generator=torch.Generator().manual_seed(0))).sum().backward()
        gradients.append({name: each.grad for name, each in lm.model.named_parameters() if each.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() and gradients[0]
    for name, expected in gradients[1].items():
        torch.testing.assert_close(gradients[0][name], expected, atol=1e-4, rtol=1e-3, msg=name)
