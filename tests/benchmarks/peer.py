"""The usual alternative: Hugging Face `generate`, with beams constrained to the catalogue by a function per step.

The whole model reads the prompt once per beam, and every token of a title is a step of its own. Beams are ranked by the
sum of log-probabilities, as ours are: `length_penalty=0` keeps the sum of a finished title undivided, and the library
masks forbidden tokens after the softmax.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel


class Generated(NamedTuple):
    """`tokens` of a title, terminator included; `score`: its log-probability."""

    tokens: tuple[int, ...]
    score: float


class Generate:
    """`sequences`: token ids of the titles of the catalogue. Each ends with `terminator` and contains no other one."""

    def __init__(self, model: PreTrainedModel, sequences: Sequence[tuple[int, ...]], *, terminator: int) -> None:
        self._model = model
        self._generate: Any = model.generate  # from a mixin without type stubs
        self._terminator = terminator
        self._longest = max(map(len, sequences))
        following: dict[tuple[int, ...], set[int]] = defaultdict(set)
        for sequence in sequences:
            for depth in range(len(sequence)):
                following[sequence[:depth]].add(sequence[depth])
        self._following = {prefix: sorted(tokens) for prefix, tokens in following.items()}

    @torch.inference_mode()
    def __call__(self, prompt: Sequence[int], *, num_beams: int, num_results: int) -> list[Generated]:
        """Best first."""
        tokens = torch.tensor([list(prompt)], device=self._model.device)

        def allowed(_: int, read: torch.Tensor) -> list[int]:
            return self._following.get(tuple(read[len(prompt) :].tolist()), [self._terminator])

        found = self._generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            num_beams=num_beams,
            num_return_sequences=num_results,
            prefix_allowed_tokens_fn=allowed,
            max_new_tokens=self._longest,
            do_sample=False,
            length_penalty=0.0,
            early_stopping=False,
            eos_token_id=self._terminator,
            pad_token_id=self._terminator,
            return_dict_in_generate=True,
            output_scores=True,
        )
        titles = found.sequences[:, len(prompt) :].tolist()
        scores = found.sequences_scores.tolist()
        return [Generated(self._cut(title), score) for title, score in zip(titles, scores, strict=True)]

    def _cut(self, title: list[int]) -> tuple[int, ...]:
        """Drop the padding after the terminator."""
        return tuple(title[: title.index(self._terminator) + 1]) if self._terminator in title else tuple(title)
