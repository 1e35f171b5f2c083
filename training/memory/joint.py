"""What several memories add together: the gain of eq. 5 for a set, which the sum of single gains overstates."""

from collections.abc import Sequence

import torch
from torch import Tensor

from model_store.lm.split_lm import SplitLM
from training.annotate import Annotation
from training.lm.likelihood import answer_log_probs
from training.lm.states import States
from training.lm.windows import Example, read_examples


@torch.inference_mode()
def joint_gains(
    lm: SplitLM,
    examples: Sequence[Example],
    annotations: Sequence[Annotation],
    shown: Sequence[Sequence[int]],
    states: States,
    *,
    placement: str,
) -> list[float]:
    """Nats that the shown elements (places in each memory, oldest first) add to the true title of each example.

    A batch that fits into memory. What annotation knows already, none or one element, is not computed again.
    """
    found = [
        float(each.log_probs[1 + places[0]] - each.log_probs[0]) if places else 0.0
        for each, places in zip(annotations, shown, strict=True)
    ]
    several = [row for row, places in enumerate(shown) if len(places) > 1]
    if not several:
        return found
    understood = read_examples(lm, [examples[row] for row in several])
    memory = padded_memory(lm, [annotations[row] for row in several], [shown[row] for row in several], states)
    log_probs = answer_log_probs(lm, understood, *memory, placement).cpu()
    for row, log_prob in zip(several, log_probs.tolist(), strict=True):
        found[row] = log_prob - float(annotations[row].log_probs[0])
    return found


def padded_memory(
    lm: SplitLM, annotations: Sequence[Annotation], shown: Sequence[Sequence[int]], states: States
) -> tuple[Tensor, Tensor]:
    """The shown elements (B, S, D), padded on the left, and their mask (B, S)."""
    width = max(map(len, shown))
    memory = torch.zeros(len(shown), width, lm.hidden_size, dtype=lm.dtype, device=lm.device)
    mask = torch.zeros(len(shown), width, dtype=torch.long, device=lm.device)
    for row, (annotation, places) in enumerate(zip(annotations, shown, strict=True)):
        if places:
            memory[row, -len(places) :] = torch.from_numpy(annotation.memory(states)[list(places)])
            mask[row, -len(places) :] = 1
    return memory, mask
