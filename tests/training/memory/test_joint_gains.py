"""Several memories together gain what the likelihood of the whole answer says, not the sum of their single gains."""

from pathlib import Path

import pytest
import torch

from tests.training.small import diary, small_lm, small_windows
from training.data.splits import Target
from training.lm.likelihood import answer_log_probs, encode_answers
from training.lm.states import spans_of, window_states
from training.memory.annotations import annotate
from training.memory.selection import joint_gains

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
            batch = encode_answers(lm, [example.prompt], [example.answer])
            mask = torch.ones(1, len(shown), dtype=torch.long)
            expected = float(answer_log_probs(lm, batch, memory, mask, placement)) - float(annotation.log_probs[0])
        assert gain == pytest.approx(expected, abs=2e-3), f"{len(shown)} memories of user {example.user}"
