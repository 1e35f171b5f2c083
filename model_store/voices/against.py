"""Events that speak against items: how far they lower the scores of these items and of items near them.

In: tokens with weights, and candidates. Out: what is subtracted from the log-probability of each candidate. An event of
weight −1 takes `NATS` from its own item and from the item nearest to it, and less from others in proportion to how near
they are, in the table where they are nearest. Nothing here is learned.
"""

import numpy as np
from numpy.typing import NDArray

from model_store.voices.past import Against
from model_store.voices.tables import KnownItems

NATS = 2.0
_TABLES = ("near", "alike")  # what goes together, and similar titles


def lowered(known: KnownItems, against: Against, candidates: NDArray[np.int64]) -> NDArray[np.float32]:
    """(c,) what is subtracted from the scores of the tokens `candidates` (c,)."""
    inside = against.tokens < known.num_tokens
    tokens, weights = against.tokens[inside], against.weights[inside]
    nearness = (tokens[:, None] == candidates[None, :]).astype(np.float32)  # (a, c)
    for table in (known.tables.names.index(name) for name in _TABLES if name in known.tables.names):
        rows = known.rows(np.full(len(tokens), table), tokens)
        found = rows[:, table * known.num_tokens + np.minimum(candidates, known.num_tokens - 1)].toarray()
        found[:, candidates >= known.num_tokens] = 0
        largest = np.asarray(rows.max(axis=1).todense()).reshape(-1, 1) if len(tokens) else np.zeros((0, 1))
        np.maximum(nearness, found / np.maximum(largest, np.finfo(np.float32).tiny), out=nearness)
    total: NDArray[np.float32] = (NATS * (weights @ nearness)).astype(np.float32)
    return total
