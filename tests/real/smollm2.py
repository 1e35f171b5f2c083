"""The real SmolLM2, from its package to answers. Not among `make test`: it needs 93 MB and minutes. `make smollm2`."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model_store.answers import Query
from model_store.bundle import Bundle
from model_store.inference import recommend
from model_store.reasoner.files import open_reasoner
from model_store.words.answer import WordsQuery
from model_store.words.files import open_words
from tests.training.small import TINY, shop
from training import reason, train_words
from training.data.dataset import save_dataset
from training.data.questions import questions_dataset
from training.lm.backbone import pretrained
from training.pipeline import main
from training.run import recipes
from training.words.split import TEST, words_split

PROMPT, NEXT = "The capital of France is", " Paris"


def test_the_checkpoint_knows_what_the_model_knows() -> None:
    model, tokenizer = pretrained("smollm2", torch.device("cpu"))
    assert model.config.num_hidden_layers == 30 and model.config.vocab_size == len(tokenizer) == 49_152
    tokens = tokenizer(PROMPT, return_tensors="pt", add_special_tokens=False)["input_ids"]
    with torch.inference_mode():
        best = int(model(input_ids=tokens).logits[0, -1].argmax())
    assert tokenizer.decode([best]) == NEXT


def test_it_is_tuned_and_answers_with_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few: dict[str, Any] = {
        "sft_batch_blocks": 2,
        "sft_valid_targets": 4,
        "memory_from": 2,
        "annotate_targets": 8,
        "valid_targets": 4,
    }
    short = replace(recipes.RECIPES["smollm2"], sft=TINY.sft, retriever=TINY.retriever, **few)
    monkeypatch.setitem(recipes.RECIPES, "smollm2", short)
    save_dataset(shop(), tmp_path / "shop")
    arguments = ["--data", str(tmp_path / "shop"), "--out", str(tmp_path / "bundle")]
    assert main([*arguments, "--model", "smollm2"]) == 0
    bundle = Bundle.open(tmp_path / "bundle")
    assert bundle.manifest.backbone.base_model == "smollm2" and bundle.manifest.backbone.num_layers == 6
    titles = [item.title for item in bundle.catalogue.items]
    memory = np.random.default_rng(0).normal(size=(4, bundle.lm.hidden_size)).astype(np.float16)
    query = Query(bundle.prompt.tokens(titles[:3]), memory, np.ones(len(titles), bool), 4)
    (answer,) = recommend(bundle, [query])
    assert [item.source for item in answer.items] == ["generated"] * 4


def test_it_learns_to_reason_about_questions(tmp_path: Path) -> None:
    """A few steps of every kind; then a thought has the format, and the line about the ideal item is English words."""
    save_dataset(questions_dataset(120, seed=2), tmp_path / "data")
    assert train_words.main(["--data", f"{tmp_path}/data", "--out", f"{tmp_path}/words", "--encoder", "lsa"]) == 0
    options = ["--data", f"{tmp_path}/data", "--words", f"{tmp_path}/words", "--out", f"{tmp_path}/out"]
    assert reason.main([*options, "--model", "smollm2", "--recipe", "tiny"]) == 0
    words, reasoner = open_words(tmp_path / "words" / "words"), open_reasoner(tmp_path / "out" / "reasoner")
    split = words_split(questions_dataset(120, seed=2))
    target = split.targets(TEST)[0]
    memory = words.remember(split.history(target.user, target.timestamp))
    asked = WordsQuery(target.query, target.timestamp, memory)
    (answer,) = words.answer([asked], 10, reasoning="full", reasoner=reasoner)
    assert len(answer.rows) == 10 and answer.profile is not None and answer.profile.text.isascii()
