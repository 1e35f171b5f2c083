"""The stage "voices": runs once, reads back, and is empty where there are no item tokens."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.training.small import TINY
from tests.training.worlds import chain
from training.data.splits import Split
from training.items.voice_files import VOICES_FILE, read_voices
from training.items.voice_setup import split_by_user
from training.lm import tuning
from training.lm.backbone import open_backbone
from training.lm.forecasts import cached_forecast, forecast_of
from training.lm.windows import Windows
from training.voices import run, stage_key

ITEMS = replace(TINY, vocabulary="items", voices_targets=60, recent_length=3, max_past=10)


@pytest.fixture(scope="module")
def split() -> Split:
    return chain()


@pytest.fixture(scope="module")
def backbone_dir(split: Split, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sft")
    tuning.run(split, out, recipe=ITEMS, inputs="x")
    return out


def test_the_stage_writes_voices_that_read_back_and_runs_once(split: Split, backbone_dir: Path, tmp_path: Path) -> None:
    facts = run(split, tmp_path, backbone_dir=backbone_dir, recipe=ITEMS, inputs="x")
    voices = read_voices(tmp_path)
    assert voices is not None and voices.spec.model_dump(mode="json") == facts["spec"]
    assert voices.spec.past_length == 10 and voices.spec.recent_length == 3 and not voices.spec.has_returns
    assert facts["targets"]["teach"] + facts["targets"]["judge"] == 60
    assert facts["valid_ndcg@10_window"] > 0.3, "the next item of the chain was not found"
    written = (tmp_path / VOICES_FILE).stat().st_mtime_ns
    assert run(split, tmp_path, backbone_dir=backbone_dir, recipe=ITEMS, inputs="x") == facts
    assert (tmp_path / VOICES_FILE).stat().st_mtime_ns == written


def test_without_targets_there_are_no_voices(split: Split, backbone_dir: Path, tmp_path: Path) -> None:
    run(split, tmp_path, backbone_dir=backbone_dir, recipe=replace(ITEMS, voices_targets=0), inputs="x")
    assert read_voices(tmp_path) is None


def test_the_key_changes_with_what_changes_the_voices() -> None:
    keys = {
        stage_key("data", {"loss": loss}, replace(ITEMS, voices_targets=count, max_past=past), seed)
        for loss, count, past, seed in ((1, 9, 9, 0), (2, 9, 9, 0), (1, 8, 9, 0), (1, 9, 8, 0), (1, 9, 9, 1))
    }
    assert len(keys) == 5
    assert stage_key("data", {}, replace(ITEMS, num_beams=9), 0) == stage_key("data", {}, ITEMS, 0)


def test_users_teach_or_judge(split: Split) -> None:
    teach, judge = split_by_user(split.valid, seed=0)
    assert len(teach) + len(judge) == len(split.valid) and len(teach) > len(judge) > 0
    assert not {target.user for target in teach} & {target.user for target in judge}


def test_forecasts_are_kept_in_any_order(split: Split, backbone_dir: Path) -> None:
    backbone = open_backbone(backbone_dir, torch.device("cpu"))
    windows = Windows(split, backbone.prompt, ITEMS.max_memory)
    wanted = split.valid[:5]
    forecast = cached_forecast(backbone, windows, split.valid[:9])
    np.testing.assert_allclose(
        forecast(wanted[::-1]), forecast_of(backbone, windows, wanted)[::-1], rtol=2e-3, atol=1e-7
    )
