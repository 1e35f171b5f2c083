"""Annotations hold both forms of eq. 5, survive the disk, and do not depend on how they were batched."""

from dataclasses import replace

from tests.training.annotation_worlds import made_up
from tests.training.small import TINY
from training.annotate import annotation_summary, stage_key
from training.data.splits import Target

TARGETS = [Target(0, 25), Target(3, 2), Target(1, 9), Target(0, 12), Target(3, 20)]


def test_head_room_counts_only_targets_with_memory_and_never_a_loss() -> None:
    facts = annotation_summary([made_up([-4, -3, -5]), made_up([-4, -6]), made_up([-4])])
    assert facts == {"targets": 3, "with_memory": 2, "oracle_gain_nats": 0.5, "random_gain_nats": -1.0}
    assert annotation_summary([made_up([-4])])["oracle_gain_nats"] == 0


def test_the_key_changes_with_what_changes_labels_only() -> None:
    key = stage_key("data", {"weights": "a"}, TINY, 0)
    for changed in ({"max_memory": 5}, {"valid_targets": 3}, {"annotate_targets": 3}, {"combine": "prepend"}):
        assert stage_key("data", {"weights": "a"}, replace(TINY, **changed), 0) != key, f"{changed} would go unnoticed"
    assert stage_key("data", {"weights": "b"}, TINY, 0) != key
    assert stage_key("other", {"weights": "a"}, TINY, 0) != key
    assert stage_key("data", {"weights": "a"}, TINY, 1) != key
    assert stage_key("data", {"weights": "a"}, replace(TINY, annotate_batch=3, top_ks=(2,)), 0) == key, (
        "runs again for nothing"
    )
