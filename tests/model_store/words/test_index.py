"""The hybrid index finds by words, by vectors and by what people asked; it survives a round trip."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_store.errors import BundleCorrupt
from model_store.words.encoders import LsaEncoder, load_encoder
from model_store.words.index import largest
from model_store.words.lexical import Lexicon
from model_store.words.texts import item_text, query_terms, whole, words_of
from training.words.encoding import lsa_encoder

TEXTS = [
    item_text("Blue Train", {"style": ["hard bop", "jazz"], "year": 1957}, [("late night jazz", 3)]),
    item_text("Pink Moon", {"style": "folk"}, [("quiet folk", 2), ("late night", 1)]),
    item_text("Kind of Blue", {"style": "jazz"}),
    item_text("!!!", {}),
]


def lexicon() -> Lexicon:
    return Lexicon.build([text.terms() for text in TEXTS])


def test_words_find_titles_attributes_and_queries() -> None:
    scores = lexicon().scores(query_terms("pink moon"))
    assert scores.argmax() == 1 and (scores[[0, 2, 3]] == 0).all()
    assert lexicon().scores(query_terms("late night jazz")).argmax() == 0
    assert not lexicon().scores(query_terms("nothing like it")).any()


def test_a_lexicon_of_saved_arrays_gives_equal_scores() -> None:
    made = lexicon()
    again = Lexicon.from_arrays(made.arrays(), made.terms(), len(TEXTS))
    for query in ("blue", "jazz", "late night jazz", "quiet"):
        assert np.array_equal(again.scores(query_terms(query)), made.scores(query_terms(query)))


@given(st.text(max_size=40))
def test_words_do_not_depend_on_case_and_never_meet_whole_queries(text: str) -> None:
    assert words_of(text.casefold()) == words_of(text)
    assert whole(text) not in words_of(text)
    assert set(words_of(text)) < set(query_terms(text)) or not words_of(text)


def test_chinese_signs_are_words() -> None:
    assert words_of("深夜 Jazz") == ["深", "夜", "jazz"]


def test_similar_texts_have_near_vectors_and_unknown_words_none(tmp_path: Path) -> None:
    texts = [f"{a} {b}" for a in ("jazz bop horn", "folk guitar quiet") for b in ("night", "day", "rain", "sun")]
    encoder = lsa_encoder(texts, size=4)
    vectors = encoder.encode(["jazz horn", "bop", "folk guitar", "zzz"])
    assert np.allclose(np.linalg.norm(vectors[:3], axis=1), 1, atol=1e-5)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.3
    assert not vectors[3].any()
    encoder.save(tmp_path / "encoder")
    again = load_encoder(tmp_path / "encoder")
    assert isinstance(again, LsaEncoder)
    assert np.array_equal(again.encode(texts), encoder.encode(texts))


def test_a_broken_encoder_is_named(tmp_path: Path) -> None:
    with pytest.raises(BundleCorrupt, match="not a text encoder"):
        load_encoder(tmp_path)


@given(st.lists(st.integers(-3, 5), max_size=20), st.integers(1, 25))
def test_largest_are_positive_and_at_least_the_others(values: list[int], count: int) -> None:
    array = np.array(values, dtype=np.float32)
    rows = largest(array, count)
    expected = sorted((value for value in values if value > 0), reverse=True)[:count]
    assert sorted(array[rows].tolist(), reverse=True) == expected
