"""Log-probabilities of true titles, given prompts and memories: the quantity behind the labels of eq. 5.

In: a split model, prompts, answers, memories. Out: log-probabilities of whole answers. The bottom half never sees
memory, so it reads each prompt with its answer once. Knows no data set and no loss.
"""

import copy
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import DynamicCache

from model_store.lm.padding import pad
from model_store.lm.split_lm import SplitLM
from model_store.memory.combine import TopInput, combine, split_prompt


class EncodedBatch(NamedTuple):
    """Prompts and answers after the bottom half."""

    states: Tensor  # (B, T, D) of the prompts, padded on the left
    mask: Tensor  # (B, T)
    answer_states: Tensor  # (B, Y, D), padded on the right
    answers: Tensor  # (B, Y) int64
    answer_mask: Tensor  # (B, Y)
    excluded: Tensor  # (B, E) int64, tokens that cannot follow the prompt, padded with −1


def encode_answers(
    lm: SplitLM,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    excluded: Sequence[Sequence[int]] | None = None,
) -> EncodedBatch:
    """`excluded` are tokens of each row that the answer cannot be: they are left out of the softmax."""
    prompt = pad(prompts, device=lm.device)
    answer = pad(answers, side="right", device=lm.device)
    blocked = pad(excluded or [()] * len(answers), side="right", value=-1, device=lm.device).values
    states = lm.bottom(torch.cat([prompt.values, answer.values], dim=1), torch.cat([prompt.mask, answer.mask], dim=1))
    width = prompt.values.shape[1]
    return EncodedBatch(states[:, :width], prompt.mask, states[:, width:], answer.values, answer.mask, blocked)


def answer_log_probs(lm: SplitLM, batch: EncodedBatch, memory: Tensor, memory_mask: Tensor, placement: str) -> Tensor:
    """(B,) log-probability of each whole answer. `memory` (B, S, D), `memory_mask` (B, S)."""
    combined = combine(batch.states, batch.mask, memory, memory_mask, placement)
    return _log_probs(lm, combined, batch, cache=None, cached_mask=None)


@torch.inference_mode()
def item_forecast(
    lm: SplitLM,
    batch: EncodedBatch,
    memory: Tensor,
    memory_mask: Tensor,
    placement: str,
    *,
    reweigh: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """For answers of one token: (B,) log-probabilities, and (B,) ranks among the tokens that can follow, from 0.

    `reweigh`, if given, maps log-probabilities (B, V) to the scores that rank.
    """
    combined = combine(batch.states, batch.mask, memory, memory_mask, placement)
    logits = lm.top(combined.states, combined.mask, num_logits=1).float()
    reweighed = None if reweigh is None else reweigh(logits[:, 0].log_softmax(dim=1))  # as in serving: of all tokens
    log_probs = _possible(logits, batch)[:, 0].log_softmax(dim=1)
    ranked = log_probs if reweighed is None else _possible(reweighed[:, None], batch)[:, 0]
    own = batch.answers[:, :1]
    return log_probs.gather(1, own)[:, 0], (ranked > ranked.gather(1, own)).sum(dim=1)


@torch.inference_mode()
def log_probs_by_element(
    lm: SplitLM, batch: EncodedBatch, memories: Sequence[Tensor], placement: str, *, max_rows: int = 128
) -> list[Tensor]:
    """(1 + M,) log-probabilities for each row of the batch: without memory, then with each of its memories alone.

    `memories` are (M, D) each. The top half reads the part of the prompt before the memory once, and shares its keys
    and values. For each memory it then reads the memory, the rest of the prompt and the answer.
    """
    before, after = split_prompt(batch.states, batch.mask, placement)
    _, cache = lm.new_caches()
    if before.states.shape[1]:
        lm.top(before.states, before.mask, cache, num_logits=1)
    pairs = [(row, element) for row, memory in enumerate(memories) for element in range(-1, len(memory))]
    found = []
    for start in range(0, len(pairs), max_rows):
        part = pairs[start : start + max_rows]
        rows = torch.tensor([row for row, _ in part], device=lm.device)
        part_batch = EncodedBatch(*(tensor[rows] for tensor in batch))
        combined = _insert_single_memories(TopInput(after.states[rows], after.mask[rows]), memories, part)
        found.append(_log_probs(lm, combined, part_batch, cache=_rows_of(cache, rows), cached_mask=before.mask[rows]))
    return list(torch.cat(found).split([1 + len(memory) for memory in memories]))


def _insert_single_memories(after: TopInput, memories: Sequence[Tensor], pairs: Sequence[tuple[int, int]]) -> TopInput:
    """`after` (R, …) with one memory before it. R pairs of (row, element); element −1 stands for no memory."""
    blank = after.states.new_zeros(after.states.shape[-1])
    memory = torch.stack([memories[row][element] if element >= 0 else blank for row, element in pairs])[:, None]
    mask = after.mask.new_tensor([[int(element >= 0)] for _, element in pairs])
    states = torch.cat([memory.to(after.states.dtype), after.states], dim=1)
    return TopInput(states, torch.cat([mask, after.mask], dim=1))


def _log_probs(
    lm: SplitLM, combined: TopInput, batch: EncodedBatch, *, cache: DynamicCache | None, cached_mask: Tensor | None
) -> Tensor:
    """(B,) log-probability of the answer. The top half reads `combined`, then the answer without its last token."""
    num_tokens = batch.answers.shape[1]
    states = torch.cat([combined.states, batch.answer_states[:, :-1]], dim=1)
    masks = [combined.mask, batch.answer_mask[:, :-1]]
    mask = torch.cat([cached_mask, *masks] if cached_mask is not None else masks, dim=1)
    log_probs = _possible(lm.top(states, mask, cache, num_logits=num_tokens).float(), batch).log_softmax(dim=-1)
    return (log_probs.gather(2, batch.answers[..., None])[..., 0] * batch.answer_mask).sum(dim=1)


def _possible(logits: Tensor, batch: EncodedBatch) -> Tensor:
    """Sets `logits` (B, Y, V) of excluded tokens to −∞, in place, because a copy costs as much time as the head."""
    rows, places = torch.nonzero(batch.excluded >= 0, as_tuple=True)
    logits[rows, :, batch.excluded[rows, places]] = -torch.inf
    return logits


def _rows_of(cache: DynamicCache, rows: Tensor) -> DynamicCache:
    """A copy with the given rows, which may repeat; an empty cache stays empty."""
    selected = copy.copy(cache)
    selected.layers = [copy.copy(layer) for layer in cache.layers]
    if cache.get_seq_length():
        selected.batch_select_indices(rows)
    return selected
