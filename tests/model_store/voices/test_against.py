"""Weights of events scale their votes; events against items lower these items and those near them, and nothing else."""

import numpy as np
import pytest
import torch
from scipy import sparse

from model_store.manifest import VoicesSpec
from model_store.voices.against import NATS, lowered
from model_store.voices.past import Against, ItemFacts, Past
from model_store.voices.tables import normalised
from model_store.voices.voices import Voices

SIZE = 6


def make_voices() -> Voices:
    """Token 1 is nearest to 2, less to 3; 4 and 5 are near each other."""
    near = np.zeros((SIZE, SIZE))
    near[1, [2, 3]], near[2, 1], near[3, 1], near[4, 5], near[5, 4] = (4.0, 1.0), 4.0, 1.0, 2.0, 2.0
    facts = ItemFacts(*(np.full(SIZE, value, dtype=np.float32) for value in (5.0, 0.1, 1.0)))
    spec = VoicesSpec(tables=("near",), recent_length=3, past_length=9, has_returns=False)
    torch.manual_seed(0)
    return Voices(spec, facts, {"near": normalised(sparse.csr_matrix(near))})


def past(tokens: list[int], weights: list[float] | None = None, against: Against | None = None) -> Past:
    own = None if weights is None else np.array(weights, dtype=np.float32)
    return Past(np.array(tokens, dtype=np.int64), np.arange(len(tokens)), 100, own, against)


def scores(voices: Voices, own: Past) -> np.ndarray:
    forecast = np.full((1, SIZE), 1 / SIZE, dtype=np.float32)
    voting = voices.vote(forecast, [own], [None])
    assert voting.candidates[0].tokens.tolist() == list(range(SIZE))
    return voting.scores[0]


def against(*pairs: tuple[int, float]) -> Against:
    tokens, weights = zip(*pairs, strict=True)
    return Against(np.array(tokens), np.array(weights, dtype=np.float32))


def test_weights_of_one_are_no_weights() -> None:
    voices = make_voices()
    for tokens in ([], [1], [1, 4, 5, 2, 1]):
        np.testing.assert_array_equal(scores(voices, past(tokens)), scores(voices, past(tokens, [1.0] * len(tokens))))


def test_a_weight_scales_the_votes_of_its_event() -> None:
    voices = make_voices()
    forecast = np.full((1, SIZE), 1 / SIZE, dtype=np.float32)

    def near(weights: list[float] | None) -> float:
        return float(voices.mix(forecast, [past([4, 1], weights)]).recent[0].by_channel[0, 2])

    assert near([1.0, 0.25]) == pytest.approx(near(None) / 4)
    assert near([0.25, 1.0]) == pytest.approx(near(None)), "the weight of one event changed the votes of another"


def test_the_item_and_what_is_near_it_sink_and_nothing_else_moves() -> None:
    voices = make_voices()
    moved = scores(voices, past([4])) - scores(voices, past([4], against=against((1, 1.0))))
    np.testing.assert_allclose(moved, [0, NATS, NATS, NATS / 4, 0, 0], rtol=1e-5, atol=1e-6)
    twice = scores(voices, past([4])) - scores(voices, past([4], against=against((1, 0.5), (2, 2.0))))
    np.testing.assert_allclose(twice[[1, 2]], [2.5 * NATS, 2.5 * NATS], rtol=1e-5)


def test_a_user_in_a_batch_is_answered_as_alone() -> None:
    voices = make_voices()
    pasts = [past([4, 1], [0.5, 2.0]), past([1]), past([], against=against((4, 1.0))), past([5, 2], [1.0, 0.25])]
    forecast = np.full((len(pasts), SIZE), 1 / SIZE, dtype=np.float32)
    together = voices.vote(forecast, pasts, [None] * len(pasts)).scores
    for own, found in zip(pasts, together, strict=True):
        np.testing.assert_allclose(found, scores(voices, own), rtol=1e-5, atol=1e-6)


def test_tokens_that_the_tables_do_not_know_are_nobodys_neighbours() -> None:
    known = make_voices().known
    assert lowered(known, against((99, 1.0)), np.array([1, 2, 98])).tolist() == [0, 0, 0]
    assert lowered(known, against((1, 1.0)), np.array([99])).tolist() == [0]
