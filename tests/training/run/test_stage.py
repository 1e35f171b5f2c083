"""A stage is done if its certificate has the same inputs; files appear whole or not at all."""

import json
from pathlib import Path

import pytest

from training.run.stage import (
    CERTIFICATE,
    StageError,
    atomic_file,
    begin,
    digest,
    finish,
    is_done,
    read_certificate,
    write_json,
)


def test_equal_facts_have_equal_digests_and_others_differ() -> None:
    assert digest({"b": 1, "a": [2]}) == digest({"a": [2], "b": 1}), "the order of keys must not matter"
    assert digest([1, 23]) != digest([12, 3])
    assert len(digest("x")) == 12


def test_a_stage_is_done_only_for_the_inputs_it_was_run_with(tmp_path: Path) -> None:
    assert not is_done(tmp_path, "one"), "no stage has run"
    with pytest.raises(StageError, match="has not finished"):
        read_certificate(tmp_path)
    finish(tmp_path, "one", {"steps": 3})
    assert is_done(tmp_path, "one")
    assert not is_done(tmp_path, "two"), "other inputs must run again"
    assert read_certificate(tmp_path) == {"inputs": "one", "steps": 3}


def test_a_stage_that_runs_again_is_not_done(tmp_path: Path) -> None:
    finish(tmp_path, "one", {})
    begin(tmp_path)
    assert not is_done(tmp_path, "one"), "its files may be a mixture of two runs"
    begin(tmp_path / "new" / "stage")
    assert (tmp_path / "new" / "stage").is_dir()


def test_a_finished_stage_has_no_checkpoints(tmp_path: Path) -> None:
    (tmp_path / "checkpoints-one").mkdir()
    (tmp_path / "checkpoints-one" / "best.safetensors").touch()
    (tmp_path / "lm").mkdir()
    finish(tmp_path, "one", {})
    assert {path.name for path in tmp_path.iterdir()} == {CERTIFICATE, "lm"}


def test_an_incomplete_file_never_appears(tmp_path: Path) -> None:
    file = tmp_path / "facts.json"
    write_json(file, {"old": 1})
    with pytest.raises(KeyboardInterrupt), atomic_file(file) as draft:
        draft.write_text('{"ne')
        raise KeyboardInterrupt
    assert json.loads(file.read_text()) == {"old": 1}, "an interrupted write must keep the old file"
    write_json(file, {"new": 2})
    assert json.loads(file.read_text()) == {"new": 2}
    assert [path.name for path in tmp_path.iterdir()] == ["facts.json"], "a draft was left behind"
