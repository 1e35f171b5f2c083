"""Types of events in training: what is learned from is what serving would read; without types nothing changes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from model_store.event_types import EventTypes, TypeRule
from training.data.dataset import DataError, Dataset, clean_dataset, load_dataset, save_dataset
from training.data.splits import Split, Target, leave_one_out
from training.items.channels import TrainEvents, item_facts, near_items
from training.items.pasts import Pasts
from training.prepare import main
from training.run.inputs import fingerprint

ITEMS = pl.DataFrame({"item_id": list("abcdefgh"), "title": [f"Title {name}" for name in "abcdefgh"]})


def dataset(events: list[tuple[str, str, int, str | None, float | None]], types: EventTypes | None = None) -> Dataset:
    frame = pl.DataFrame(events, schema=["user_id", "item_id", "timestamp", "type", "rating"], orient="row")
    cleaned, _ = clean_dataset("typed", frame, ITEMS)
    return cleaned if types is None else Dataset(cleaned.name, cleaned.interactions, cleaned.items, None, types)


def split_of(data: Dataset) -> Split:
    return leave_one_out(data, min_item_count=1, min_user_length=3, min_earlier=1)


TYPED = [
    ("u", "a", 1, "purchase", None), ("u", "b", 2, "view", None), ("u", "h", 3, "dislike", None),
    ("u", "c", 4, "rating", 5.0), ("u", "g", 5, "rating", 1.0), ("u", "f", 6, "impression", None),
    ("u", "d", 7, "play", None), ("u", "e", 8, "cart", None), ("v", "a", 1, None, None), ("v", "b", 2, "", None),
    ("v", "c", 3, "purchase", None),
]  # fmt: skip


def test_histories_are_the_events_of_interest_and_targets_are_among_them() -> None:
    split = split_of(dataset(TYPED))
    names = np.array(split.item_ids)
    assert names[split.histories[0].items].tolist() == list("abcde")
    assert [names[split.histories[t.user].items[t.position]] for t in split.test] == ["e", "c"]
    typed = split.histories[0].typed
    assert typed is not None and typed.weights.tolist() == [1.0, 0.25, 1.0, 0.5, 0.5]
    assert split.popularity[split.item_ids.index("a")] == 2


def test_a_past_carries_weights_and_what_speaks_against_items() -> None:
    split = split_of(dataset(TYPED))
    pasts = Pasts(split, np.arange(len(split.item_ids)), length=9)
    past = pasts.past(Target(0, 4))
    assert past.weights is not None and past.weights.tolist() == [1.0, 0.25, 1.0, 0.5]
    assert "h" not in split.item_ids and past.against is None, "an item that nobody wanted is no item of the split"
    both = split_of(dataset([*TYPED, ("v", "h", 4, "purchase", None), ("v", "g", 5, "purchase", None)]))
    against = Pasts(both, np.arange(len(both.item_ids)), length=9).past(Target(0, 3)).against
    assert against is not None
    assert [both.item_ids[token] for token in against.tokens] == ["h", "g"] and against.weights.tolist() == [1.0, 1.0]


def test_what_is_hidden_is_what_is_seen_at_the_time() -> None:
    split = split_of(dataset([*TYPED, ("v", "h", 4, "purchase", None), ("v", "g", 5, "purchase", None)]))
    hidden = split.histories[0].hidden(4, hides_seen=True)
    assert {split.item_ids[item] for item in hidden} == set("achgd"), "views and impressions do not hide"
    late = split.histories[0].hidden(4, hides_seen=False)
    assert {split.item_ids[item] for item in late} == {"h", "g"}, "what the user disliked"


def test_without_types_nothing_changes_and_types_that_count_fully_change_no_number() -> None:
    plain = pl.DataFrame(TYPED, schema=["user_id", "item_id", "timestamp", "type", "rating"], orient="row")
    untyped, _ = clean_dataset("typed", plain.drop("type"), ITEMS)
    full, _ = clean_dataset("typed", plain.with_columns(type=pl.lit("any word")), ITEMS)
    one, other = split_of(untyped), split_of(full)
    assert "type" not in untyped.interactions.columns and one.histories[0].typed is None
    for a, b in zip(one.histories, other.histories, strict=True):
        np.testing.assert_array_equal(a.items, b.items)
        np.testing.assert_array_equal(np.unique(a.hidden(2, hides_seen=True)), np.unique(b.hidden(2, hides_seen=True)))
    np.testing.assert_array_equal(one.popularity, other.popularity)
    assert one.has_repeats == other.has_repeats and one.test == other.test


def test_a_table_of_the_data_set_decides_and_goes_with_it(tmp_path: Path) -> None:
    types = EventTypes(types={"view": TypeRule(popularity=False, neighbors=False), "cart": TypeRule(weight=-2.0)})
    data = dataset(TYPED, types)
    save_dataset(data, tmp_path / "set")
    found = load_dataset(tmp_path / "set")
    assert found.event_types == types and found.interactions.equals(data.interactions)
    split = split_of(found)
    counted = [each.popularity[each.item_ids.index("b")] for each in (split, split_of(dataset(TYPED)))]
    assert counted == [0, 1], "a view that does not count was counted"
    assert fingerprint(split) != fingerprint(split_of(dataset(TYPED)))
    events = TrainEvents.of(split)
    assert sorted(events.item[events.user == 0].tolist()).count(split.item_ids.index("b")) == 0
    (tmp_path / "set/event_types.json").write_text("{")
    with pytest.raises(DataError, match="not a table of event types"):
        load_dataset(tmp_path / "set")


def test_popularity_and_what_goes_together_count_by_weight() -> None:
    """Of a and b: nine users bought one and looked at the other; c was looked at once, d was disliked only."""
    buys = [(f"u{n}", item, n, "purchase", None) for n in range(9) for item in ("a", "e")]
    looks = [(f"u{n}", "b", n, "view", None) for n in range(9)]
    few = [("u0", "c", 20, "view", None), *((f"u{n}", "d", 20, "dislike", None) for n in range(9))]
    last = [(f"u{n}", item, time, "purchase", None) for n in range(9) for item, time in (("f", 30), ("g", 31))]
    types = EventTypes(types={"dislike": TypeRule(weight=-1.0), "view": TypeRule(weight=0.25), "purchase": TypeRule()})
    split = split_of(dataset([*buys, *looks, *few, *last], types))
    found = dict(zip(split.item_ids, split.popularity.tolist(), strict=True))
    assert (found["a"], found["b"]) == (9, 2), "9 looks are 2.25 purchases"
    assert found["c"] == 1 and "d" not in found, "an item that somebody wants has a popularity, others have none"
    full = split_of(dataset([*buys, *((*each[:3], "purchase", None) for each in looks), *few, *last], types))
    a, b, e = (split.item_ids.index(name) for name in "abe")
    one, other = (near_items(TrainEvents.of(each), each.popularity).toarray() for each in (split, full))
    assert one[a, e] == pytest.approx(other[a, e]), "purchases count as before"
    assert one[a, b] == pytest.approx(9 * 0.5 / (np.sqrt(9 * 2) + 5)), "a pair counts the geometric mean"
    tokens = np.arange(1, 1 + len(split.item_ids))
    assert item_facts(split, tokens).popularity[1:].tolist() == split.popularity.tolist()


@pytest.mark.parametrize("name", ["type", "event", "Behavior", "action", "event_type"])
def test_prepare_keeps_the_types_whatever_their_column_is_called(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [f"{user},{item},{time},{kind or ''}" for user, item, time, kind, _ in TYPED]
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/interactions.csv").write_text("\n".join([f"user_id,item_id,timestamp,{name}", *rows]))
    (tmp_path / "raw/items.csv").write_text("\n".join(["item_id,title", *(f"{i},Title {i}" for i in "abcdefgh")]))
    answer: dict[str, Any] = {"number": 3, "is_counted": True, "types": {"view": {"weight": 0.5}}, "other": {}}
    (tmp_path / "raw/event_types.json").write_text(json.dumps(answer))
    assert main(["--format", "csv", "--source", str(tmp_path / "raw"), "--out", str(tmp_path / "out")]) == 0
    capsys.readouterr()
    found = load_dataset(tmp_path / "out")
    kinds = found.interactions.filter(pl.col("user_id") == "v")["type"].to_list()
    assert kinds == ["interaction", "interaction", "purchase"]
    assert found.event_types.types["view"].weight == 0.5
