"""The benchmark of annotation: its three methods agree, and a difference is an error."""

import json

import pytest

from tests.benchmarks import benchmark_annotation
from tests.benchmarks.benchmark_annotation import Size, main, measure, must_agree

TINY = Size("tiny", 32, 4, 2, 60, 2)


def test_the_three_methods_agree() -> None:
    result = measure(TINY, num_targets=3, num_elements=12, num_laps=2)  # raises SystemExit when they differ
    assert min(result.values()) > 0


def test_a_difference_ends_the_run() -> None:
    must_agree("shared", [[-1.0, -2.0]], [[-1.0, -2.0005]])
    with pytest.raises(SystemExit, match=r"batched differs .* by 0\.1 nats"):
        must_agree("batched", [[-1.0, -2.0]], [[-1.0, -2.1]])


def test_the_last_line_is_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(benchmark_annotation, "SIZES", (TINY,))
    assert main(["--targets", "2", "--elements", "3", "--laps", "1"]) == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["benchmark"] == "annotation"
    assert last["tiny"]["times_faster"] > 0
