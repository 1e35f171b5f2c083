"""How likely is the true title, given the prompt and some memories? The quantity behind the labels of eq. 5.

In: a split model, prompts, answers, memories. Out: log-probabilities of whole answers. The bottom half reads prompt and
answer once, since it never sees memory. Knows no data set and no loss.
"""

import copy
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import DynamicCache

from model_store.lm.split_lm import SplitLM, pad_left
from model_store.memory.combine import TopInput, combine, split_prompt


class Read(NamedTuple):
    """What the bottom half made of prompts and answers."""

    states: Tensor  # (B, T, D) of the prompts, padded on the left
    mask: Tensor  # (B, T)
    answer_states: Tensor  # (B, Y, D), padded on the right
    answers: Tensor  # (B, Y) int64
    answer_mask: Tensor  # (B, Y)
    excluded: Tensor  # (B, E) int64, tokens that cannot follow, padded with −1


def read(
    lm: SplitLM,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    excluded: Sequence[Sequence[int]] | None = None,
) -> Read:
    """`excluded` are tokens of each row that the answer cannot be: its likelihood is one among the others."""
    prompt = pad_left(prompts, lm.device)
    width = max(map(len, answers))
    tokens = torch.zeros(len(answers), width, dtype=torch.long)
    mask = torch.zeros(len(answers), width, dtype=torch.long)
    for row, answer in enumerate(answers):
        tokens[row, : len(answer)] = torch.tensor(answer)
        mask[row, : len(answer)] = 1
    tokens, mask = tokens.to(lm.device), mask.to(lm.device)
    states = lm.bottom(torch.cat([prompt.tokens, tokens], dim=1), torch.cat([prompt.mask, mask], dim=1))
    width = prompt.tokens.shape[1]
    blocked = torch.full((len(answers), max(map(len, excluded or [[]]))), -1, dtype=torch.long)
    for row, barred in enumerate(excluded or []):
        blocked[row, : len(barred)] = torch.tensor(barred, dtype=torch.long)
    return Read(states[:, :width], prompt.mask, states[:, width:], tokens, mask, blocked.to(lm.device))


def answer_log_probs(lm: SplitLM, batch: Read, memory: Tensor, memory_mask: Tensor, placement: str) -> Tensor:
    """(B,) log-probability of each whole answer. `memory` (B, S, D), `memory_mask` (B, S)."""
    combined = combine(batch.states, batch.mask, memory, memory_mask, placement)
    return _score(lm, combined, batch, cache=None, cached_mask=None)


@torch.inference_mode()
def item_forecast(
    lm: SplitLM,
    batch: Read,
    memory: Tensor,
    memory_mask: Tensor,
    placement: str,
    *,
    reweigh: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Of answers of one token: (B,) log-probabilities, and (B,) how many tokens that can follow rank before.

    They rank by what `reweigh` makes of the log-probabilities (B, V), if anything.
    """
    combined = combine(batch.states, batch.mask, memory, memory_mask, placement)
    logits = _possible(lm.top(combined.states, combined.mask, num_logits=1).float(), batch)
    log_probs = logits[:, 0].log_softmax(dim=1)
    ranked = log_probs if reweigh is None else _possible(reweigh(log_probs)[:, None], batch)[:, 0]
    own = batch.answers[:, :1]
    return log_probs.gather(1, own)[:, 0], (ranked > ranked.gather(1, own)).sum(dim=1)


@torch.inference_mode()
def log_probs_by_element(
    lm: SplitLM, batch: Read, memories: Sequence[Tensor], placement: str, *, max_rows: int = 128
) -> list[Tensor]:
    """For each row of the batch (1 + M,) log-probabilities: without memory, then with each single element of its own.

    `memories` are (M, D) each. The part of the prompt before the memory is read once, its keys and values are shared;
    what remains per element is the memory, the rest of the prompt and the answer.
    """
    before, after = split_prompt(batch.states, batch.mask, placement)
    _, cache = lm.new_caches()
    if before.states.shape[1]:
        lm.top(before.states, before.mask, cache, num_logits=1)
    pairs = [(row, element) for row, memory in enumerate(memories) for element in range(-1, len(memory))]
    scores = []
    for start in range(0, len(pairs), max_rows):
        part = pairs[start : start + max_rows]
        rows = torch.tensor([row for row, _ in part], device=lm.device)
        twin = Read(*(tensor[rows] for tensor in batch))
        combined = _one_memory_each(TopInput(after.states[rows], after.mask[rows]), memories, part)
        scores.append(_score(lm, combined, twin, cache=_rows_of(cache, rows), cached_mask=before.mask[rows]))
    return list(torch.cat(scores).split([1 + len(memory) for memory in memories]))


def _one_memory_each(after: TopInput, memories: Sequence[Tensor], pairs: Sequence[tuple[int, int]]) -> TopInput:
    """R pairs of (row, element), element -1 is no memory; `after` (R, …) is what follows it."""
    blank = after.states.new_zeros(after.states.shape[-1])
    memory = torch.stack([memories[row][element] if element >= 0 else blank for row, element in pairs])[:, None]
    mask = after.mask.new_tensor([[int(element >= 0)] for _, element in pairs])
    states = torch.cat([memory.to(after.states.dtype), after.states], dim=1)
    return TopInput(states, torch.cat([mask, after.mask], dim=1))


def _score(
    lm: SplitLM, combined: TopInput, batch: Read, *, cache: DynamicCache | None, cached_mask: Tensor | None
) -> Tensor:
    """The answer's log-probability when the top half reads `combined`, then the answer but its last token."""
    num_tokens = batch.answers.shape[1]
    states = torch.cat([combined.states, batch.answer_states[:, :-1]], dim=1)
    masks = [combined.mask, batch.answer_mask[:, :-1]]
    mask = torch.cat([cached_mask, *masks] if cached_mask is not None else masks, dim=1)
    log_probs = _possible(lm.top(states, mask, cache, num_logits=num_tokens).float(), batch).log_softmax(dim=-1)
    return (log_probs.gather(2, batch.answers[..., None])[..., 0] * batch.answer_mask).sum(dim=1)


def _possible(logits: Tensor, batch: Read) -> Tensor:
    """`logits` (B, Y, V) without what is excluded: in place, since another pass over them costs as much as the head."""
    rows, places = torch.nonzero(batch.excluded >= 0, as_tuple=True)
    logits[rows, :, batch.excluded[rows, places]] = -torch.inf
    return logits


def _rows_of(cache: DynamicCache, rows: Tensor) -> DynamicCache:
    """A copy with some rows, repeated or not; an empty cache stays empty."""
    twin = copy.copy(cache)
    twin.layers = [copy.copy(layer) for layer in cache.layers]
    if cache.get_seq_length():
        twin.batch_select_indices(rows)
    return twin
