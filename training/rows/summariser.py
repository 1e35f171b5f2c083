"""Which titles stay in a summary: the step of TRSR (arXiv 2403.13325) that there a large model writes.

The models made here know titles and no English, so a summary is a list of S titles, and writing it is choosing. The
language model reads the last summary and the next block in one pass; a *chooser*, the network of the retriever, takes
the state in which that leaves it, and the embedding of each title, and says which S titles stay. It is trained for this
as extractive summarisers are: a title is worth the log-probability that the same language model gives to what the
reader read in the *following* block when it has read that title before. Unlike our memory, a summary does not know the
window it will be used with. With a real checkpoint, too, a summary is of titles.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model_store.bundle import Bundle
from model_store.lm.split_lm import pad_left
from model_store.memory.retriever import Retriever, choose
from training.data.splits import Split
from training.lm.likelihood import answer_log_probs, read
from training.rows.contest import long_prompt
from training.rows.summary import Summary
from training.run.loop import Schedule, fit
from training.run.stage import progress
from training.train_retriever import kl_divergence

NUM_EXAMPLES = 400  # from which the chooser learns; a fifth of them judges it
WIDTH = 64
SCHEDULE = Schedule(max_steps=400, learning_rate=1e-3, evaluate_every=50, patience=3)
_LISTS_PER_BATCH = 64


class Sizes(NamedTuple):
    block: int  # events read at a time
    summary: int  # S

    @property
    def most(self) -> int:
        """Titles to choose from."""
        return self.block + self.summary


class Example(NamedTuple):
    """Items to choose from, and what the reader read then."""

    candidates: list[int]
    following: list[int]


class Reading(NamedTuple):
    """What the language model made of some lists, padded on the right to `Sizes.most` titles; all of the last layer."""

    end: Tensor  # (B, D) after a list
    titles: Tensor  # (B, C, D) after each title, read alone
    mask: Tensor  # (B, C)


class Summariser:
    """Its language model is the bundle's, as it is; only the chooser is trained. `vectors` (N, D) embed `titles`."""

    def __init__(self, bundle: Bundle, titles: Sequence[str], vectors: NDArray[np.float32], sizes: Sizes) -> None:
        self.lm, self.prompt, self.sizes = bundle.lm, bundle.prompt, sizes
        self.titles, self.vectors = titles, vectors
        self.chooser = Retriever(self.lm.hidden_size, width=WIDTH, has_null=False).to(self.lm.device)

    def select(self, lists: Sequence[Sequence[int]]) -> list[Summary]:
        """The S titles of each list that stay, in its order; of a repeated item the last occurrence counts."""
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
        """Places in each list, which has more than S items, in order."""
        places: list[list[int]] = choose(self.chooser(*self.read(lists)), self.sizes.summary).indices.tolist()
        return places

    @torch.inference_mode()
    def read(self, lists: Sequence[Sequence[int]]) -> Reading:
        """One pass of the language model; no list may be empty or longer than `Sizes.most`."""
        tokens, mask = pad_left([long_prompt(self.prompt, self._titles(items)) for items in lists], self.lm.device)
        end = self.lm.top_hidden(self.lm.bottom(tokens, mask), mask)[:, -1].float()
        titles = np.zeros((len(lists), self.sizes.most, self.lm.hidden_size), dtype=np.float32)
        present = np.zeros((len(lists), self.sizes.most), dtype=np.int64)
        for row, items in enumerate(lists):
            titles[row, : len(items)] = self.vectors[list(items)]
            present[row, : len(items)] = 1
        return Reading(end, torch.from_numpy(titles).to(end.device), torch.from_numpy(present).to(end.device))

    def train(self, split: Split, *, seed: int, checkpoints: Path) -> float | None:
        """Returns the best loss on the examples kept apart, None where no history is long enough to learn from."""
        examples = learning_examples(split, self.sizes, seed)
        if len(examples) < 2:
            return None
        reading, weights = self._labelled(examples)
        num_valid = max(1, len(examples) // 5)

        def loss_of(rows: Tensor) -> Tensor:
            log_scores = self.chooser(*(states[rows] for states in reading))
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
    def _labelled(self, examples: Sequence[Example]) -> tuple[Reading, Tensor]:
        """What the chooser reads, and the weights (E, C) it should give."""
        starts = range(0, len(examples), _LISTS_PER_BATCH)
        candidates = [example.candidates for example in examples]
        readings = [self.read(candidates[start : start + _LISTS_PER_BATCH]) for start in starts]
        reading = Reading(*(torch.cat(parts).clone() for parts in zip(*readings, strict=True)))
        weights = torch.zeros(reading.mask.shape, device=reading.mask.device)
        for row, example in enumerate(progress(examples, desc="worth of titles", unit="example")):
            weights[row, : len(example.candidates)] = label_weights(self.worth(example))
        return reading, weights

    @torch.inference_mode()
    def worth(self, example: Example) -> Tensor:
        """(C,) log-probability of all that followed, after each candidate alone."""
        prompts = [long_prompt(self.prompt, self._titles([item])) for item in example.candidates]
        answer = [token for title in self._titles(example.following) for token in self.prompt.title_tokens(title)]
        batch = read(self.lm, prompts, [answer] * len(prompts))
        return answer_log_probs(self.lm, batch, batch.states[:, :0], batch.mask[:, :0], "prepend").float()

    def _titles(self, items: Sequence[int]) -> list[str]:
        return [self.titles[item] for item in items]


def label_weights(worth: Tensor) -> Tensor:
    """(C,) → (C,), sum 1. What followed is longer for some examples than for others, so worth is standardised."""
    centred = worth - worth.mean()
    return (centred / centred.square().mean().sqrt().clamp(min=1e-6)).softmax(dim=0)


def learning_examples(split: Split, sizes: Sizes, seed: int) -> list[Example]:
    """Of the train period: a block, S random earlier items in place of a summary, and half a block that followed."""
    return list(_draw_examples(split, sizes, np.random.default_rng((seed, 2))))


def _draw_examples(split: Split, sizes: Sizes, rng: np.random.Generator) -> Iterator[Example]:
    histories = [history for history in split.histories if history.train_end > sizes.most]
    for _ in range(NUM_EXAMPLES if histories else 0):
        history = histories[rng.integers(len(histories))]
        at = int(rng.integers(sizes.most, history.train_end))
        first = at - sizes.block
        old = np.sort(rng.permutation(first)[: sizes.summary])
        following = history.items[at : min(at + (sizes.block + 1) // 2, history.train_end)]
        candidates = _without_repeats([*history.items[old].tolist(), *history.items[first:at].tolist()])
        yield Example(candidates, following.tolist())


def _without_repeats(items: Sequence[int]) -> list[int]:
    return list(dict.fromkeys(reversed(items)))[::-1]
