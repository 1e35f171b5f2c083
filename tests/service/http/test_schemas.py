"""Which requests are valid, and that an error report never repeats a value of the caller."""

import json
import math
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from service.http.fields import field_errors, reason
from service.http.requests.bodies import RecommendRequest
from service.http.schemas.interactions import Interaction
from service.http.schemas.items import ItemBody, ItemPatch

ODD_BUT_FINE = [
    "a b",
    '{"x": [1]}',
    'it\'s "quoted"',
    "<|im_start|>system",
    "日本語",
    "👩‍👩‍👧",
    "a/b?c=%20#d",
    "\\n",
    "x" * 256,
]
REFUSED_IDS = [
    "",
    " ",
    "a\nb",
    "a\x00",
    "\x1b[31m",
    "a\u2028b",
    "\x85",
    "\ud800",
    "x" * 257,
    7,
    None,
    ["a"],
    b"a",
]
NUMBERS = st.floats() | st.integers() | st.booleans()
JSON = st.recursive(st.none() | NUMBERS | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner))


def refusal(model: type[Any], body: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        model.model_validate(body)
    return reason(caught.value)


def nested(depth: int) -> dict[str, Any]:
    found: dict[str, Any] = {"a": 1}
    for _ in range(depth):
        found = {"op": "not", "filter": found}
    return found


def wide(parts: int) -> dict[str, Any]:
    """A filter of so many parts, its own and those of its parts counted."""
    sizes = [min(41, parts - 1 - start) for start in range(0, parts - 1, 41)]
    return {"op": "and", "filters": [{"op": "or", "filters": [{"a": 1}] * (size - 1)} for size in sizes]}


def interaction(**changes: Any) -> dict[str, Any]:
    return {"user_id": "u", "item_id": "i", "timestamp": 1_700_000_000} | changes


@pytest.mark.parametrize("text", ODD_BUT_FINE)
def test_ids_may_be_any_visible_text(text: str) -> None:
    assert Interaction.model_validate(interaction(user_id=text, item_id=text)).user_id == text


@pytest.mark.parametrize("text", REFUSED_IDS)
def test_ids_without_visible_text_are_refused(text: Any) -> None:
    assert refusal(Interaction, interaction(item_id=text)).startswith("item_id: ")


def test_the_report_speaks_of_control_characters() -> None:
    assert "control characters" in refusal(Interaction, interaction(user_id="a\tb"))


def test_milliseconds_get_a_hint() -> None:
    assert "milliseconds" in refusal(Interaction, interaction(timestamp=1_700_000_000_000))
    soon = int(time.time()) + 1000
    assert "future" in (text := refusal(Interaction, interaction(timestamp=soon))) and "milliseconds" not in text


@pytest.mark.parametrize("timestamp", [-1, 1.5, "1700000000", True, math.nan, 10**400, None])
def test_timestamps_are_whole_seconds(timestamp: Any) -> None:
    assert refusal(Interaction, interaction(timestamp=timestamp)).startswith("timestamp: ")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, "5", True])
def test_values_are_finite_numbers(value: Any) -> None:
    assert refusal(Interaction, interaction(value=value)).startswith("value: ")
    assert "filter" in refusal(RecommendRequest, {"filter": {"a": math.inf}})


def test_a_recommend_request_may_be_empty() -> None:
    request = RecommendRequest.model_validate({})
    assert (request.user_id, request.k, request.exclude_seen, request.explain) == (None, 10, None, True)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("k", 0), ("k", 101), ("k", "10"), ("k", 10.0), ("k", True), ("exclude_seen", 1), ("deadline_ms", 0),
        ("timestamp", -1), ("timestamp", 1.5), ("timestamp", 10**12),
        ("recent", [{"item_id": "i"}] * 101), ("recent", [{"item": "i"}]), ("candidates", []),
        ("candidates", ["i"] * 1001),
        ("filter", {"a": {"b": 1}}), ("filter", {"a": None}), ("filter", {str(n): 1 for n in range(21)}),
        ("filter", {"": 1}), ("filter", {"a": [[1]]}), ("unknown", 1), ("filter", {"op": "eq"}),
        ("filter", {"op": "gt", "attribute": "a", "value": True}), ("filter", {"op": "range", "attribute": "a"}),
        ("filter", {"op": "range", "attribute": "a", "gt": 1, "gte": 2}), ("filter", {"op": "and", "filters": []}),
        ("filter", {"op": "range", "attribute": "a", "gt": 1, "lt": "2"}), ("filter", nested(8)), ("filter", wide(101)),
        ("boosts", [{"filter": {"a": 1}}]), ("boosts", [{"filter": {"a": 1}, "factor": 2.0, "add": 1.0}]),
        ("boosts", [{"filter": {"a": 1}, "factor": 0.0}]), ("caps", [{"attribute": "a", "at_most": 0}]),
        ("diversity", 1.5), ("rotation", {"rate": 2}), ("exclude", ["i"] * 1001),
    ],
)  # fmt: skip
def test_a_recommend_request_is_strict(field: str, value: Any) -> None:
    assert refusal(RecommendRequest, {field: value}).startswith(field)


@pytest.mark.parametrize(
    "body",
    [
        {"pins": [{"item_id": "i1", "position": 11}]},
        {"pins": [{"item_id": "i1", "position": 1}, {"item_id": "i1", "position": 2}]},
        {"pins": [{"item_id": "i1", "position": 1}, {"item_id": "i2", "position": 1}]},
        {"cursor": "x", "user_id": "u"},
    ],
)
def test_options_that_contradict_each_other_are_refused(body: dict[str, Any]) -> None:
    assert refusal(RecommendRequest, body)


def test_filters_up_to_the_limits_are_taken() -> None:
    for wanted in (nested(7), wide(100)):
        RecommendRequest.model_validate({"filter": wanted})


def test_a_filter_takes_values_and_lists_of_them() -> None:
    wanted = {"genre": ["noir", "drama"], "year": 1999, "score": 4.5, "new": False}
    assert RecommendRequest.model_validate({"filter": wanted}).filter == wanted


def test_titles_are_cleaned_and_never_empty() -> None:
    assert ItemBody(title="  A\n B\u200b ").title == "A B"
    assert refusal(ItemBody, {"title": "\n"}).startswith("title: ")


def test_a_patch_must_change_a_field_that_it_may_change() -> None:
    assert ItemPatch.model_validate({"available_until": None}).model_fields_set == {"available_until"}
    for body in ({}, {"title": None}, {"hidden": None}):
        assert "must change a field" in refusal(ItemPatch, body)


@given(JSON, st.text(st.characters(exclude_categories=()), min_size=1, max_size=5))
def test_every_json_value_gets_an_error_report(value: Any, name: str) -> None:
    bodies = ({"user_id": value}, {name: value}, {"filter": {name: value}}, {"recent": value}, value)
    for body in bodies:
        try:
            RecommendRequest.model_validate(body)
        except ValidationError as error:
            named = [each.model_dump() for each in field_errors(error.errors())]
            assert json.dumps(named, allow_nan=False).isascii() and named


@given(st.text(min_size=12, max_size=40).filter(lambda text: len(set(text)) > 6))
def test_refused_values_are_not_repeated(secret: str) -> None:
    for body in (
        interaction(timestamp=secret),
        interaction(value=secret),
        interaction(user_id=secret + "\n"),
        secret,
    ):
        assert secret not in refusal(Interaction, body)
