"""The order, identity and text of events, which training and serving must compute alike in every version."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_store.text.history import clean_title, derived_event_id, tie_key, window_ending_at


@given(st.text() | st.text("e\u0301\u00ad\u200d\u200b \u1100\u1161"))
def test_cleaning_is_idempotent_and_leaves_one_visible_line(text: str) -> None:
    title = clean_title(text)
    assert clean_title(title) == title
    assert title == title.strip() and "  " not in title and len(title.splitlines()) <= 1
    visible = title.replace("\u200c", "").replace("\u200d", "")  # joiners affect the characters around them
    assert not any(unicodedata.category(char) in {"Cc", "Cf", "Cs", "Zl", "Zp"} for char in visible)


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ("Cafe\u0301", "Café"),
        ("Cafe\u00ad\u0301", "Café"),
        (" a\n\tb ", "a b"),
        ("\u200b", ""),
        ("a\u202eb", "a b"),
        ("\ud800", ""),
        ("日本", "日本"),
    ],
)
def test_clean_title_of_examples(text: str, title: str) -> None:
    assert clean_title(text) == title


def test_hashes_never_change() -> None:
    """Stores in use contain these values: a change would reorder histories and duplicate events."""
    assert tie_key("u1", "i1") == "25fbba4ef06622a2"
    assert derived_event_id("u1", "i1", 5, "view") == "c457697363b1ccb8f04f9f94c31f8019"


@given(st.text(), st.text())
def test_any_id_can_be_hashed(user_id: str, item_id: str) -> None:
    assert len(tie_key(user_id, item_id)) == 16
    assert len(derived_event_id(user_id, item_id, 0, "view")) == 32


def test_events_that_differ_in_one_fact_are_different_events() -> None:
    facts = [
        ("u", "i", 1, "view"),
        ("v", "i", 1, "view"),
        ("u", "j", 1, "view"),
        ("u", "i", 2, "view"),
        ("u", "i", 1, "buy"),
    ]
    assert len({derived_event_id(*fact) for fact in facts}) == len(facts), "two events have one id"


@given(st.lists(st.integers(), min_size=1, max_size=12), st.integers(1, 5), st.data())
def test_a_window_ends_with_its_event(history: list[int], recent_length: int, data: st.DataObject) -> None:
    position = data.draw(st.integers(0, len(history) - 1))
    window = window_ending_at(history, position, recent_length)
    assert len(window) == min(position + 1, recent_length)
    assert list(window) == history[: position + 1][-recent_length:]
