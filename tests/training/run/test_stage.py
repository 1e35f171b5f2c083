"""A stage is done when its certificate says so, and errors a user can mend are one line."""

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from model_store.errors import BundleNotFound
from training.data.dataset import DataError
from training.run import device
from training.run.device import autocast, pick_device
from training.run.program import run_program
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


def test_devices() -> None:
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device("auto").type in {"cpu", "cuda"}
    with pytest.raises(StageError, match="--device quantum"):
        pick_device("quantum")


@pytest.mark.parametrize(
    ("width", "has_bf16", "expected"),
    [(128, True, torch.bfloat16), (64, True, torch.float32), (512, False, torch.float32)],
)
def test_a_cpu_trains_in_bf16_where_that_pays(
    width: int, has_bf16: bool, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "has_bf16_instructions", lambda: has_bf16)
    layer = torch.nn.Linear(width, 8)
    with autocast(torch.device("cpu"), width):
        assert layer(torch.ones(2, width)).dtype == expected
    assert layer(torch.ones(2, width)).dtype == torch.float32, "what comes after must not change"


def test_attention_keeps_its_precision_in_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "has_bf16_instructions", lambda: True)
    query, key, value = torch.randn(3, 2, 4, 10, 8, generator=torch.Generator().manual_seed(0)).unbind()
    mask = torch.ones(10, 10, dtype=torch.bool).tril()
    exact = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    with autocast(torch.device("cpu"), 512):
        found = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    assert torch.equal(found, exact)


def run(main: Any) -> int:
    return run_program(main, argparse.Namespace())


def test_success_is_one_line_of_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(lambda _: {"items": 3}) == 0
    (line,) = capsys.readouterr().out.splitlines()
    facts = json.loads(line)
    assert facts.pop("seconds") >= 0
    assert facts == {"items": 3}


@pytest.mark.parametrize("error", [StageError, DataError, BundleNotFound, OSError])
def test_what_a_user_can_mend_is_one_line_on_stderr(error: type[Exception], capsys: pytest.CaptureFixture[str]) -> None:
    def main(_: argparse.Namespace) -> dict[str, Any]:
        raise error("do this")

    assert run(main) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err == f"{error.__name__}: do this\n"


def test_an_interrupt_says_how_to_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    def main(_: argparse.Namespace) -> dict[str, Any]:
        raise KeyboardInterrupt

    assert run(main) == 130
    assert "run the same command again" in capsys.readouterr().err


def test_a_stage_of_one_process_refuses_torchrun(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "as torchrun sets it")
    assert run(lambda _: {}) == 2, "two processes would write the same files"
    assert "without torchrun" in capsys.readouterr().err


def test_a_bug_is_not_hidden() -> None:
    def main(_: argparse.Namespace) -> dict[str, Any]:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(main)
