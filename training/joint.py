"""What several memories add together: the gain of eq. 5 for a set, which the sum of single gains overstates."""

from collections.abc import Sequence

import torch

from model_store.split_lm import SplitLM, pad_left
from training.annotate import Annotation
from training.likelihood import answer_log_probs
from training.states import States
from training.windows import Example, read_examples


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
    padded = pad_left([shown[row] for row in several], lm.device)
    memory = torch.zeros(*padded.tokens.shape, lm.hidden_size, dtype=lm.dtype, device=lm.device)
    for place, row in enumerate(several):
        memory[place, -len(shown[row]) :] = torch.from_numpy(annotations[row].memory(states)[list(shown[row])])
    log_probs = answer_log_probs(lm, understood, memory, padded.mask, placement).cpu()
    for row, log_prob in zip(several, log_probs.tolist(), strict=True):
        found[row] = log_prob - float(annotations[row].log_probs[0])
    return found
