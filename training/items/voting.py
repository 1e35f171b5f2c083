"""Training of the voices: how much each of them counts, by the likelihood of the true next item.

In: valid targets, `Voices` before training, the language model's forecast of each target. Out: the voices, trained in
four steps. Each step leaves the results of the steps before as they are:

    1. the gate of the window     what the events of the window add to the language model
    2. the gate of older events   what older events add to both
    3. the ranking of the window  candidates in order, without older events
    4. the ranking of memory      what older events add to the scores

So the ranking without memory does not know of memory, and the difference between the two is what memory does.

Steps 1 and 2 minimise, for each target,

    −log (p(truth) + ε / V) + log (p(allowed) + ε),   p(i) = Σ_v w_v p_v(i)

The second term makes p a distribution over the items that may be shown, and ε keeps voices that name only items that
may not be shown from looking perfect. Both are linear in the weights w, so each voice contributes two numbers per
target, computed once. Steps 3 and 4 minimise the cross-entropy among the candidates. Targets are split by user: some
teach, the others end the training of each step.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor, nn
from torch.nn import functional as F

from model_store.voices.candidates import Candidates, find_candidates
from model_store.voices.combiner import Rankers
from model_store.voices.gate import Gate
from model_store.voices.past import RETURN, Described
from model_store.voices.voices import Voices, event_weights
from training.data.splits import Target
from training.items.pasts import Pasts
from training.run.stage import progress

_BATCH = 128  # targets whose dense forecasts are in memory at a time
_STEP = 256
_RATE, _DECAY = 3e-3, 0.01
_EPOCHS, _PATIENCE = 80, 8
_UNIFORM = 1e-3  # ε
_HIDDEN_LOGIT = -1e9

# The language model's probabilities (targets, V) of the next token.
Forecast = Callable[[Sequence[Target]], NDArray[np.float32]]


class Shares(NamedTuple):
    """What each voice gives to some items of each target: `overall` (T, 2), `events` (T, n, C)."""

    overall: Tensor
    events: Tensor

    def at(self, rows: Tensor) -> "Shares":
        return Shares(self.overall[rows], self.events[rows])


class Examples(NamedTuple):
    """`truth`: shares of the true item. `hidden`: shares of all items that may not be shown."""

    described: Described
    truth: Shares
    hidden: Shares
    num_tokens: int

    def at(self, rows: Tensor) -> "Examples":
        described = Described(*self.described[:2], *(part[rows] for part in self.described.numbers))
        return Examples(described, self.truth.at(rows), self.hidden.at(rows), self.num_tokens)


class Taught(NamedTuple):
    """The lowest loss of a step on the targets that end its training, the loss before, and the epoch of the lowest."""

    before: float
    lowest: float
    epoch: int


def train_voices(
    voices: Voices, pasts: Pasts, teach: Sequence[Target], judge: Sequence[Target], forecast: Forecast, *, seed: int = 0
) -> dict[str, Taught]:
    """Trains the networks of `voices` in place. Returns the facts of each step."""
    torch.manual_seed(seed)
    facts = {}
    for is_older in (False, True):
        below = _window_mixture(voices, pasts, forecast) if is_older else forecast
        parts = [make_examples(voices, pasts, targets, below, is_older=is_older) for targets in (teach, judge)]
        facts["older events" if is_older else "window"] = _fit_gate(voices.gates[is_older], *parts)
    ranked = [candidates_of(voices, pasts, targets, forecast) for targets in (teach, judge)]
    return facts | _fit_rankers(voices, *ranked)


def _window_mixture(voices: Voices, pasts: Pasts, forecast: Forecast) -> Forecast:
    return lambda targets: voices.mix(forecast(targets), [pasts.past(target) for target in targets]).window


# ---- steps 1 and 2


def make_examples(
    voices: Voices, pasts: Pasts, targets: Sequence[Target], forecast: Forecast, *, is_older: bool
) -> Examples:
    transposed = {name: table.T.tocsr() for name, table in voices.tables.items()}
    past_of = [pasts.past(target) for target in targets]
    described = voices.describe(past_of)[is_older]
    truth, hidden = np.zeros((2, *described.can_vote.shape), dtype=np.float32)
    overall = np.zeros((2, len(targets), 2), dtype=np.float32)
    bar = progress(total=len(targets), desc="shares of the voices", unit="target")
    for start in range(0, len(targets), _BATCH):
        part = targets[start : start + _BATCH]
        for row, (target, own) in enumerate(zip(part, forecast(part), strict=True), start):
            items = np.array([pasts.truth(target)]), pasts.hidden(target)
            for which, (found, tokens) in enumerate(zip((truth, hidden), items, strict=True)):
                found[row] = _shares(voices, transposed, described.tokens[row], tokens)
                if past_of[row].weights is not None:
                    found[row] *= event_weights(past_of[row], described.places[row])[:, None]
                overall[which, row] = own[tokens].sum(), voices.popularity[tokens].sum()
        bar.update(len(part))
    bar.close()
    shares = [
        Shares(torch.from_numpy(overall[n]), torch.from_numpy(part) * described.can_vote)
        for n, part in enumerate((truth, hidden))
    ]
    return Examples(described, shares[0], shares[1], len(voices))


def _shares(
    voices: Voices, transposed: Mapping[str, sparse.csr_matrix], tokens: NDArray[np.int64], items: NDArray[np.int64]
) -> NDArray[np.float32]:
    """(n, C) the probability that each channel of each event gives to `items` together."""
    found = np.zeros((len(tokens), len(voices.channels)), dtype=np.float32)
    for channel, name in enumerate(voices.channels):
        if name == RETURN:
            found[:, channel] = np.isin(tokens, items)
        elif len(items):
            found[:, channel] = np.asarray(transposed[name][items].sum(axis=0)).ravel()[tokens]
    return found


def gate_loss(gate: Gate, examples: Examples) -> Tensor:
    """(T,) see the module's formula."""
    weights = gate(*examples.described.numbers)
    overall, events = weights.overall.exp(), weights.events.exp()
    truth, hidden = (
        (overall * shares.overall).sum(1) + (events * shares.events).sum((1, 2))
        for shares in (examples.truth, examples.hidden)
    )
    return (1 - hidden + _UNIFORM).log() - (truth + _UNIFORM / examples.num_tokens).log()


def _fit_gate(gate: Gate, teach: Examples, judge: Examples) -> Taught:
    can_vote = teach.described.can_vote.any(dim=2)
    if not can_vote.any():
        return Taught(0.0, 0.0, 0)
    gate.standard_events.fit(teach.described.events[can_vote])
    gate.standard_queries.fit(teach.described.queries)
    return _fit(
        gate,
        lambda rows: gate_loss(gate, teach.at(rows)).mean(),
        lambda: gate_loss(gate, judge).mean(),
        len(teach.described.queries),
    )


def _fit(
    network: nn.Module, loss_at: Callable[[Tensor], Tensor], judged: Callable[[], Tensor], num_examples: int
) -> Taught:
    """Keeps the weights of the epoch with the lowest judged loss; before the first epoch counts as one."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=_RATE, weight_decay=_DECAY)
    before = lowest = _value(judged)
    best, best_epoch = _state(network), 0
    bar = progress(range(1, _EPOCHS + 1), desc="networks of the voices", unit="epoch")
    for epoch in bar:
        for rows in torch.randperm(num_examples).split(_STEP):
            optimizer.zero_grad()
            loss_at(rows).backward()
            optimizer.step()
        found = _value(judged)
        if found < lowest:
            best, best_epoch, lowest = _state(network), epoch, found
        elif epoch - best_epoch >= _PATIENCE:
            break
        bar.set_postfix(judged=f"{lowest:.4f}@{best_epoch}")
    bar.close()
    network.load_state_dict(best)
    network.eval()
    return Taught(before, lowest, best_epoch)


def _value(judged: Callable[[], Tensor]) -> float:
    with torch.no_grad():
        return float(judged())


def _state(network: nn.Module) -> dict[str, Any]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


# ---- steps 3 and 4


class RankedTargets(NamedTuple):
    """Candidates of T targets, padded to c: features (T, c, F), which are real (T, c), and the place of the truth (T,).

    Targets whose truth is no candidate are left out.
    """

    window: Tensor
    older: Tensor
    mask: Tensor
    truth: Tensor


def candidates_of(voices: Voices, pasts: Pasts, targets: Sequence[Target], forecast: Forecast) -> RankedTargets:
    kept: list[tuple[Candidates, int]] = []
    bar = progress(total=len(targets), desc="candidates", unit="target")
    for start in range(0, len(targets), _BATCH):
        part = targets[start : start + _BATCH]
        mixtures = voices.mix(forecast(part), [pasts.past(target) for target in part])
        for row, target in enumerate(part):
            found = find_candidates(mixtures, row, pasts.allowed(target))
            places = np.flatnonzero(found.tokens == pasts.truth(target))
            kept += [(found, int(place)) for place in places]
        bar.update(len(part))
    bar.close()
    return _padded(kept, voices.combiner.num_older)


def _padded(kept: Sequence[tuple[Candidates, int]], num_older: int) -> RankedTargets:
    width = max((len(found.tokens) for found, _ in kept), default=1)
    num_window = kept[0][0].window.shape[1] if kept else 1
    window = np.zeros((len(kept), width, num_window), dtype=np.float32)
    older = np.zeros((len(kept), width, num_older), dtype=np.float32)
    mask = np.zeros((len(kept), width), dtype=bool)
    for row, (found, _) in enumerate(kept):
        size = len(found.tokens)
        window[row, :size], mask[row, :size] = found.window, True
        if found.older is not None:
            older[row, :size] = found.older
    truth = torch.tensor([place for _, place in kept], dtype=torch.int64)
    return RankedTargets(torch.from_numpy(window), torch.from_numpy(older), torch.from_numpy(mask), truth)


def _fit_rankers(voices: Voices, teach: RankedTargets, judge: RankedTargets) -> dict[str, Taught]:
    combiner = voices.combiner
    if not len(teach.truth) or not len(judge.truth):
        return {}
    combiner.window.standard.fit(teach.window[teach.mask])
    facts = {
        "ranking of the window": _fit_rankers_of(combiner.window, (teach.window, judge.window), None, (teach, judge))
    }
    with torch.no_grad():
        below = combiner.of_window(teach.window), combiner.of_window(judge.window)
    both = [torch.cat([part.window, part.older], dim=-1) for part in (teach, judge)]
    combiner.memory.standard.fit(both[0][teach.mask])
    return facts | {"ranking of memory": _fit_rankers_of(combiner.memory, both, below, (teach, judge))}


def _fit_rankers_of(
    rankers: Rankers, features: Sequence[Tensor], below: Sequence[Tensor] | None, parts: Sequence[RankedTargets]
) -> Taught:
    """Each member learns alone; their mean is judged. `below`: scores to which those of the members are added."""

    def loss(part: int, rows: Tensor | slice, *, of_mean: bool) -> Tensor:
        scores: Tensor = rankers(features[part][rows])  # (t, c, E)
        scores = scores.mean(dim=-1, keepdim=True) if of_mean else scores
        scores = scores if below is None else scores + below[part][rows][..., None]
        scores = scores.masked_fill(~parts[part].mask[rows][..., None], _HIDDEN_LOGIT)
        truth = parts[part].truth[rows][:, None].expand(-1, scores.shape[-1])
        return F.cross_entropy(scores, truth)

    return _fit(
        rankers,
        lambda rows: loss(0, rows, of_mean=False),
        lambda: loss(1, slice(None), of_mean=True),
        len(parts[0].truth),
    )
