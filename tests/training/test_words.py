"""The programs for words: they learn to answer questions that only memory can answer, resume, and fill a bundle."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from model_store.bundle import Bundle
from model_store.errors import BundleCorrupt
from model_store.words.answer import WordsQuery
from model_store.words.files import open_words
from tests.conftest import write_bundle
from training import evaluate, train_words
from training.data.dataset import clean_dataset, save_dataset
from training.data.questions import questions_dataset
from training.run.stage import read_certificate
from training.words.metrics import list_metrics
from training.words.rows import ROWS
from training.words.split import TEST, words_split

USERS = 220


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """data, words and report of a small bookshop with questions."""
    root = tmp_path_factory.mktemp("words")
    save_dataset(questions_dataset(USERS, seed=2), root / "data")
    assert train_words.main(["--data", f"{root}/data", "--out", f"{root}/words", "--encoder", "lsa"]) == 0
    assert evaluated(root) == 0
    return root


def evaluated(root: Path) -> int:
    return evaluate.main(
        [
            "--task",
            "query",
            "--data",
            f"{root}/data",
            "--words",
            f"{root}/words",
            "--out",
            f"{root}/report",
            "--time-targets",
            "3",
        ]
    )


def means(root: Path) -> dict[str, dict[str, float]]:
    rows = json.loads((root / "report" / "metrics.json").read_text())["rows"]["means"]
    return {row: {metric: interval[0] for metric, interval in values.items()} for row, values in rows.items()}


def test_the_right_memory_answers_what_the_question_alone_cannot(place: Path) -> None:
    found = means(place)
    assert set(ROWS) < set(found)
    assert found["hybrid"]["recall@1"] < 0.3
    assert found["mr_rec"]["recall@1"] > found["all_memory"]["recall@1"] + 0.1
    assert found["mr_rec"]["recall@10"] > 0.9
    for row in ("no_local", "random_three", "static_profile", "last_ten", "top_three", "no_reasoning"):
        assert found["mr_rec"]["recall@1"] > found[row]["recall@1"] + 0.1, row
    assert found["no_local"]["recall@1"] < 0.3


def test_an_answer_is_that_of_the_evaluation(place: Path) -> None:
    words, split = open_words(place / "words" / "words"), words_split(questions_dataset(USERS, seed=2))
    targets = split.targets(TEST)
    queries = [
        WordsQuery(target.query, target.timestamp, words.remember(split.history(target.user, target.timestamp)))
        for target in targets
    ]
    answers = words.answer(queries, 100)
    found = list_metrics([answer.rows for answer in answers], [target.answers for target in targets])
    assert found["recall@1"].mean() == pytest.approx(means(place)["mr_rec"]["recall@1"], abs=0.01)
    assert all(answer.memories for answer in answers)
    assert {entry.id for entry in answers[0].memories} <= {entry.id for entry in answers[0].fetched}


def test_without_memory_or_with_reasoning_off_the_words_alone_rank(place: Path) -> None:
    words, split = open_words(place / "words" / "words"), words_split(questions_dataset(USERS, seed=2))
    target = split.targets(TEST)[0]
    memory = words.remember(split.history(target.user, target.timestamp))
    off = words.answer([WordsQuery(target.query, target.timestamp, memory)], 20, reasoning="off")[0]
    unknown = words.answer([WordsQuery(target.query, target.timestamp)], 20)[0]
    assert not off.memories and not unknown.memories and not off.aspects and unknown.aspects
    only = np.zeros(len(words.index), dtype=np.bool_)
    only[target.answers] = True
    found = words.answer([WordsQuery(target.query, target.timestamp, memory, only)], 20, reasoning="full")[0]
    assert set(found.rows.tolist()) <= set(target.answers.tolist())
    assert found.profile is not None and found.profile.text.startswith(target.query)


def test_a_finished_stage_is_not_run_again_and_lists_are_cached(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = means(place)
    monkeypatch.setattr("training.train_words.learn", lambda *_: pytest.fail("learned twice"))
    monkeypatch.setattr("training.evaluate_words.ranked_rows", lambda *_: pytest.fail("ranked twice"))
    assert train_words.main(["--data", f"{place}/data", "--out", f"{place}/words", "--encoder", "lsa"]) == 0
    assert json.loads(capsys.readouterr().out)["items"] == 180
    assert evaluated(place) == 0
    assert means(place) == before
    facts = read_certificate(place / "words")
    assert facts["grpo"]["reward"] >= facts["grpo"]["reward_before"]
    assert 0 <= facts["memory_scale"] <= 1


def test_words_are_put_into_a_bundle_of_the_same_items(tmp_path: Path) -> None:
    made = questions_dataset(60)
    titles = made.items["title"].to_list()
    names = {item: f"i{row}" for row, item in enumerate(made.items["item_id"])}
    tables = (made.interactions, made.items, made.queries)
    renamed = [table.with_columns(pl.col("item_id").replace_strict(names)) for table in tables if table is not None]
    save_dataset(clean_dataset("renamed", *renamed)[0], tmp_path / "data")
    write_bundle(tmp_path / "bundle", titles=titles)
    options = ["--data", f"{tmp_path}/data", "--out", f"{tmp_path}/words", "--encoder", "lsa"]
    assert train_words.main([*options, "--bundle", f"{tmp_path}/bundle"]) == 0
    bundle = Bundle.open(tmp_path / "bundle")
    assert bundle.words is not None and bundle.manifest.words is not None
    assert [text.title for text in bundle.words.index.texts] == titles
    answer = bundle.words.answer([WordsQuery(titles[7], 0)], 3)[0]
    assert answer.rows[0] == 7
    (tmp_path / "bundle" / "words" / "words.json").write_text("{}")
    with pytest.raises(BundleCorrupt, match=r"words\.json"):
        Bundle.open(tmp_path / "bundle")


def test_without_queries_or_words_the_programs_say_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = questions_dataset(5)
    save_dataset(type(data)(data.name, data.interactions, data.items), tmp_path / "data")
    assert train_words.main(["--data", f"{tmp_path}/data", "--out", f"{tmp_path}/words"]) == 2
    assert "queries.parquet" in capsys.readouterr().err
