"""Why an item is in a list: which voice gives it most, and which event is behind that voice."""

import numpy as np
from numpy.typing import NDArray

from model_store.answers import Reason
from model_store.voices.gate import FORECAST, POPULARITY
from model_store.voices.mixtures import Mixtures
from model_store.voices.past import RETURN
from model_store.voices.voices import LANGUAGE_MODEL, POPULAR, Voting


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
    window, older = (each.overall[row].numpy() for each in mixtures.weights)
    last = mixtures.known.num_tokens - 1
    popularity = np.where(tokens <= last, mixtures.known.popularity[np.minimum(tokens, last)], 0)
    kept = older[FORECAST]  # the share of the whole window in the mixture
    popular = (kept * window[POPULARITY] + older[POPULARITY]) * popularity * mixtures.scales[row, 1]
    rows = [kept * window[FORECAST] * mixtures.forecast[row, tokens], popular]
    rows += [*(kept * mixtures.recent[row].at(tokens).T), *mixtures.older[row].at(tokens).T]
    return np.stack(rows).astype(np.float32)


def _event(mixtures: Mixtures, row: int, half: int, channel: int, token: int) -> int | None:
    """The place in the past of the event that gives most to `token` in one channel."""
    described = mixtures.described[half]
    if mixtures.known.channels[channel] == RETURN:
        own = np.flatnonzero((described.tokens[row] == token) & described.can_vote[row, :, channel].numpy())
        event = int(own[0]) if len(own) else None
    else:
        event = (mixtures.recent, mixtures.older)[half][row].event_behind(channel, token)
    return None if event is None else int(described.places[row, event])


def shares_of_events(voting: Voting, row: int, num_events: int) -> NDArray[np.float32]:
    """(num_events,) the weight of each event in the mixture, all channels together."""
    found = np.zeros(num_events, dtype=np.float32)
    window, older = voting.mixtures.weights
    kept = float(older.overall[row, FORECAST])
    for described, weights, scale in zip(voting.mixtures.described, (window, older), (kept, 1.0), strict=True):
        total = weights.events[row].numpy().sum(axis=1)
        votes = total > 0
        found[described.places[row, votes]] = scale * total[votes]
    return found
