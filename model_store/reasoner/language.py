"""`LanguageReasoner`: the language model as the reasoner of one query at a time, as a bundle serves it."""

from collections.abc import Sequence

from model_store.reasoner.dialogue import NUM_READ, distinct
from model_store.reasoner.policy import Policy, Thought
from model_store.reasoner.reading import Reading
from model_store.words.aspects import Aspect
from model_store.words.memory import Entry
from model_store.words.ranker import Ranker
from model_store.words.reasoning import Profile


class LanguageReasoner:
    """A `Reasoner`. `profile` continues the dialogue that `aspects` began; without one it begins with no aspects.

    Single-threaded, as `Words` is.
    """

    def __init__(self, policy: Policy, ranker: Ranker) -> None:
        self.policy, self._ranker = policy, ranker
        self._begun: tuple[str, Reading, Thought] | None = None

    @property
    def ranker(self) -> Ranker:
        return self._ranker

    def aspects(self, query: str, shown: Sequence[tuple[Aspect, float]]) -> list[Aspect]:
        offered = distinct([aspect for aspect, _ in shown])
        reading, (thought,) = self.policy.name_aspects([query], [[aspect.name for aspect in offered]])
        self._begun = query, reading, thought
        return [offered[place] for place in thought.need]

    def profile(self, query: str, aspects: Sequence[Aspect], pool: Sequence[Entry], chosen: Sequence[int]) -> Profile:
        if self._begun is None or self._begun[0] != query:
            self.aspects(query, [])
        assert self._begun is not None
        _, reading, thought = self._begun
        self._begun = None
        thought.memories = [entry.text for entry in pool[:NUM_READ]]
        self.policy.read_memories(reading, [thought])
        return Profile(thought.ideal or query, is_free=True, used=tuple(thought.used))
