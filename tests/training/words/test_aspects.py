"""Aspects tell chosen from similar items, are shared by enough people, and read the train period only."""

import os
import subprocess
import sys

import numpy as np

from model_store.words.aspects import MIN_USERS, GlobalMemory
from training.data.questions import OCCASIONS, questions_dataset
from training.words.aspects import global_memory
from training.words.indexing import documents, make_index
from training.words.split import TRAIN, VALID, words_split

FACTS = """
from training.data.questions import questions_dataset
from training.words.aspects import global_memory
from training.words.indexing import make_index
from training.words.split import VALID, words_split

split = words_split(questions_dataset(150, seed=1))
print(global_memory(split, make_index(split, "lsa", None, split.targets(VALID)[:50])).facts())
"""
SPLIT = words_split(questions_dataset(150, seed=1))


def test_aspects_name_the_theme_of_an_occasion() -> None:
    index = make_index(SPLIT, "lsa", None, SPLIT.targets(VALID)[:50])
    known = global_memory(SPLIT, index)
    assert len(known)
    assert all(aspect.num_users >= MIN_USERS for aspect in known.aspects)
    for theme, occasion in OCCASIONS.items():
        names = {aspect.name for aspect in known.aspects if occasion in aspect.scenario}
        assert theme in names, f"nothing says that {occasion} means {theme}"
    again = GlobalMemory.from_facts(known.facts(), known.vectors.astype(np.float16))
    assert again.aspects == known.aspects


def test_a_second_process_finds_the_same_aspects_in_the_same_order() -> None:
    """The order of a set of texts differs from process to process; what is learned must not."""
    first, second = (
        subprocess.run(
            [sys.executable, "-c", FACTS],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        for seed in "12"
    )
    assert first == second and len(first) > 100


def test_documents_have_queries_of_the_train_period_only() -> None:
    later = {query for query, period in zip(SPLIT.queries, SPLIT.periods, strict=True) if query and period != TRAIN}
    earlier = {query for query, period in zip(SPLIT.queries, SPLIT.periods, strict=True) if query and period == TRAIN}
    phrases = {phrase for text in documents(SPLIT) for phrase, _ in text.phrases}
    assert later - earlier
    assert phrases <= earlier and not phrases & (later - earlier)
