"""Titles of a series are near each other; words of very many titles do not count."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_store.voices.similar_titles import NUM_ALIKE
from training.items import likeness as module
from training.items.likeness import likeness, tf_idf

TITLES = ["The Hollow Crown 1", "The Hollow Crown 2", "The Cookbook", "A Hollow Tree", "Zebra"]


def test_a_volume_is_nearest_to_the_next_one() -> None:
    table = likeness(TITLES).toarray()
    assert table[0].argmax() == 1 and table[1, 0] > table[1, 3] > 0, (
        "a shared run of words counts more than a shared word"
    )
    assert not table[4].any(), "no title shares a word with it"
    assert not table.diagonal().any(), "a title is its own neighbour"


@pytest.mark.parametrize(
    "titles",
    [
        ["三体第一部", "三体第二部", "红楼梦"],
        ["हिन्दी की किताब", "हिन्दी का घर", "नया दिन"],
        ["cafe\u0301 noir", "café blanc", "thé vert"],
        ["คนไทย", "คนจีน", "แมว"],
    ],
)
def test_titles_in_other_scripts_have_words(titles: list[str]) -> None:
    table = likeness(titles).toarray()
    assert table[0, 1] > 0 and table[0, 2] == 0, titles


def test_upper_case_and_marks_do_not_matter() -> None:
    table = likeness(["Dune: Messiah", "DUNE (messiah)", "Ärger im Büro", "ärger", "x"]).toarray()
    assert table[0, 1] == pytest.approx(1) and table[2, 3] > 0


def test_a_word_in_too_many_titles_links_no_titles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_TITLES", 3)
    assert likeness(["the a", "the b", "the c"]).nnz == 6
    assert likeness(["the a", "the b", "the c", "the d"]).nnz == 0


def test_only_the_nearest_are_kept() -> None:
    table = likeness([f"word {'x ' * (number % 7)}{number}" for number in range(3 * NUM_ALIKE)])
    assert np.diff(table.indptr).max() == NUM_ALIKE


@given(st.lists(st.text("ab cd", max_size=12), min_size=1, max_size=30, unique=True), st.integers(1, 10))
def test_block_size_changes_nothing(titles: list[str], block: int) -> None:
    whole = likeness(titles).toarray()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_BLOCK", block)
        found = likeness(titles).toarray()
    np.testing.assert_allclose(found, whole, atol=1e-6)
    assert whole.min(initial=0) >= 0 and whole.max(initial=0) <= 1 + 1e-5
    np.testing.assert_allclose(whole, whole.T, atol=1e-6, err_msg="with so few titles all neighbours are kept")


def test_rows_have_length_one_or_zero() -> None:
    lengths = np.sqrt(np.asarray(tf_idf(TITLES).power(2).sum(axis=1)).ravel())
    np.testing.assert_allclose(lengths, [1, 1, 1, 1, 0], atol=1e-6)
