"""New items among the candidates: what is not known of them yet is taken from the items with the nearest titles.

The networks that rank have learned that an item without a vote of behaviour is no good choice. That nobody took a new
item yet says nothing: so a new item is expected to be as likely as the items of training whose titles are nearest to
its own, and the more events it has, the less it counts what these say:

    p(new) = max( own, (PRIOR · mean_j p(j) + n · own) / (PRIOR + n) )

j runs over the nearest titles that may be shown, weighted by their cosine; n is the number of its events. Without new
items nothing changes.
"""

import numpy as np
from numpy.typing import NDArray

from model_store.voices.tables import KnownItems

ALIKE = "alike"
PRIOR, NUM_NEAREST = 10.0, 10  # events; titles
_NUM_BEST, _MOST_ADDED = 20, 50
_LEAST = 1e-30  # inside the logarithm


def with_newcomers(
    known: KnownItems, tokens: NDArray[np.int64], mixture: NDArray[np.float32], allowed: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Candidates `tokens` (c,) with new items of `allowed` (a,) whose titles are like those of the best candidates.

    `mixture` (V',); `tokens` and `allowed` ascend, and so does the result.
    """
    if ALIKE not in known.tables.names or known.num_tokens == known.num_trained:
        return tokens
    best = tokens[np.argsort(-mixture[tokens], kind="stable")[:_NUM_BEST]]
    rows = (known.added_row(ALIKE, token) for token in best.tolist())
    found = dict.fromkeys(
        token for row in rows if row is not None for token in row.tokens.tolist() if token >= known.num_trained
    )
    new = np.fromiter(found, dtype=np.int64, count=len(found))[:_MOST_ADDED]
    return np.union1d(tokens, new[np.isin(new, allowed)])


def inherited(
    known: KnownItems,
    tokens: NDArray[np.int64],
    scores: NDArray[np.float32],
    allowed: NDArray[np.int64] | None,
) -> NDArray[np.float32]:
    """`scores` (c,), log p of the candidates `tokens` (c,), which ascend, with those of new items as above.

    `allowed` (a,): the tokens that may be shown, ascending; None for all.
    """
    if ALIKE not in known.tables.names or not len(tokens) or tokens[-1] < known.num_trained:
        return scores
    found = scores.copy()
    for place in np.flatnonzero(tokens >= known.num_trained).tolist():
        row = known.added_row(ALIKE, int(tokens[place]))
        if row is None:
            continue
        counts = row.tokens < known.num_trained
        if allowed is not None:
            counts &= np.isin(row.tokens, allowed)
        near = np.flatnonzero(counts)
        near = near[np.argsort(-row.values[near], kind="stable")[:NUM_NEAREST]]
        if not len(near):
            continue
        places = np.minimum(tokens.searchsorted(row.tokens[near]), len(tokens) - 1)
        likely = np.where(tokens[places] == row.tokens[near], np.exp(scores[places]), 0.0)
        expected = float(np.average(likely, weights=row.values[near]))
        own, num_events = float(np.exp(scores[place])), float(known.facts.popularity[tokens[place]])
        blended = (PRIOR * expected + num_events * own) / (PRIOR + num_events)
        found[place] = np.log(max(own, blended, _LEAST))
    return found
