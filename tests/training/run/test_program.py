"""A program prints one line of JSON, or one line that says what went wrong."""

import argparse
import json
from typing import Any

import pytest

from model_store.errors import BundleNotFound
from training.data.dataset import DataError
from training.run.program import run_program
from training.run.stage import (
    StageError,
)


def run(main: Any) -> int:
    return run_program(main, argparse.Namespace())


def test_success_is_one_line_of_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(lambda _: {"items": 3}) == 0
    (line,) = capsys.readouterr().out.splitlines()
    facts = json.loads(line)
    assert facts.pop("seconds") >= 0
    assert facts == {"items": 3}


@pytest.mark.parametrize("error", [StageError, DataError, BundleNotFound, OSError])
def test_an_error_of_the_user_is_one_line_on_stderr(error: type[Exception], capsys: pytest.CaptureFixture[str]) -> None:
    def main(_: argparse.Namespace) -> dict[str, Any]:
        raise error("do this")

    assert run(main) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err == f"{error.__name__}: do this\n"


def test_an_interrupt_says_how_to_continue(capsys: pytest.CaptureFixture[str]) -> None:
    def main(_: argparse.Namespace) -> dict[str, Any]:
        raise KeyboardInterrupt

    assert run(main) == 130
    assert "run the same command again" in capsys.readouterr().err


def test_a_stage_of_one_process_refuses_torchrun(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "as torchrun sets it")
    assert run(lambda _: {}) == 2, "two processes must not write the same files"
    assert "without torchrun" in capsys.readouterr().err


def test_a_bug_is_not_hidden() -> None:
    def main(_: argparse.Namespace) -> dict[str, Any]:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(main)
