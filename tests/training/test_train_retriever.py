"""The stage keeps the candidate with the largest gain for the users that choose; other users judge whether it pays."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from model_store.manifest import BackboneSpec
from model_store.memory.retriever import Retriever, choose
from tests.training.annotation_worlds import D, M, annotated, annotation, states_of
from tests.training.small import TINY, diary, small_lm, small_windows
from training import train_retriever
from training.lm.backbone import Backbone
from training.memory.annotations import Annotation, AnnotationSet
from training.memory.learning import (
    RETRIEVER_FILE,
)
from training.memory.selection import MemoryGains
from training.run.recipes import Recipe
from training.run.stage import StageError
from training.train_retriever import run, stage_key


def run_on(
    data: AnnotationSet,
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
    recipe: Recipe = TINY,
    *,
    gain: float = 0.5,
    judged_gain: float | None = None,
) -> dict[str, Any]:
    """Runs the stage with made-up annotations and made-up joint gains: k memories gain k times `gain` nats.

    For the users that judge they gain k times `judged_gain`, by default the same.
    """
    of_judges = gain if judged_gain is None else judged_gain
    judges = {each.user for each in data.judge}

    def made_up(retrievers: Any, top_ks: Any, annotations: list[Annotation], **_: Any) -> dict[Any, MemoryGains]:
        each = of_judges if judges.issuperset(each.user for each in annotations) else gain
        return {
            (name, top_k): MemoryGains(each * np.full(len(annotations), top_k), None)
            for name in retrievers
            for top_k in top_ks
        }

    windows = small_windows()
    backbone = Backbone(spec_of(), "titles", small_lm(), windows.prompt)
    monkeypatch.setattr(train_retriever, "read_annotation_set", lambda directory: data)
    monkeypatch.setattr(train_retriever, "open_backbone", lambda directory, device: backbone)
    monkeypatch.setattr(train_retriever, "valid_gains", made_up)
    key = stage_key([{"labels": "a"}], recipe, 0)
    return run(diary(), out, annotations_dir=out, backbone_dir=out, recipe=recipe, inputs=key)


def spec_of() -> BackboneSpec:
    return BackboneSpec(base_model="random", weights_sha256="", split_layer=2, num_layers=4, hidden_size=32)


def test_the_candidate_with_the_largest_gain_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = run_on(annotated(40, helps=True), tmp_path, monkeypatch, replace(TINY, top_ks=(1, 2)))
    assert facts["temperature"] in TINY.label_temperatures
    assert facts["top_k"] == 2 and facts["choose"]["nats"] == 1.0, "not the number of memories with the largest gain"
    assert {"valid_kl", "uniform_kl", "label_entropy", "captured", "abstains"} <= facts.keys()
    retriever = Retriever(D, width=TINY.retriever_width)
    retriever.load_state_dict(load_file(tmp_path / RETRIEVER_FILE))
    assert not list(tmp_path.glob("checkpoints-*"))


def test_the_certificate_has_the_gains_of_those_that_choose_and_of_those_that_judge(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = run_on(annotated(40, helps=True), tmp_path, monkeypatch, gain=0.5, judged_gain=0.25)
    assert facts["teach_targets"] == 40 and facts["pays"]
    assert facts["choose"] == {"targets": 100, "users": 100, "nats": 0.5, "value": 0.5, "error": 0.0}
    assert facts["judge"] == {"targets": 60, "users": 60, "nats": 0.25, "value": 0.25, "error": 0.0}


@pytest.mark.parametrize("judged_gain", [-0.5, 0.0])
def test_without_a_gain_for_those_that_judge_the_retriever_always_abstains(
    judged_gain: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = run_on(annotated(40, helps=True), tmp_path, monkeypatch, judged_gain=judged_gain)
    assert_abstains(facts, tmp_path)


def test_without_judges_the_retriever_always_abstains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = run_on(annotated(40, helps=True)._replace(judge=[]), tmp_path, monkeypatch)
    assert facts["judge"] == {"targets": 0, "users": 0}
    assert_abstains(facts, tmp_path)


def assert_abstains(facts: dict[str, Any], tmp_path: Path) -> None:
    retriever = Retriever(D, width=TINY.retriever_width)
    retriever.load_state_dict(load_file(tmp_path / RETRIEVER_FILE))
    scores = retriever(torch.randn(50, D), torch.randn(50, M, D), torch.ones(50, M))
    assert not facts["pays"] and choose(scores, M).mask.sum() == 0


def test_the_certificate_lists_all_candidates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = run_on(annotated(40, helps=True), tmp_path, monkeypatch, replace(TINY, top_ks=(1, 2)))
    tried: Any = facts["tried"]
    assert [(each["temperature"], each["top_k"]) for each in tried] == [(0.1, 1), (0.1, 2), (0.3, 1), (0.3, 2)]
    assert [each["nats"] for each in tried] == [each["value"] for each in tried] == [0.5, 1.0, 0.5, 1.0]


def test_a_finished_stage_does_not_train_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = annotated(40, helps=True)
    first = run_on(data, tmp_path, monkeypatch)
    monkeypatch.setattr(train_retriever, "fit_retriever", None)
    assert run_on(data, tmp_path, monkeypatch) == first


def test_without_any_memory_it_always_abstains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short = [annotation(0, np.ones(D), np.zeros(0))]
    facts = run_on(AnnotationSet(short, short, short, states_of([])), tmp_path, monkeypatch)
    assert facts["always_abstains"] is True
    retriever = Retriever(D, width=TINY.retriever_width)
    retriever.load_state_dict(load_file(tmp_path / RETRIEVER_FILE))
    scores = retriever(100 * torch.randn(50, D), 100 * torch.randn(50, M, D), torch.ones(50, M))
    assert choose(scores, M).mask.sum() == 0, "it must abstain from any later memory too"


def test_annotations_must_be_finished(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="has not finished"):
        run(diary(), tmp_path / "out", annotations_dir=tmp_path, backbone_dir=tmp_path, recipe=TINY, inputs="key")


def test_the_key_changes_with_what_changes_the_retriever() -> None:
    key = stage_key([{"labels": "a"}], TINY, 0)
    assert stage_key([{"labels": "b"}], TINY, 0) != key
    assert stage_key([{"labels": "a"}, {"neighbor_share": 0.5}], TINY, 0) != key
    assert stage_key([{"labels": "a"}], TINY, 1) != key
    for changed in ({"retriever_width": 9}, {"retriever_batch": 9}, {"gain_form": "probability"}, {"top_ks": (2,)}):
        assert stage_key([{"labels": "a"}], replace(TINY, **changed), 0) != key, f"{changed} does not change the key"
    assert stage_key([{"labels": "a"}], replace(TINY, num_beams=9), 0) == key, "the stage would run again without need"
