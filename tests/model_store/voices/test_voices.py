"""Voices are distributions, memory is a separate term, baskets have no order, and a batch gives single answers."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import sparse

from model_store.errors import BundleCorrupt
from model_store.voices.candidates import NUM_CANDIDATES, find_candidates
from model_store.voices.past import EVENT_FEATURES, RETURN, Past
from model_store.voices.reasons import reasons, shares_of_events
from model_store.voices.tables import normalised, read_table, table_arrays
from model_store.voices.voices import Voices, all_scores
from tests.conftest import small_voices

NUM_ITEMS = 20
FORECAST = np.full((1, NUM_ITEMS + 1), 1 / (NUM_ITEMS + 1), dtype=np.float32)

events = st.lists(st.tuples(st.integers(0, 30), st.integers(1, NUM_ITEMS)), max_size=16)


def past_of(pairs: list[tuple[int, int]], now: int = 40) -> Past:
    """From pairs of day and token."""
    ordered = sorted(pairs, key=lambda pair: pair[0])
    days = np.array([day for day, _ in ordered], dtype=np.int64)
    return Past(np.array([token for _, token in ordered], dtype=np.int64), days * 86_400, now * 86_400)


def forecasts(count: int) -> NDArray[np.float32]:
    return np.repeat(FORECAST, count, axis=0)


@given(st.lists(events, min_size=1, max_size=4))
def test_the_mixtures_are_distributions(pasts: list[list[tuple[int, int]]]) -> None:
    """All rows of the ring have a neighbour, so no weight is lost."""
    mixtures = small_voices(NUM_ITEMS).mix(forecasts(len(pasts)), [past_of(pairs) for pairs in pasts])
    for mixture in (mixtures.window, mixtures.whole):
        np.testing.assert_allclose(mixture.sum(axis=1), 1, atol=1e-4)
        assert (mixture >= 0).all()


@given(st.lists(events, min_size=2, max_size=4))
def test_a_batch_gives_what_single_queries_give(pasts: list[list[tuple[int, int]]]) -> None:
    voices, given_pasts = small_voices(NUM_ITEMS), [past_of(pairs) for pairs in pasts]
    together = all_scores(voices.vote(forecasts(len(pasts)), given_pasts, [None] * len(pasts)))
    for row, past in enumerate(given_pasts):
        np.testing.assert_allclose(together[row], all_scores(voices.vote(FORECAST, [past], [None]))[0], atol=1e-4)


@given(events, st.randoms(use_true_random=False))
def test_the_order_inside_a_basket_means_nothing(pairs: list[tuple[int, int]], random: object) -> None:
    """As long as the whole past fits into the window, or the window ends between two baskets."""
    voices = small_voices(NUM_ITEMS, recent_length=16, past_length=16)
    unique = sorted(set(pairs))
    mixed = list(unique)
    random.shuffle(mixed)  # type: ignore[attr-defined]
    found = [voices.mix(FORECAST, [past_of(some)]).whole for some in (unique, mixed)]
    np.testing.assert_allclose(found[0], found[1], atol=1e-5)


@given(events)
def test_without_older_events_memory_adds_nothing(pairs: list[tuple[int, int]]) -> None:
    voices = small_voices(NUM_ITEMS, recent_length=16)
    found = find_candidates(voices.mix(FORECAST, [past_of(pairs)]), 0, None)
    assert found.older is None
    mixtures = voices.mix(FORECAST, [past_of(pairs)])
    np.testing.assert_allclose(mixtures.whole, mixtures.whole[:1])


@given(events, st.floats(0.05, 0.95))
def test_items_that_came_later_change_no_score_of_trained_ones(pairs: list[tuple[int, int]], share: float) -> None:
    """They take a share of the language model's forecast, which training did not know of."""
    voices, past = small_voices(NUM_ITEMS), past_of(pairs)
    later = np.full((1, 5), share / 5, dtype=np.float32)
    longer = np.concatenate([FORECAST * (1 - share), later], axis=1)
    allowed = np.arange(NUM_ITEMS + 1)
    expected, found = (all_scores(voices.vote(given, [past], [allowed])) for given in (FORECAST, longer))
    np.testing.assert_allclose(found[:, : NUM_ITEMS + 1], expected, atol=1e-3)


def test_older_events_change_the_scores() -> None:
    voices = small_voices(NUM_ITEMS)
    newest = [(30, 5), (31, 6), (32, 7)]
    short, long = (all_scores(voices.vote(FORECAST, [past_of(pairs)], [None])) for pairs in (newest, [(1, 9), *newest]))
    assert np.abs(short - long).max() > 1e-3


def test_events_beyond_the_length_of_a_past_are_not_read() -> None:
    voices = small_voices(NUM_ITEMS, past_length=5)
    newest = [(20 + day, 1 + day) for day in range(5)]
    found = [
        all_scores(voices.vote(FORECAST, [past_of(pairs)], [None])) for pairs in (newest, [(1, 9), (2, 14), *newest])
    ]
    np.testing.assert_array_equal(found[0], found[1])


@given(st.lists(st.lists(st.tuples(st.integers(0, 30), st.integers(1, NUM_ITEMS + 5)), max_size=16), max_size=3))
def test_every_known_event_of_a_past_is_in_exactly_one_half(pasts: list[list[tuple[int, int]]]) -> None:
    """The window has the newest events whatever their items are; items above `NUM_ITEMS` have no row in the tables."""
    read = [past_of(pairs) for pairs in pasts]
    window, older = small_voices(NUM_ITEMS, recent_length=3, past_length=10).describe(read)
    near = [half.can_vote[:, :, 0].numpy() for half in (window, older)]
    for row, past in enumerate(read):
        first = len(past.tokens) - 3
        places = [
            half.places[row, can_vote[row]].tolist() for half, can_vote in zip((window, older), near, strict=True)
        ]
        known = [place for place in range(max(0, first - 7), len(past.tokens)) if past.tokens[place] <= NUM_ITEMS]
        assert places == [[place for place in known if place >= first], [place for place in known if place < first]]


def test_an_item_comes_back_once_and_not_while_it_lies_in_the_basket() -> None:
    past = past_of([(1, 3), (2, 3), (2, 4), (40, 5)])  # item 5 is in the basket of the request
    voices = small_voices(NUM_ITEMS, recent_length=12)
    can_vote = voices.describe([past])[0].can_vote[0, :, voices.channels.index(RETURN)]
    by_event = dict(zip(zip(past.timestamps // 86_400, past.tokens, strict=True), can_vote.tolist(), strict=True))
    assert by_event == {(1, 3): False, (2, 3): True, (2, 4): True, (40, 5): False}
    never = small_voices(NUM_ITEMS, has_returns=False).describe([past])[0]
    assert not never.can_vote[..., -1].any()


def test_the_numbers_of_an_event() -> None:
    past = past_of([(10, 1), (20, 2), (20, 3), (40, 1)])
    found = small_voices(NUM_ITEMS, recent_length=4).describe([past])[0].events[0].numpy()
    number = {name: found[:, place] for place, name in enumerate(EVENT_FEATURES)}
    np.testing.assert_allclose(np.expm1(number["age_in_events"]), [3, 1, 1, 0], atol=1e-5)
    np.testing.assert_allclose(np.expm1(number["age_in_baskets"]), [2, 1, 1, 0], atol=1e-5)
    np.testing.assert_allclose(np.expm1(number["age_in_days"]), [30, 20, 20, 0], rtol=1e-5)
    assert number["is_in_basket"].tolist() == [0, 0, 0, 1]
    assert number["is_recent"].tolist() == [1, 1, 1, 1]
    assert number["is_latest"].tolist() == [0, 1, 1, 1]
    np.testing.assert_allclose(np.exp(number["count"]), [2, 1, 1, 2], rtol=1e-5)


@given(st.lists(st.integers(1, NUM_ITEMS), unique=True, max_size=NUM_ITEMS), events)
def test_candidates_are_among_the_allowed_items(allowed: list[int], pairs: list[tuple[int, int]]) -> None:
    mixtures = small_voices(NUM_ITEMS).mix(FORECAST, [past_of(pairs)])
    found = find_candidates(mixtures, 0, np.sort(np.array(allowed, dtype=np.int64)))
    assert sorted(allowed) == found.tokens.tolist(), "fewer items than candidates: all of them are ranked"
    assert len(found.tokens) <= 2 * NUM_CANDIDATES and np.isfinite(found.window).all()


def test_a_title_that_was_added_later_is_ranked_by_the_forecast() -> None:
    voices = small_voices(NUM_ITEMS)
    wider = np.append(FORECAST * 0.5, np.full((1, 1), 0.5, dtype=np.float32), axis=1)
    past = Past(np.array([NUM_ITEMS + 1, 3]), np.array([1, 2]), 3)
    scores = all_scores(voices.vote(wider, [past], [None]))
    assert scores.shape == (1, NUM_ITEMS + 2) and np.isfinite(scores).all()


def test_a_reason_names_the_event_behind_the_voice() -> None:
    """The neighbour of item 9 is item 10 (see `ring`), and only forecast and popularity give to it too."""
    voices = small_voices(NUM_ITEMS, recent_length=2)
    with torch.no_grad():
        voices.gates[0].overall.bias.fill_(-30.0)
        voices.gates[1].overall.bias.copy_(torch.tensor([0.0, -30.0]))
    voting = voices.vote(FORECAST, [past_of([(1, 9), (30, 5), (31, 6)])], [None])
    found = dict(zip((10, 6, 7), reasons(voting, 0, np.array([10, 6, 7])), strict=True))
    assert (found[10].voice, found[10].event) == ("near", 0)
    assert (found[7].voice, found[7].event) == ("near", 2)
    assert found[6].event in (1, 2) and all(0 < reason.share <= 1 for reason in found.values())
    np.testing.assert_allclose(shares_of_events(voting, 0, 3).sum(), 1, atol=1e-4)


def test_saved_voices_read_back(tmp_path: Path) -> None:
    written = small_voices(NUM_ITEMS)
    written.save(tmp_path / "voices.safetensors")
    read = Voices.load(tmp_path / "voices.safetensors", written.spec)
    past = past_of([(1, 9), (20, 3), (30, 5), (31, 6)])
    before, after = (all_scores(voices.vote(FORECAST, [past], [None])) for voices in (written, read))
    np.testing.assert_allclose(before, after, atol=1e-3)


@pytest.mark.parametrize("content", [None, b"", b"not voices"])
def test_a_missing_or_broken_file_is_a_corrupt_bundle(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "voices.safetensors"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(BundleCorrupt):
        Voices.load(file, small_voices(NUM_ITEMS).spec)


def test_tables_are_distributions_and_read_back() -> None:
    table = normalised(sparse.csr_matrix(np.array([[0, 3, 1], [0, 0, 0], [2, 0, 0]], dtype=np.float32)))
    np.testing.assert_allclose(table.toarray(), np.array([[0, 0.75, 0.25], [0, 0, 0], [1, 0, 0]]))
    arrays = table_arrays("near", table)
    np.testing.assert_array_equal(read_table("near", arrays).toarray(), table.toarray())
    arrays["near.indices"] = np.array([0, 1, 5], dtype=np.int32)
    with pytest.raises(ValueError, match="disagree"):
        read_table("near", arrays)
