"""What is asked of the recommender, what is known on the way, and what it answers. Knows neither HTTP nor torch."""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from model_store.answers import Answer
from model_store.catalogue.conditions import Condition
from service.engine.messages import WordsAnswered
from service.usecases.explain import ShownItem, UsedMemory
from service.usecases.ranking.rules import NO_RULES, Rules
from service.usecases.timeline import Known, SessionItem
from service.usecases.warned import Warned
from service.usecases.words import Degraded, Reasoning, ShownReasoning

Fallback = Literal["cold_start", "memory_unavailable", "deadline", "engine_error"] | Degraded


@dataclass(frozen=True)
class Request:
    """Who asks for what. `user_id` None is an anonymous session, described by `recent` (oldest first).

    `exclude_seen` None: unless users of the data come back to items. `timestamp`: the time of the request, None for
    now. It is the clock of the past: the age of an event counts from it, and events at this time or later are the
    current basket. Events are read whatever their time, and items are available by the real clock.

    `query`: what the user asks for in words; `reasoning` says how far memory may be used for it. Variants of an
    experiment set the last three: without `memory` only the newest K events count, `is_popular` asks for popular items,
    `voices` multiplies the weights of voices.
    """

    user_id: str | None = None
    k: int = 10
    exclude_seen: bool | None = None
    explain: bool = True
    recent: Sequence[SessionItem] = ()
    candidates: Sequence[str] | None = None
    filter: Condition | None = None
    exclude: Sequence[str] = ()
    deadline_ms: int | None = None
    timestamp: int | None = None
    query: str | None = None
    reasoning: Reasoning = "retrieve"
    rules: Rules = NO_RULES
    memory: bool = True
    is_popular: bool = False
    voices: Mapping[str, float] = field(default_factory=dict)


class ServedModel(NamedTuple):
    """The name of the bundle, and the space of its hidden states."""

    bundle: str
    space: str


@dataclass(frozen=True)
class Recommendation:
    """`timings_ms` maps a stage to its milliseconds; the stages of the model are those of its whole batch.

    `later`: the pages after `items`, with `Rules.is_paged`. `next_cursor`: of the first of them.
    """

    recommendation_id: str
    user_id: str | None
    items: list[ShownItem]
    memory: list[UsedMemory]
    fallback: Fallback | None
    model: ServedModel
    timings_ms: dict[str, float]
    reasoning: ShownReasoning | None = None
    warnings: list[Warned] = field(default_factory=list)
    later: Sequence[Sequence[ShownItem]] = ()
    next_cursor: str | None = None
    variant: str | None = None


class Context(NamedTuple):
    """What is known of the user at this moment. `seen` and `against`, what events speak against: catalogue rows."""

    known: Known
    seen: NDArray[np.int64]
    against: NDArray[np.int64]
    fallback: Fallback | None


@dataclass
class Progress:
    """A request on its way to an answer. `promoted`: the model's answer for the items that boosts lift.

    `little_known`: its answer for the items that may be explored. `recommendation_id`: also the seed of exploration.
    `vectors` (n, D) of the candidates, read for `diversity`. `failure`: why something of this is missing.
    """

    request: Request
    started: float
    context: Context | None = None
    answer: Answer | WordsAnswered | None = None
    promoted: Answer | WordsAnswered | None = None
    little_known: Answer | WordsAnswered | None = None
    vectors: NDArray[np.float32] | None = None
    failure: Fallback | None = None
    timings_s: dict[str, float] = field(default_factory=dict)
    recommendation_id: str = field(default_factory=partial(secrets.token_hex, 16))
