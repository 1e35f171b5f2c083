"""Several memories together gain what the likelihood of the whole answer says, not the sum of their single gains."""

import math
from pathlib import Path

import pytest
import torch

from tests.training.small import diary, small_lm, small_windows
from training.annotate import annotate
from training.data.splits import Target
from training.joint import joint_gains, joint_ndcg
from training.likelihood import answer_log_probs, answer_ranks, read
from training.states import spans_of, window_states

TARGETS = [Target(0, 25), Target(3, 20), Target(1, 9), Target(0, 3)]
SHOWN = [[0, 4, 7], [2], [1, 3], []]


@pytest.mark.parametrize("placement", ["insert", "prepend"])
def test_joint_gains_are_likelihoods_with_all_shown_minus_without(placement: str, tmp_path: Path) -> None:
    lm, windows = small_lm(), small_windows(diary())
    states = window_states(lm, windows, spans_of(windows, TARGETS), tmp_path)
    examples = [windows.example(target) for target in TARGETS]
    annotations = list(annotate(lm, examples, states, placement=placement, batch_size=4))
    found = joint_gains(lm, examples, annotations, SHOWN, states, placement=placement)
    for example, annotation, shown, gain in zip(examples, annotations, SHOWN, found, strict=True):
        memory = torch.from_numpy(annotation.memory(states))[shown][None]
        with torch.inference_mode():
            batch = read(lm, [example.prompt], [example.answer])
            mask = torch.ones(1, len(shown), dtype=torch.long)
            expected = float(answer_log_probs(lm, batch, memory, mask, placement)) - float(annotation.log_probs[0])
        assert gain == pytest.approx(expected, abs=2e-3), f"{len(shown)} memories of user {example.user}"


def test_the_ranking_is_that_of_the_logits_without_what_cannot_follow(tmp_path: Path) -> None:
    lm, windows = small_lm(), small_windows(diary())
    states = window_states(lm, windows, spans_of(windows, TARGETS), tmp_path)
    examples = [windows.example(target) for target in TARGETS]
    annotations = list(annotate(lm, examples, states, placement="insert", batch_size=4))
    found = joint_ndcg(lm, examples, annotations, SHOWN, states, placement="insert")
    for example, annotation, shown, ndcg in zip(examples, annotations, SHOWN, found, strict=True):
        memory = torch.from_numpy(annotation.memory(states))[shown][None]
        sequence = read(lm, [example.prompt], [example.answer])
        with torch.inference_mode():
            states_read = torch.cat([sequence.states[:, :-1], memory.float(), sequence.states[:, -1:]], dim=1)
            logits = lm.top(states_read, torch.ones(states_read.shape[:2], dtype=torch.long), num_logits=1)[0, 0]
        rank = int((logits > logits[example.answer[0]]).sum())
        assert ndcg == pytest.approx(1 / math.log2(rank + 2) if rank < 10 else 0), f"rank {rank}"
        likelier = torch.nonzero(logits > logits[example.answer[0]])[:, 0].tolist()
        barred = read(lm, [example.prompt], [example.answer], [likelier])
        nothing = torch.ones(1, len(shown), dtype=torch.long)
        assert int(answer_ranks(lm, barred, memory.float(), nothing, "insert")) == 0, "an excluded token still counts"
