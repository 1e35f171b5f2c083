"""Lines of waiting requests, one for each caller, and whose turn is next: callers in rotation. For one event loop."""

import asyncio
from collections import OrderedDict, deque
from dataclasses import dataclass, field


@dataclass(frozen=True, eq=False)
class Waiting:
    """`turn` is set when the request may go on. `places`: how many places it takes then."""

    owner: str
    places: int
    turn: asyncio.Event = field(default_factory=asyncio.Event)


class Lines:
    """`num_waiting`: of all callers. Who leaves a line is no longer counted."""

    def __init__(self) -> None:
        self._lines: OrderedDict[str, deque[Waiting]] = OrderedDict()  # whose turn is next comes first
        self.num_waiting = 0

    def __contains__(self, owner: str) -> bool:
        """Whether a request of this caller waits."""
        return owner in self._lines

    def firsts(self) -> list[Waiting]:
        """The first of each line, in the order of the rotation."""
        return [line[0] for line in self._lines.values()]

    def join(self, owner: str, places: int = 1) -> Waiting:
        waiting = Waiting(owner, places)
        self._lines.setdefault(owner, deque()).append(waiting)
        self.num_waiting += 1
        return waiting

    def call(self, waiting: Waiting) -> None:
        """It is the turn of this one, and then that of the other callers."""
        self._remove(waiting)
        if waiting.owner in self._lines:
            self._lines.move_to_end(waiting.owner)
        waiting.turn.set()

    def leave(self, waiting: Waiting) -> bool:
        """For a request that has been cancelled. False if its turn had come in the same moment."""
        if waiting.turn.is_set():
            return False
        self._remove(waiting)
        return True

    def _remove(self, waiting: Waiting) -> None:
        line = self._lines[waiting.owner]
        line.remove(waiting)
        self.num_waiting -= 1
        if not line:
            del self._lines[waiting.owner]
