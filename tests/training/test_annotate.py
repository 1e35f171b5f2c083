"""The stage `annotate`: its summary and its key."""

from dataclasses import replace

from tests.training.annotation_worlds import made_up
from tests.training.small import TINY
from training.annotate import annotation_summary, stage_key
from training.data.splits import Target

TARGETS = [Target(0, 25), Target(3, 2), Target(1, 9), Target(0, 12), Target(3, 20)]


def test_the_oracle_gain_is_over_targets_with_memory_and_never_negative() -> None:
    facts = annotation_summary([made_up([-4, -3, -5]), made_up([-4, -6]), made_up([-4])])
    assert facts == {"targets": 3, "with_memory": 2, "oracle_gain_nats": 0.5, "random_gain_nats": -1.0}
    assert annotation_summary([made_up([-4])])["oracle_gain_nats"] == 0


def test_the_key_changes_exactly_if_the_labels_change() -> None:
    key = stage_key("data", {"weights": "a"}, TINY, 0)
    for changed in ({"max_memory": 5}, {"valid_targets": 3}, {"annotate_targets": 3}, {"combine": "prepend"}):
        assert stage_key("data", {"weights": "a"}, replace(TINY, **changed), 0) != key, (
            f"{changed} does not change the key"
        )
    assert stage_key("data", {"weights": "b"}, TINY, 0) != key
    assert stage_key("other", {"weights": "a"}, TINY, 0) != key
    assert stage_key("data", {"weights": "a"}, TINY, 1) != key
    assert stage_key("data", {"weights": "a"}, replace(TINY, annotate_batch=3, top_ks=(2,)), 0) == key, (
        "the stage would run again without need"
    )
