"""Why an item is in a list: which voice gives it most, and which event is behind that voice."""

import numpy as np
from numpy.typing import NDArray

from model_store.answers import Reason
from model_store.voices.candidates import votes_at
from model_store.voices.gate import FORECAST, POPULARITY
from model_store.voices.mixtures import Mixtures
from model_store.voices.past import RETURN
from model_store.voices.voices import Voting

LANGUAGE_MODEL, POPULAR = "language_model", "popularity"


def reasons(voting: Voting, row: int, tokens: NDArray[np.int64]) -> list[Reason]:
    """One for each of `tokens`, for query `row`. Shares are of the mixture with older events."""
    mixtures, channels = voting.mixtures, voting.mixtures.known.channels
    given = _given(mixtures, row, tokens)  # (voices, tokens)
    best = given.argmax(axis=0)
    totals = np.maximum(given.sum(axis=0), np.finfo(np.float32).tiny)
    found = []
    for place, voice in enumerate(best.tolist()):
        share = round(float(given[voice, place] / totals[place]), 4)
        if voice in (FORECAST, POPULARITY):
            found.append(Reason((LANGUAGE_MODEL, POPULAR)[voice], share, None))
        else:
            half, channel = divmod(voice - 2, len(channels))
            found.append(Reason(channels[channel], share, _event(mixtures, row, half, channel, int(tokens[place]))))
    return found


def _given(mixtures: Mixtures, row: int, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
    """(2 + 2·C, tokens) what language model, popularity, and the channels of the window and of older events give."""
    window, older = ({name: part[row].numpy() for name, part in each._asdict().items()} for each in mixtures.weights)
    last = mixtures.known.num_tokens - 1
    popularity = np.where(tokens <= last, mixtures.known.popularity[np.minimum(tokens, last)], 0)
    kept = older["overall"][FORECAST]  # the share of the whole window in the mixture
    popular = (kept * window["overall"][POPULARITY] + older["overall"][POPULARITY]) * popularity
    rows = [kept * window["overall"][FORECAST] * mixtures.forecast[row, tokens], popular]
    recent, older_votes = (votes_at(mixtures, part[row], tokens).T for part in (mixtures.recent, mixtures.older))
    rows += [*(kept * recent), *older_votes]
    return np.stack(rows).astype(np.float32)


def _event(mixtures: Mixtures, row: int, half: int, channel: int, token: int) -> int | None:
    """The place in the past of the event that gives most to `token` in one channel."""
    described, weights = mixtures.described[half], mixtures.weights[half].events[row, :, channel].numpy()
    own = described.tokens[row, : len(weights)]
    name = mixtures.known.channels[channel]
    near = own == token if name == RETURN else _column(mixtures, name, own, token)
    given = weights * near
    if not given.any():
        return None
    return int(described.places[row, given.argmax()])


def _column(mixtures: Mixtures, name: str, own: NDArray[np.int64], token: int) -> NDArray[np.float32]:
    found: NDArray[np.float32] = mixtures.known.table(name)[own][:, [token]].toarray()[:, 0]
    return found


def shares_of_events(voting: Voting, row: int, num_events: int) -> NDArray[np.float32]:
    """(num_events,) the weight of each event in the mixture, all channels together."""
    found = np.zeros(num_events, dtype=np.float32)
    window, older = voting.mixtures.weights
    kept = float(older.overall[row, FORECAST])
    for described, weights, scale in zip(voting.mixtures.described, (window, older), (kept, 1.0), strict=True):
        total = weights.events[row].sum(dim=1).numpy()
        np.add.at(found, described.places[row][total > 0], scale * total[total > 0])
    return found
