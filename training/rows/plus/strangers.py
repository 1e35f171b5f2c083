"""Row `random`: everything as in AutoMR +, but the memory is that of another user.

In: an evaluation, a seed. Out: for each target, states and older events of another user. There are as many as the user
has, with the times of the user's own older events: the two memories differ only in what they contain. Events of the
other user that are later than the target are left out. The window stays the user's own.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from model_store.answers import PastRows
from training.rows.evaluation import Evaluation, Memory, RankedLists

_TRIES = 50  # users that are drawn until one has enough events; the one with the most is taken if none has


def random_memory(evaluation: Evaluation, seed: int) -> RankedLists:
    strangers = Strangers(evaluation, seed)
    return evaluation.rank(strangers.memory, "random")


class Strangers:
    """The users whose states are known: those of the evaluation's targets, when it was made."""

    def __init__(self, evaluation: Evaluation, seed: int) -> None:
        self.evaluation, self.seed = evaluation, seed
        self.users = np.array(sorted(user for user, states in evaluation.states.arrays.items() if len(states)))

    def memory(self, place: int) -> Memory:
        """Of the n-th target. What it draws does not depend on the other targets."""
        example, past = self.evaluation.examples[place], self.evaluation.past(self.evaluation.targets[place])
        num_states = len(example.memory_positions)
        num_older = 0 if past is None else max(0, len(past.rows) - self.evaluation.recent_length)
        user, end = self._draw(place, num_states, num_older)
        states = self.evaluation.states
        start = states.starts.get(user, 0)
        found = states.at(user, np.arange(max(start, end - num_states), end) if num_states else np.arange(0))
        items = self.evaluation.split.histories[user].items[max(0, end - num_older) : end]
        known = self.evaluation.bundle.codec.round_trip(found)
        return Memory(known, None, past and _with_older(past, self.evaluation.rows_of(items), num_older))

    def _draw(self, place: int, num_states: int, num_older: int) -> tuple[int, int]:
        """A user, and the position after the newest event that is taken."""
        found, most = (self.evaluation.targets[place].user, 0), -1
        if num_states or num_older:
            for user, start, end in self._others(place):
                if end - start >= num_states and end >= num_older:
                    return user, end
                if end - start > most:
                    found, most = (user, end), end - start
        return found

    def _others(self, place: int) -> Iterator[tuple[int, int, int]]:
        """Other users at random: the first position with a state, and the one after the last that is early enough."""
        split, states = self.evaluation.split, self.evaluation.states
        target = self.evaluation.targets[place]
        now = split.histories[target.user].timestamps[target.position]
        for user in self._shuffled(target.user, target.position):
            start = states.starts[user]
            early = int(np.searchsorted(split.histories[user].timestamps, now))
            yield user, start, max(start, min(early, start + len(states.arrays[user])))

    def _shuffled(self, own: int, position: int) -> Sequence[int]:
        others: NDArray[np.int64] = self.users[self.users != own]
        rng = np.random.default_rng((self.seed, own, position))
        drawn: list[int] = rng.choice(others, size=min(_TRIES, len(others)), replace=False).tolist()
        return drawn


def _with_older(past: PastRows, rows: list[int], num_older: int) -> PastRows:
    """`past` with `rows` instead of its `num_older` older events. Fewer rows have the newest of the times."""
    first = num_older - len(rows)
    return PastRows([*rows, *past.rows[num_older:]], past.timestamps[first:], past.now)
