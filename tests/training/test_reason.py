"""The program that trains a reasoner: traces are verified, it resumes, and a bundle gets the result."""

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from model_store.bundle import Bundle
from model_store.words.answer import WordsQuery
from model_store.words.files import open_words
from tests.conftest import write_bundle
from tests.reasoners import write_tiny_model
from training import reason, train_words
from training.data.dataset import clean_dataset, load_dataset, save_dataset
from training.data.questions import questions_dataset
from training.reasoning.situations import Reward, Situation, make_situations
from training.reasoning.traces import verified_traces
from training.run.stage import read_certificate
from training.words.split import VALID, words_split

USERS = 120


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """data, words, bundle and model; the item ids are those of `write_bundle`."""
    root = tmp_path_factory.mktemp("reason")
    made = questions_dataset(USERS, seed=2)
    names = {item: f"i{row}" for row, item in enumerate(made.items["item_id"])}
    tables = (made.interactions, made.items, made.queries)
    renamed = [table.with_columns(pl.col("item_id").replace_strict(names)) for table in tables if table is not None]
    save_dataset(clean_dataset("renamed", *renamed)[0], root / "data")
    write_bundle(root / "bundle", titles=made.items["title"].to_list())
    arguments = ["--data", f"{root}/data", "--out", f"{root}/words", "--encoder", "lsa"]
    assert train_words.main([*arguments, "--bundle", f"{root}/bundle"]) == 0
    write_tiny_model(root / "model")
    return root


def run(root: Path, *more: str) -> int:
    options = ["--data", f"{root}/data", "--words", f"{root}/words", "--out", f"{root}/out"]
    return reason.main([*options, "--model", f"{root}/model", "--recipe", "tiny", *more])


@pytest.fixture(scope="module")
def situations(place: Path) -> list[Situation]:
    words = open_words(place / "words" / "words")
    order = [item.item_id for item in Bundle.open(place / "bundle").catalogue.items]
    split = words_split(load_dataset(place / "data"), order)
    return list(make_situations(split, words, split.targets(VALID)[:30]))


def test_traces_put_the_truth_among_the_first_ten_and_say_only_what_can_be_known(situations: list[Situation]) -> None:
    reward = Reward(situations[0].words.ranker)
    traces = verified_traces(situations, reward)
    assert len(traces) > len(situations) / 2
    for trace in traces:
        found = reward.ranking(trace.situation, trace.need, trace.used, trace.ideal)
        assert found.rank < 10 and found.quality > reward.without_memory(trace.situation)
        known = " ".join([trace.situation.target.query, *trace.situation.texts(trace.need)]).casefold()
        words = [word for word in trace.ideal.casefold().replace(":", "").split() if len(word) > 3]
        assert sum(word in known for word in words) * 2 >= len(words), trace.ideal


def test_the_reward_grows_with_the_rank_and_with_memory_that_helps(situations: list[Situation]) -> None:
    reward = Reward(situations[0].words.ranker)
    trace = max(verified_traces(situations, reward), key=lambda each: each.gain)
    parts = reward.parts(trace.situation, trace.need, trace.used, trace.ideal, is_ended=True)
    nothing = reward.parts(trace.situation, trace.need, [], "no such thing", is_ended=False)
    assert sum(parts.values()) > sum(nothing.values()) and nothing["complete"] == nothing["helped"] == 0
    assert parts["complete"] == pytest.approx(0.1) and parts["helped"] in (0.0, pytest.approx(0.1))


def test_the_program_resumes_and_puts_a_reasoner_into_the_bundle(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("training.reasoning.grpo.grpo", killed)
        assert run(place) == 130
    before = {step: read_certificate(place / "out" / step) for step in ("head-room", "warm-up", "raft")}
    with monkeypatch.context() as patched:
        patched.setattr("training.reasoning.pipeline.verified_traces", killed)
        assert run(place, "--bundle", f"{place}/bundle", "--even-if-worse") == 0
    assert {step: read_certificate(place / "out" / step) for step in before} == before
    (line,) = capsys.readouterr().out.splitlines()
    facts = json.loads(line)
    assert facts["chosen"] in ("warm-up", "raft", "grpo")
    assert set(facts["judge_gain_over_warm_up"]) >= {"warm-up", "raft"}
    for bounds in facts["headroom"].values():
        assert bounds["mean"] <= 1.2
    assert facts["headroom"]["best_memory"]["over_deterministic"][0] >= 0
    bundle = Bundle.open(place / "bundle")
    assert bundle.words is not None and bundle.reasoner is not None
    (answer,) = bundle.words.answer([WordsQuery("a gift", 0)], 5, reasoning="full", reasoner=bundle.reasoner)
    assert len(answer.rows) == 5 and answer.profile is not None


def test_a_reasoner_that_is_worse_is_not_put_into_a_bundle(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = place / "out" / "stage.json"
    kept = file.read_text()
    try:
        file.write_text(json.dumps(json.loads(kept) | {"judge_ndcg_over_deterministic": [-0.2, -0.3, -0.1]}))
        assert run(place, "--bundle", f"{place}/bundle") == 2
    finally:
        file.write_text(kept)
    assert "--even-if-worse" in capsys.readouterr().err
