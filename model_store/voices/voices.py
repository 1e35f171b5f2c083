"""All voices of a user: the mixture of what each gives to the next item, and the ranking of the candidates.

    p(item) = w_LM · p_LM(item) + w_pop · popularity(item) + Σ_m Σ_c w_{m,c} · q_c(item | item of event m)

m runs over events, c over channels: `return` (q points at the item itself) and one channel for each table of near
items. This is a pointer mixture (See et al., ACL 2017, equation 9) with several pointers. One gate weighs the events of
the window, another one the older events, which are the memory. The mixture proposes candidates; the combiner ranks them
by what each voice gives to them. Immutable.
"""

import math
from collections.abc import Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from scipy import sparse
from torch import Tensor

from model_store.errors import BundleCorrupt
from model_store.manifest import VoicesSpec
from model_store.voices.against import lowered
from model_store.voices.candidates import Candidates, find_candidates, num_older_features, num_window_features
from model_store.voices.combiner import Combiner
from model_store.voices.gate import Gate, Weights
from model_store.voices.mixtures import Mixtures
from model_store.voices.newcomers import inherited
from model_store.voices.past import EVENT_FEATURES, QUERY_FEATURES, Described, ItemFacts, Past, describe
from model_store.voices.tables import KnownItems, Tables, read_table, table_arrays

LANGUAGE_MODEL, POPULAR = "language_model", "popularity"  # the voices that are no channels
_NEAR_SUMS = "near.sums"  # of the file; earlier versions did not write it
_LEAST_MASS = 1e-30  # inside a logarithm
_BELOW = 1e-6  # how far items that are no candidates stay below the last candidate, in nats


class Voting(NamedTuple):
    """The mixtures of a batch and its ranked candidates; `candidates` and `scores` have one element per query."""

    mixtures: Mixtures
    candidates: list[Candidates]
    scores: list[NDArray[np.float32]]  # log p of each candidate


class Voices:
    """`tables`: channel → (V, V) rows that sum to one or to zero, one for each channel but `return`."""

    def __init__(
        self,
        spec: VoicesSpec,
        facts: ItemFacts,
        tables: Mapping[str, sparse.csr_matrix],
        *,
        gates: tuple[Gate, Gate] | None = None,
        combiner: Combiner | None = None,
        near_sums: NDArray[np.float32] | None = None,
    ) -> None:
        """`gates` of the window and of older events; without them and a combiner, networks before training.

        `near_sums` (V,): what the rows of the table `near` summed to before they were normalised.
        """
        self.spec, self.near_sums = spec, near_sums
        self.known = KnownItems(facts, Tables(tables))
        sizes = len(EVENT_FEATURES), len(QUERY_FEATURES), len(self.known.channels)
        self.gates = gates or (Gate(*sizes), Gate(*sizes))
        num_tables = len(tables)
        self.combiner = combiner or Combiner(num_window_features(num_tables), num_older_features(num_tables))

    def __len__(self) -> int:
        """V', the number of tokens that have facts: those of training, V, and those of items that came later."""
        return self.known.num_tokens

    @property
    def facts(self) -> ItemFacts:
        return self.known.facts

    @property
    def tables(self) -> Mapping[str, sparse.csr_matrix]:
        """Channel → (V, V)"""
        return {name: self.known.tables.table(name) for name in self.known.tables.names}

    @property
    def popularity(self) -> NDArray[np.float32]:
        """(V',) shares of all events."""
        return self.known.popularity

    @property
    def channels(self) -> tuple[str, ...]:
        return self.known.channels

    def with_known(self, known: KnownItems) -> Self:
        """These voices with other knowledge of the items; the networks are shared."""
        voices = copy(self)
        voices.known = known
        return voices

    def describe(self, pasts: Sequence[Past]) -> tuple[Described, Described]:
        """The window of each past, and its older events."""
        return describe(pasts, self.facts, self.known.has_row, self.spec)

    @torch.inference_mode()
    def weigh(self, described: Described, *, is_older: bool) -> Weights:
        log_weights = self.gates[is_older](*described.numbers)
        return Weights(log_weights.overall.exp(), log_weights.events.exp() * described.can_vote)

    def mix(self, forecast: NDArray[np.float32], pasts: Sequence[Past]) -> Mixtures:
        """`forecast` (B, V') are the language model's probabilities of all items, V' ≥ V."""
        described = self.describe(pasts)
        window, older = (
            _scaled(self.weigh(part, is_older=bool(half)), part, pasts, self.known.channels)
            for half, part in enumerate(described)
        )
        weights = window, older
        scales = _scales(pasts, (LANGUAGE_MODEL, POPULAR))
        return Mixtures.of(self.known, forecast, described, weights, scales)

    def vote(
        self, forecast: NDArray[np.float32], pasts: Sequence[Past], allowed: Sequence[NDArray[np.int64] | None]
    ) -> Voting:
        """Ranks the candidates of each query. `allowed`: the tokens that may be shown, None for all."""
        mixtures = self.mix(forecast, pasts)
        found = [find_candidates(mixtures, row, tokens) for row, tokens in enumerate(allowed)]
        scores = [
            own if past.against is None else own - lowered(self.known, past.against, each.tokens)
            for own, each, past in zip(self._scores(found), found, pasts, strict=True)
        ]
        scores = [
            inherited(self.known, each.tokens, own, tokens)
            for each, own, tokens in zip(found, scores, allowed, strict=True)
        ]
        return Voting(mixtures, found, scores)

    @torch.inference_mode()
    def _scores(self, found: Sequence[Candidates]) -> list[NDArray[np.float32]]:
        """Log-probabilities: the candidates of a query share the mass that the mixture gives them."""
        sizes = [len(each.tokens) for each in found]
        window = torch.from_numpy(np.concatenate([each.window for each in found]))
        scores = self.combiner.of_window(window)
        older = [each.older for each in found if each.older is not None]
        if older:
            rows = torch.from_numpy(np.flatnonzero(np.repeat([each.older is not None for each in found], sizes)))
            scores[rows] += self.combiner.of_memory(window[rows], torch.from_numpy(np.concatenate(older)))
        return [
            (own.log_softmax(dim=0) + min(math.log(max(float(each.mixture.sum()), _LEAST_MASS)), 0.0)).numpy()
            for each, own in zip(found, scores.split(sizes), strict=True)
        ]

    def ranked(self, log_probs: Tensor, pasts: Sequence[Past], allowed: Sequence[NDArray[np.int64] | None]) -> Tensor:
        """log p (B, V') of the next item, from `log_probs` (B, V') of the language model. Candidates come first."""
        voting = self.vote(log_probs.exp().float().numpy(force=True), pasts, allowed)
        return torch.from_numpy(all_scores(voting)).to(log_probs.device)

    # ---- files

    def save(self, file: Path) -> None:
        arrays: dict[str, NDArray[Any]] = {f"facts.{name}": part for name, part in self.facts._asdict().items()}
        for name, table in self.tables.items():
            arrays |= table_arrays(name, table)
        if self.near_sums is not None:
            arrays[_NEAR_SUMS] = self.near_sums
        for name, network in self._networks().items():
            arrays |= {f"{name}/{key}": tensor.numpy(force=True) for key, tensor in network.state_dict().items()}
        save_file(arrays, file)

    @classmethod
    def load(cls, file: Path, spec: VoicesSpec) -> Self:
        """Read `voices.safetensors`. Raises BundleCorrupt."""
        try:
            arrays = load_file(file)
            facts = ItemFacts(*(arrays[f"facts.{name}"] for name in ItemFacts._fields))
            tables = {name: read_table(name, arrays) for name in spec.tables}
            voices = cls(spec, facts, tables, near_sums=arrays.get(_NEAR_SUMS))
            for name, network in voices._networks().items():
                network.load_state_dict(
                    {key: torch.from_numpy(arrays[f"{name}/{key}"]) for key in network.state_dict()}
                )
        except (OSError, KeyError, ValueError, RuntimeError, SafetensorError) as error:
            raise BundleCorrupt(f"{file}: the voices cannot be read; build the bundle again") from error
        return voices

    def _networks(self) -> dict[str, torch.nn.Module]:
        return {"window": self.gates[0], "older": self.gates[1], "combiner": self.combiner}


def event_weights(past: Past, places: NDArray[np.int64]) -> NDArray[np.float32]:
    """(n,) how much the events at these places of the past count."""
    if past.weights is None or not len(past.weights):
        return np.ones(len(places), dtype=np.float32)
    found: NDArray[np.float32] = past.weights[places]
    return found


def _scaled(weights: Weights, described: Described, pasts: Sequence[Past], channels: Sequence[str]) -> Weights:
    """The votes of each event times its weight, and each channel times what the query multiplies it by."""
    events = weights.events
    if any(past.weights is not None for past in pasts):
        scales = np.stack([event_weights(past, own) for past, own in zip(pasts, described.places, strict=True)])
        events = events * torch.from_numpy(scales)[:, :, None]
    if any(past.voices for past in pasts):
        events = events * torch.from_numpy(_scales(pasts, channels))[:, None, :]
    return Weights(weights.overall, events)


def _scales(pasts: Sequence[Past], voices: Sequence[str]) -> NDArray[np.float32]:
    """(B, voices) what each query multiplies the voices by."""
    return np.array([[past.voices.get(voice, 1.0) for voice in voices] for past in pasts], dtype=np.float32)


def all_scores(voting: Voting) -> NDArray[np.float32]:
    """(B, V') the scores of candidates, and for all others the mixture's log p, below the last candidate."""
    with np.errstate(divide="ignore"):
        found: NDArray[np.float32] = np.log(voting.mixtures.whole)
    for row, (candidates, scores) in enumerate(zip(voting.candidates, voting.scores, strict=True)):
        if len(scores):
            np.minimum(found[row], scores.min() - _BELOW, out=found[row])
            found[row, candidates.tokens] = scores
    return found
