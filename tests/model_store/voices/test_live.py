"""What came after training is added to the trained tables by the same formula, and nothing trained is changed."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import sparse

from model_store.voices.live import NEAR_SHRINKAGE, LiveItems, TokenCounts
from model_store.voices.past import ItemFacts
from model_store.voices.similar_titles import NUM_ALIKE, SimilarTitles
from model_store.voices.tables import KnownItems, Tables, normalised, row_sums
from training.items.likeness import likeness

TITLES = ["Jumbo bag toys", "Jumbo bag pink", "Lunch box dolly", "Lunch box retro", "Alone", "Set of tea cups"]
LATE = {8: "JUMBO BAG purple daisy", 9: "Jumbo shopper", 10: "Zzz", 7: "jumbo bag purple rose", 11: "Tea for one"}
V = len(TITLES) + 1  # the last title has no events
TABLES = ("near", "alike")


def trained_tables(seed: int = 0) -> dict[str, sparse.csr_matrix]:
    """Raw, as training counts them: token 6 and the token of a prompt's beginning have no row in `near`."""
    near = sparse.random(V, V, 0.5, "csr", random_state=seed, dtype=np.float32).toarray() * 9
    near[[0, 6]], near[:, [0, 6]] = 0, 0
    np.fill_diagonal(near, 0)
    alike = np.zeros((V, V), np.float32)
    alike[1:, 1:] = likeness(TITLES).toarray()
    return {"near": sparse.csr_matrix(near), "alike": sparse.csr_matrix(alike)}


def live_items(*, with_sums: bool = True) -> LiveItems:
    raw = trained_tables()
    facts = ItemFacts(
        np.array([0, 9, 4, 4, 2, 1, 0], np.float32),
        np.linspace(0.1, 0.4, V).astype(np.float32),
        np.linspace(1, 2, V).astype(np.float32),
    )
    known = KnownItems(facts, Tables({name: normalised(table) for name, table in raw.items()}))
    return LiveItems(known, row_sums(raw["near"]) if with_sums else None, enumerate(TITLES, start=1))


def dense(known: KnownItems, name: str) -> NDArray[np.float64]:
    """(V', V')"""
    size, table = known.num_tokens, TABLES.index(name)
    rows: NDArray[np.float64] = known.rows(np.full(size, table), np.arange(size)).toarray()
    assert not np.delete(rows, range(table * size, (table + 1) * size), axis=1).any(), "in the columns of another table"
    return rows[:, table * size : (table + 1) * size]


def counts(numbers: dict[int, float], pairs: dict[tuple[int, int], float]) -> TokenCounts:
    return TokenCounts(
        np.array(list(numbers), dtype=np.int64),
        np.array(list(numbers.values()), dtype=np.float64),
        np.array(list(pairs), dtype=np.int64).reshape(-1, 2),
        np.array(list(pairs.values()), dtype=np.float64),
    )


def check_is_distribution(known: KnownItems) -> None:
    for name in TABLES:
        sums = dense(known, name).sum(axis=1)
        np.testing.assert_allclose(sums[sums > 0], 1, rtol=1e-5)
        column = TABLES.index(name)
        np.testing.assert_array_equal(known.has_row[:, column], sums > 0)
    np.testing.assert_allclose(known.popularity.sum(), 1, rtol=1e-5)


def test_without_anything_new_it_is_what_was_trained() -> None:
    live = live_items()
    trained = live.known()
    live.add_titles({2: "a title that is known"})
    live.count(counts({}, {}))
    assert live.known() is trained


# ---- words


def test_a_new_title_is_near_those_that_share_its_words_and_they_are_near_it() -> None:
    live = live_items()
    before = dense(live.known(), "alike")
    live.add_titles(LATE)
    known = live.known()
    check_is_distribution(known)
    table = dense(known, "alike")
    assert known.num_tokens == 12
    assert set(np.flatnonzero(table[8])) == {1, 2, 7, 9} and table[8].argmax() == 7, "two share three words"
    assert table[8, 1] == table[8, 2] > table[8, 9]
    assert (table[[1, 2], 8] > 0).all() and not table[[3, 4, 5], 8].any()
    assert not table[10].any() and not known.has_row[10].any(), "shares no word with any"
    assert table[6].argmax() == 11, "one word of a single trained title"
    kept = table[1, :V] / np.where(before[1] > 0, before[1], 1)
    assert np.ptp(kept[before[1] > 0]) < 1e-6, "trained neighbours keep their proportions"
    np.testing.assert_array_equal(table[3, :V], before[3])
    np.testing.assert_array_equal(known.facts.return_rate[V:], known.facts.return_rate[0])


@given(st.permutations(list(LATE)), st.integers(1, 5))
def test_when_titles_come_makes_no_difference(order: list[int], size: int) -> None:
    one, other = live_items(), live_items()
    one.add_titles(LATE)
    for start in range(0, len(order), size):
        other.add_titles({token: LATE[token] for token in order[start : start + size]})
    np.testing.assert_allclose(dense(one.known(), "alike"), dense(other.known(), "alike"), rtol=1e-5)


def test_likeness_is_that_of_training_where_no_term_is_alone() -> None:
    """Training drops terms of single titles; here a new title may have them. Otherwise the cosines are equal."""
    words = ["red", "blue", "tea", "cup", "old", "new"]
    titles = [f"{one} {other}" for one in words for other in words]
    expected = likeness(titles).toarray()
    similar = SimilarTitles((token, title) for token, title in enumerate(titles, start=1) if token > 1)
    tokens, cosines = similar.add(1, titles[0])
    assert len(tokens) <= NUM_ALIKE
    found = np.zeros(len(titles))
    found[tokens - 1] = cosines
    assert set(np.flatnonzero(expected[0])) == set(np.flatnonzero(found))
    assert np.corrcoef(expected[0], found)[0, 1] > 0.9


def test_a_catalogue_without_titles_or_words() -> None:
    similar = SimilarTitles([])
    assert len(similar.add(1, "first")[0]) == 0
    assert similar.add(2, "first of all")[0].tolist() == [1]
    assert len(similar.add(3, "!!!")[0]) == 0
    assert SimilarTitles([(3, "one two")]).sums(np.array([3, 9]), sparse.csr_matrix(np.eye(2, 9))).tolist() == [0, 0]


# ---- counts


def test_rows_of_live_pairs_follow_the_formula_of_training() -> None:
    live = live_items()
    raw = trained_tables()["near"].toarray()
    numbers = {1: 2.0, 7: 3.0, 6: 1.5}
    pairs = {(1, 7): 2.0, (6, 7): 0.5, (1, 6): 1.0, (1, 2): 50.0}
    live.count(counts(numbers, pairs))
    known = live.known()
    check_is_distribution(known)
    expected = np.zeros((8, 8))
    expected[:V, :V] = raw
    popularity = np.array([0, 9 + 2, 4, 4, 2, 1, 1.5, 3.0])
    for (one, other), count in pairs.items():
        if (one, other) != (1, 2):  # the trained table knows both
            roots = np.sqrt(max(popularity[one], 1) * max(popularity[other], 1))
            expected[one, other] = expected[other, one] = count / (roots + NEAR_SHRINKAGE)
    sums = expected.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(dense(known, "near"), expected / np.where(sums > 0, sums, 1), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(known.popularity, popularity / popularity.sum(), rtol=1e-5)


def test_new_counts_replace_the_old_ones() -> None:
    live, fresh = live_items(), live_items()
    live.count(counts({7: 9.0}, {(1, 7): 5.0, (6, 7): 1.0}))
    for each in (live, fresh):
        each.count(counts({7: 1.0}, {(1, 7): 2.0}))
    np.testing.assert_array_equal(dense(live.known(), "near"), dense(fresh.known(), "near"))


@pytest.mark.parametrize("with_sums", [True, False])
def test_titles_and_counts_together(with_sums: bool) -> None:
    live = live_items(with_sums=with_sums)
    live.count(counts({8: 4.0}, {(3, 8): 4.0}))
    live.add_titles(LATE)
    known = live.known()
    check_is_distribution(known)
    assert dense(known, "near")[3, 8] > 0 and dense(known, "alike")[3, 8] == 0
    mixed = known.rows(np.array([0, 1, 1]), np.array([8, 8, 3])).toarray()
    expected = [np.append(dense(known, "near")[8], np.zeros(12)), *np.zeros((2, 24))]
    expected[1][12:], expected[2][12:] = dense(known, "alike")[8], dense(known, "alike")[3]
    np.testing.assert_array_equal(mixed, expected)
    assert dense(known, "near")[8].argmax() == 3
