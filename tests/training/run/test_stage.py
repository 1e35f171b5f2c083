"""A stage is done when its certificate says so, and errors a user can mend are one line."""

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


def test_a_digest_knows_equal_facts_and_tells_others_apart() -> None:
    assert digest({"b": 1, "a": [2]}) == digest({"a": [2], "b": 1}), "the order of keys is no fact"
    assert digest([1, 23]) != digest([12, 3])
    assert len(digest("x")) == 12


def test_a_stage_is_done_only_for_the_inputs_it_was_run_with(tmp_path: Path) -> None:
    assert not is_done(tmp_path, "one"), "nothing has run"
    with pytest.raises(StageError, match="has not finished"):
        read_certificate(tmp_path)
    finish(tmp_path, "one", {"steps": 3})
    assert is_done(tmp_path, "one")
    assert not is_done(tmp_path, "two"), "other inputs must run again"
    assert read_certificate(tmp_path) == {"inputs": "one", "steps": 3}


def test_a_stage_that_begins_again_is_not_done(tmp_path: Path) -> None:
    finish(tmp_path, "one", {})
    begin(tmp_path)
    assert not is_done(tmp_path, "one"), "cut short now, its files would be a mixture of two runs"
    begin(tmp_path / "new" / "stage")
    assert (tmp_path / "new" / "stage").is_dir()


def test_checkpoints_go_when_the_stage_is_done(tmp_path: Path) -> None:
    (tmp_path / "checkpoints-one").mkdir()
    (tmp_path / "checkpoints-one" / "best.safetensors").touch()
    (tmp_path / "lm").mkdir()
    finish(tmp_path, "one", {})
    assert {path.name for path in tmp_path.iterdir()} == {CERTIFICATE, "lm"}


def test_a_file_that_was_cut_short_is_never_seen(tmp_path: Path) -> None:
    file = tmp_path / "facts.json"
    write_json(file, {"old": 1})
    with pytest.raises(KeyboardInterrupt), atomic_file(file) as draft:
        draft.write_text('{"ne')
        raise KeyboardInterrupt
    assert json.loads(file.read_text()) == {"old": 1}, "the old file must survive a write that was cut short"
    write_json(file, {"new": 2})
    assert json.loads(file.read_text()) == {"new": 2}
    assert [path.name for path in tmp_path.iterdir()] == ["facts.json"], "a draft was left behind"
