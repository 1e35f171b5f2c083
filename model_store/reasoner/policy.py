"""Both turns of many dialogues with the language model, side by side.

In: queries with the aspects that are near, and a function that fetches memories for the aspects that the model names.
Out: what it named, which memories it used, and the ideal item; with all tokens and which of them it wrote itself, for
training. Greedy, or drawn at temperature 1.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedModel

from model_store.reasoner.dialogue import MAX_IDEAL_TOKENS, MAX_NEED, MAX_USED, NUM_READ, Format
from model_store.reasoner.reading import Reading

Fetch = Callable[[int, Sequence[int]], Sequence[str]]  # row, places of named aspects → texts of memories, best first


@dataclass
class Thought:
    """`need`: places among the aspects; `used`: places among the memories. `is_ended`: the ideal item is complete.

    `tokens`: all after "Need:"; `is_own`: whether the model wrote each.
    """

    need: list[int] = field(default_factory=list)
    memories: list[str] = field(default_factory=list)
    used: list[int] = field(default_factory=list)
    ideal: str = ""
    is_ended: bool = False
    tokens: list[int] = field(default_factory=list)
    is_own: list[bool] = field(default_factory=list)

    def add(self, tokens: Sequence[int], is_own: bool) -> None:
        self.tokens += tokens
        self.is_own += [is_own] * len(tokens)


class Policy:
    """A model with its format. Single-threaded."""

    def __init__(self, model: PreTrainedModel, form: Format) -> None:
        self.model, self.form = model, form
        self._head: Reading | None = None

    def think(
        self,
        queries: Sequence[str],
        aspects: Sequence[Sequence[str]],
        fetch: Fetch,
        *,
        times: int = 1,
        generator: torch.Generator | None = None,
    ) -> list[Thought]:
        """`times` thoughts for each query, side by side; drawn if there is a generator, otherwise the most probable."""
        reading, thoughts = self.name_aspects(queries, aspects, times=times, generator=generator)
        for row, thought in enumerate(thoughts):
            thought.memories = list(fetch(row, thought.need))[:NUM_READ]
        self.read_memories(reading, thoughts, generator=generator)
        return thoughts

    def name_aspects(
        self,
        queries: Sequence[str],
        aspects: Sequence[Sequence[str]],
        *,
        times: int = 1,
        generator: torch.Generator | None = None,
    ) -> tuple[Reading, list[Thought]]:
        """The first turn. The reading goes on in `read_memories`, once the memories of the thoughts are known."""
        reading = self._start(len(queries))
        reading.feed([self.form.question(query, names) for query, names in zip(queries, aspects, strict=True)])
        reading = reading.repeated(times) if times > 1 else reading
        offered = [self.form.letters.aspects[: len(names)] for names in aspects for _ in range(times)]
        thoughts = [Thought() for _ in offered]
        for thought, need in zip(thoughts, self._letters(reading, thoughts, offered, MAX_NEED, generator), strict=True):
            thought.need = need
        return reading, thoughts

    def read_memories(
        self, reading: Reading, thoughts: Sequence[Thought], *, generator: torch.Generator | None = None
    ) -> None:
        """The second turn: which memories are used, and the ideal item."""
        letters = self.form.letters
        self._insert(reading, thoughts, [[letters.end, *self.form.memories(each.memories)] for each in thoughts])
        offered = [letters.memories[: len(thought.memories)] for thought in thoughts]
        for thought, used in zip(thoughts, self._letters(reading, thoughts, offered, MAX_USED, generator), strict=True):
            thought.used = used
        self._insert(reading, thoughts, [[letters.end, *self.form.ideal]] * len(thoughts))
        self._ideal(reading, thoughts, generator)

    def _start(self, num_rows: int) -> Reading:
        if self._head is None:
            self._head = Reading(self.model, 1).feed([self.form.head])
        return self._head.repeated(num_rows)

    @staticmethod
    def _insert(reading: Reading, thoughts: Sequence[Thought], pieces: Sequence[Sequence[int]]) -> None:
        """What the model reads and did not write. The end of a line that it wrote itself is not written again."""
        new = [
            piece[1:] if thought.tokens and thought.tokens[-1] == piece[0] else piece
            for thought, piece in zip(thoughts, pieces, strict=True)
        ]
        for thought, piece in zip(thoughts, new, strict=True):
            thought.add(piece, is_own=False)
        reading.feed(new)

    def _letters(
        self,
        reading: Reading,
        thoughts: Sequence[Thought],
        offered: Sequence[Sequence[int]],
        most: int,
        generator: torch.Generator | None,
    ) -> list[list[int]]:
        """Places of the letters that each row writes, at most `most`; it may end the line before."""
        end = self.form.letters.end
        columns = [*sorted({token for tokens in offered for token in tokens}), end]
        left = [set(tokens) for tokens in offered]
        chosen: list[list[int]] = [[] for _ in offered]
        for _ in range(most):
            if not any(left):
                break
            logits = reading.logits(columns)
            allowed = torch.tensor([[token in tokens or token == end for token in columns] for tokens in left])
            picked = [columns[place] for place in _pick(logits.masked_fill(~allowed, -torch.inf), generator)]
            pieces: list[list[int]] = []
            for row, token in enumerate(picked):
                written = [token] if left[row] else []
                thoughts[row].add(written, is_own=True)
                if written and token != end:
                    chosen[row].append(token)
                left[row] = left[row] - {token} if written and token != end else set()
                pieces.append(written)
            reading.feed(pieces)
        return [[tokens.index(token) for token in row] for tokens, row in zip(offered, chosen, strict=True)]

    def _ideal(self, reading: Reading, thoughts: Sequence[Thought], generator: torch.Generator | None) -> None:
        ends, end = set(self.form.ends), self.form.letters.end
        texts: list[list[int]] = [[] for _ in thoughts]
        for _ in range(MAX_IDEAL_TOKENS):
            pieces: list[list[int]] = []
            for thought, text, token in zip(thoughts, texts, _pick(reading.logits(), generator), strict=True):
                if thought.is_ended:
                    pieces.append([])
                    continue
                thought.is_ended = token in ends
                written = end if thought.is_ended else token
                thought.add([written], is_own=True)
                if not thought.is_ended:
                    text.append(token)
                pieces.append([] if thought.is_ended else [token])
            if not any(pieces):
                break
            reading.feed(pieces)
        for thought, text in zip(thoughts, texts, strict=True):
            thought.ideal = self.form.read(text)


def _pick(logits: Tensor, generator: torch.Generator | None) -> list[int]:
    if generator is None:
        return logits.argmax(dim=1).tolist()
    return torch.multinomial(torch.softmax(logits, dim=1), 1, generator=generator)[:, 0].tolist()
