"""Summaries of a history, block by block (TRSR, arXiv 2403.13325).

    summary_n = select(summary_{n-1} followed by block_n)

In TRSR a large language model writes the summary as text. The models made here know titles but no English, so a summary
is a list of S titles of the history, and `Summariser.select` chooses them. The language model reads the last summary
and the next block in one pass. A *chooser*, the network of the retriever, takes the state after the last token and the
embedding of each title, and scores the titles. It is trained like an extractive summariser: the value of a title is the
log-probability, by the same language model after reading this title, of what the user read in the *next* block. Unlike
the memory of AutoMR, a summary does not depend on the window that it is used with. A real checkpoint gets summaries of
titles, too.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model_store.bundle import Bundle
from model_store.lm.padding import pad
from model_store.memory.retriever import Retriever, choose
from training.data.splits import Split
from training.lm.likelihood import answer_log_probs, encode_answers
from training.memory.learning import kl_divergence
from training.rows.evaluation import long_prompt
from training.run.loop import Schedule, fit
from training.run.stage import progress

NUM_EXAMPLES = 400  # that the chooser is trained on; a fifth of them validates it
WIDTH = 64
SCHEDULE = Schedule(max_steps=400, learning_rate=1e-3, evaluate_every=50, patience=3)
_LISTS_PER_BATCH = 64

Summary = tuple[int, ...]  # items, oldest first
Select = Callable[[Sequence[Sequence[int]]], list[Summary]]  # lists of items → the items of each that are kept


# --- the recurrence ---------------------------------------------------------------------------------------------------


class HistoryStart(NamedTuple):
    """The events of `user` before position `stop`."""

    user: int
    stop: int


def summarise_histories(
    select: Select, split: Split, starts: Sequence[HistoryStart], block: int
) -> dict[HistoryStart, Summary]:
    """A summary of each start of a history, in blocks of `block` events; the last block may be shorter.

    Each whole block of a user is read once, however many starts contain it, as a service would do it.
    """
    num_whole: dict[int, int] = {}  # user → whole blocks
    for user, stop in starts:
        num_whole[user] = max(num_whole.get(user, 0), stop // block)
    after: dict[tuple[int, int], Summary] = {(user, 0): () for user in num_whole}  # (user, blocks read) → summary

    def next_list(user: int, number: int, stop: int) -> list[int]:
        return [*after[user, number], *split.histories[user].items[number * block : stop].tolist()]

    for number in progress(range(max(num_whole.values(), default=0)), desc="summaries", unit="block"):
        users = [user for user, count in num_whole.items() if count > number]
        summaries = select([next_list(user, number, (number + 1) * block) for user in users])
        after |= {(user, number + 1): summary for user, summary in zip(users, summaries, strict=True)}
    last = select([next_list(user, stop // block, stop) for user, stop in starts])
    return dict(zip(starts, last, strict=True))


# --- one step of it ---------------------------------------------------------------------------------------------------


class SummarySizes(NamedTuple):
    block: int  # events that are read at a time
    summary: int  # S

    @property
    def num_candidates(self) -> int:
        """The largest number of titles to choose from."""
        return self.block + self.summary


class ChooserExample(NamedTuple):
    """Items to choose from, and the items that the user read after them."""

    candidates: list[int]
    following: list[int]


class ChooserInput(NamedTuple):
    """What the chooser reads of B lists, padded on the right to C = `SummarySizes.num_candidates` titles.

    All states are of the last layer.
    """

    end: Tensor  # (B, D) state after the whole list
    titles: Tensor  # (B, C, D) embedding of each title
    mask: Tensor  # (B, C)


class Summariser:
    """The bundle's language model, unchanged, and a chooser. `vectors` (N, D) are the embeddings of `titles`."""

    def __init__(
        self, bundle: Bundle, titles: Sequence[str], vectors: NDArray[np.float32], sizes: SummarySizes
    ) -> None:
        self.lm, self.prompt, self.sizes = bundle.lm, bundle.prompt, sizes
        self.titles, self.vectors = titles, vectors
        self.chooser = Retriever(self.lm.hidden_size, width=WIDTH, has_null=False).to(self.lm.device)

    def select(self, lists: Sequence[Sequence[int]]) -> list[Summary]:
        """The S items of each list that are kept, in its order; of a repeated item the last occurrence counts."""
        candidates = [_without_repeats(items) for items in lists]
        kept: list[Summary] = [tuple(items) for items in candidates]
        long = [row for row, items in enumerate(candidates) if len(items) > self.sizes.summary]
        for start in range(0, len(long), _LISTS_PER_BATCH):
            rows = long[start : start + _LISTS_PER_BATCH]
            for row, places in zip(rows, self._choose([candidates[row] for row in rows]), strict=True):
                kept[row] = tuple(candidates[row][place] for place in places)
        return kept

    @torch.inference_mode()
    def _choose(self, lists: Sequence[Sequence[int]]) -> list[list[int]]:
        """S places in each list, rising. Each list must have more than S items."""
        places: list[list[int]] = choose(self.chooser(*self.encode(lists)), self.sizes.summary).indices.tolist()
        return places

    @torch.inference_mode()
    def encode(self, lists: Sequence[Sequence[int]]) -> ChooserInput:
        """One pass of the language model. Each list needs 1 to C items."""
        prompts = [long_prompt(self.prompt, self._titles(items)) for items in lists]
        tokens, mask = pad(prompts, device=self.lm.device)
        end = self.lm.top_hidden(self.lm.bottom(tokens, mask), mask)[:, -1].float()
        titles = np.zeros((len(lists), self.sizes.num_candidates, self.lm.hidden_size), dtype=np.float32)
        present = np.zeros((len(lists), self.sizes.num_candidates), dtype=np.int64)
        for row, items in enumerate(lists):
            titles[row, : len(items)] = self.vectors[list(items)]
            present[row, : len(items)] = 1
        return ChooserInput(end, torch.from_numpy(titles).to(end.device), torch.from_numpy(present).to(end.device))

    def train(self, split: Split, *, seed: int, checkpoints: Path) -> float | None:
        """Trains the chooser. Returns the best validation loss, None where no history is long enough to learn from."""
        examples = chooser_examples(split, self.sizes, seed)
        if len(examples) < 2:
            return None
        inputs, weights = self._labelled(examples)
        num_valid = max(1, len(examples) // 5)

        def loss_of(rows: Tensor) -> Tensor:
            log_scores = self.chooser(*(tensor[rows] for tensor in inputs))
            return kl_divergence(log_scores[:, 1:], weights[rows])

        def loss_at(step: int) -> Tensor:
            drawn = np.random.default_rng((seed, step)).integers(num_valid, len(examples), size=_LISTS_PER_BATCH)
            return loss_of(torch.from_numpy(drawn))

        @torch.inference_mode()
        def validate() -> float:
            return float(loss_of(torch.arange(num_valid)))

        parameters = dict(self.chooser.query.named_parameters())
        return fit(parameters, loss_at, validate, SCHEDULE, checkpoints=checkpoints, label="summariser").best_loss

    @torch.no_grad()
    def _labelled(self, examples: Sequence[ChooserExample]) -> tuple[ChooserInput, Tensor]:
        """The inputs of E examples, and the weights (E, C) that the chooser should learn."""
        starts = range(0, len(examples), _LISTS_PER_BATCH)
        candidates = [example.candidates for example in examples]
        batches = [self.encode(candidates[start : start + _LISTS_PER_BATCH]) for start in starts]
        # Clones are normal tensors; tensors made in inference mode cannot be saved for backward.
        inputs = ChooserInput(*(torch.cat(parts).clone() for parts in zip(*batches, strict=True)))
        weights = torch.zeros(inputs.mask.shape, device=inputs.mask.device)
        for row, example in enumerate(progress(examples, desc="value of titles", unit="example")):
            weights[row, : len(example.candidates)] = label_weights(self.title_values(example))
        return inputs, weights

    @torch.inference_mode()
    def title_values(self, example: ChooserExample) -> Tensor:
        """(C,) log-probability of all following titles, after each candidate alone."""
        prompts = [long_prompt(self.prompt, self._titles([item])) for item in example.candidates]
        answer = [token for title in self._titles(example.following) for token in self.prompt.title_tokens(title)]
        batch = encode_answers(self.lm, prompts, [answer] * len(prompts))
        return answer_log_probs(self.lm, batch, batch.states[:, :0], batch.mask[:, :0], "prepend").float()

    def _titles(self, items: Sequence[int]) -> list[str]:
        return [self.titles[item] for item in items]


def label_weights(values: Tensor) -> Tensor:
    """(C,) → (C,) with sum 1: the softmax of standardised values, because some examples have more following titles."""
    centred = values - values.mean()
    return (centred / centred.square().mean().sqrt().clamp(min=1e-6)).softmax(dim=0)


def chooser_examples(split: Split, sizes: SummarySizes, seed: int) -> list[ChooserExample]:
    """Random examples of the train period: a block, S random earlier items as the summary, half a block that follows.

    Empty where no history is long enough.
    """
    return list(_draw_examples(split, sizes, np.random.default_rng((seed, 2))))


def _draw_examples(split: Split, sizes: SummarySizes, rng: np.random.Generator) -> Iterator[ChooserExample]:
    histories = [history for history in split.histories if history.train_end > sizes.num_candidates]
    for _ in range(NUM_EXAMPLES if histories else 0):
        history = histories[rng.integers(len(histories))]
        end = int(rng.integers(sizes.num_candidates, history.train_end))
        first = end - sizes.block
        old = np.sort(rng.permutation(first)[: sizes.summary])
        following = history.items[end : min(end + (sizes.block + 1) // 2, history.train_end)]
        candidates = _without_repeats([*history.items[old].tolist(), *history.items[first:end].tolist()])
        yield ChooserExample(candidates, following.tolist())


def _without_repeats(items: Sequence[int]) -> list[int]:
    """Keeps the last occurrence of each item."""
    return list(dict.fromkeys(reversed(items)))[::-1]
