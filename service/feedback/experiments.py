"""Which variant answers a user: by a hash of the user, with fixed shares. Knows no HTTP.

    name ∥ user → hash in [0, 1) → the variant whose interval holds it

A user has the same variant on every replica and in every request, while the names and shares stay the same. Requests
without a user are answered as if no experiment ran, and count under `default`.
"""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal

import structlog
from pydantic import Field, TypeAdapter, ValidationError

from service.background import Repeated
from service.errors import BadRequest
from service.feedback.outcomes import COUNTED, Outcomes
from service.logs import RepeatedWarnings
from service.metrics import Metrics
from service.store.feedback.outcomes import ExperimentStore

repeated = RepeatedWarnings(structlog.get_logger("service.feedback.experiments"))

Share = Annotated[float, Field(ge=0, le=1)]

DEFAULT = "default"  # where no experiment runs
_FOLLOW_EVERY_S = 2.0


@dataclass(frozen=True)
class Variant:
    """One way to answer. `bundle`: name of a loaded bundle, None: the one that answers. `memory` False: only the recent
    window counts. `arm` popular: popular items, as for a user of whom nothing is known. `voices`: voice → what its
    weight is multiplied by, for a bundle with voices. `exploration`: the share of explored places, None: as the request
    says.
    """

    name: str
    share: Share = 0.0
    bundle: str | None = None
    memory: bool = True
    arm: Literal["model", "popular"] = "model"
    voices: Mapping[str, Annotated[float, Field(ge=0, le=100)]] = field(default_factory=dict)
    exploration: Annotated[float, Field(ge=0, le=0.5)] | None = None


@dataclass(frozen=True)
class Shadow:
    """`share` of the answers are computed by `variant`, too, compared, and not shown."""

    variant: Variant
    share: Share


@dataclass(frozen=True)
class Experiment:
    """`control`: name of the variant that the others are compared with. The shares sum to 1."""

    name: str
    control: str
    variants: tuple[Variant, ...]
    shadow: Shadow | None = None

    def variant_of(self, user_id: str) -> Variant | None:
        """None without variants (an experiment with shadow traffic alone)."""
        place, end = place_of(self.name, user_id), 0.0
        for variant in self.variants:
            end += variant.share
            if place < end:
                return variant
        return self.variants[-1] if self.variants else None

    def check(self) -> None:
        """Raises BadRequest."""
        names = [variant.name for variant in self.variants]
        if len(set(names)) < len(names):
            raise BadRequest("`variants`: two have the same name.")
        if names and not math.isclose(sum(variant.share for variant in self.variants), 1.0, abs_tol=1e-6):
            raise BadRequest("`variants`: their shares must sum to 1.")
        if names and self.control not in names:
            raise BadRequest("`control` must be the name of one of the variants.")


def place_of(experiment: str, user_id: str) -> float:
    """In [0, 1), the same for a user in every process."""
    text = f"{experiment}\n{user_id}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest()[:6], "big") / 2**48


def experiment_of(facts: Mapping[str, Any]) -> Experiment | None:
    """From what the store holds; None for nothing or for what cannot be read."""
    try:
        found = _STORED.validate_python(facts) if facts else None
        if found is not None:
            found.check()
    except (ValidationError, BadRequest):
        repeated.warning("the stored experiment cannot be read, none runs")
        return None
    return found


_STORED = TypeAdapter(Experiment)


class Experiments:
    """For one event loop. `current` is what the store said last."""

    def __init__(self, store: ExperimentStore, outcomes: Outcomes, metrics: Metrics) -> None:
        self.store, self.outcomes, self.metrics = store, outcomes, metrics
        self.current: Experiment | None = None
        self._following = Repeated("experiments", self._look, every_s=_FOLLOW_EVERY_S)

    async def start(self) -> None:
        await self._following.once()
        self._following.start()

    async def stop(self) -> None:
        await self._following.stop()

    async def put(self, experiment: Experiment | None) -> None:
        """Starts, changes or ends (None) the experiment; other replicas follow. Raises BadRequest."""
        if experiment is not None:
            experiment.check()
        await self.store.write({} if experiment is None else asdict(experiment))
        self.current = experiment

    async def _look(self) -> None:
        self.current = experiment_of(await self.store.read())
        await self.outcomes.settle_waiting()
        for variant in (await self.outcomes.results()).variants:
            for name in COUNTED:
                self.metrics.outcomes.labels(variant.variant, name).set(getattr(variant, name))
