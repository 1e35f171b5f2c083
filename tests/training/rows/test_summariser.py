"""What stays in a summary: S titles in their order, by what the language model said they are worth."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from model_store.bundle import Bundle
from tests.training.contests import SPLIT, shorten_summariser
from tests.training.small import diary
from training.rows import summariser
from training.rows.summariser import Example, Sizes, Summariser, label_weights, learning_examples
from training.run.loop import Schedule

SIZES = Sizes(block=5, summary=2)
LISTS = [[3, 1, 4, 15, 9, 2], [6, 5, 3], [8, 9, 7, 0, 11, 12, 13]]


@pytest.fixture
def chooses(bundle: Bundle) -> Summariser:
    torch.manual_seed(0)
    rows = np.array([bundle.catalogue.rows[item_id] for item_id in SPLIT.item_ids])
    return Summariser(bundle, SPLIT.titles, bundle.index.vectors(rows), SIZES)


def test_s_titles_stay_in_their_order(chooses: Summariser) -> None:
    for items, kept in zip(LISTS, chooses.select(LISTS), strict=True):
        assert len(kept) == SIZES.summary
        later = iter(items)
        assert all(item in later for item in kept), f"{kept} is not in the order of {items}"


def test_what_stays_depends_on_its_own_list_alone(chooses: Summariser) -> None:
    together = chooses.select(LISTS)
    assert together == [chooses.select([items])[0] for items in LISTS]
    assert chooses.select([]) == []


def test_few_titles_all_stay_and_a_repeated_one_stays_once(chooses: Summariser) -> None:
    assert chooses.select([[], [4], [4, 4, 5], [5, 4, 5]]) == [(), (4,), (4, 5), (4, 5)]


def test_a_list_is_read_as_one_prompt_and_its_titles_alone(chooses: Summariser) -> None:
    reading = chooses.read(LISTS)
    for row, items in enumerate(LISTS):
        tokens = [token for item in items for token in chooses.prompt.title_tokens(SPLIT.titles[item])]
        ids = torch.tensor([[*chooses.prompt.head, *tokens]])
        end = chooses.lm.top_hidden(chooses.lm.bottom(ids, torch.ones_like(ids)), torch.ones_like(ids))[0, -1]
        torch.testing.assert_close(reading.end[row], end, atol=1e-4, rtol=1e-4)
        assert np.array_equal(reading.titles[row, : len(items)].numpy(), chooses.vectors[items])
        assert reading.mask[row].tolist() == [1] * len(items) + [0] * (SIZES.most - len(items))


def test_worth_is_the_log_probability_of_what_followed(chooses: Summariser) -> None:
    example = Example([3, 8], [1, 6, 1])
    answer = [token for item in example.following for token in chooses.prompt.title_tokens(SPLIT.titles[item])]
    for candidate, worth in zip(example.candidates, chooses.worth(example).tolist(), strict=True):
        prompt = [*chooses.prompt.head, *chooses.prompt.title_tokens(SPLIT.titles[candidate])]
        ids = torch.tensor([[*prompt, *answer]])
        log_probs = chooses.lm.top(chooses.lm.bottom(ids, torch.ones_like(ids)), torch.ones_like(ids)).log_softmax(-1)
        said = log_probs[0, len(prompt) - 1 : -1].gather(1, torch.tensor(answer)[:, None]).sum()
        assert worth == pytest.approx(float(said), rel=1e-4)


def test_label_weights_follow_worth_and_know_no_scale() -> None:
    worth = torch.tensor([-30.0, -10.0, -20.0])
    weights = label_weights(worth)
    assert float(weights.sum()) == pytest.approx(1)
    assert weights.argsort().tolist() == worth.argsort().tolist()
    torch.testing.assert_close(label_weights(5 * worth - 3), weights)
    torch.testing.assert_close(label_weights(torch.full((4,), -7.0)), torch.full((4,), 0.25))


def test_examples_are_of_the_train_period_and_what_follows_comes_after() -> None:
    split = diary((40, 14, 9, 2))
    examples = learning_examples(split, SIZES, seed=0)
    assert len(examples) == summariser.NUM_EXAMPLES
    trained = {int(item) for history in split.histories for item in history.items[: history.train_end]}
    for example in examples:
        assert example.following and {*example.candidates, *example.following} <= trained
        assert example.candidates == sorted(example.candidates), "not in the order of time"
        assert len(example.candidates) == SIZES.most
        assert example.following[0] == example.candidates[-1] + 1, "in a diary the next item has the next number"
    assert learning_examples(split, SIZES, seed=0) == examples
    assert learning_examples(split, SIZES, seed=1) != examples
    assert learning_examples(diary((8, 2)), SIZES, seed=0) == [], "too short to learn from"


def test_the_chooser_learns_what_the_language_model_says(
    chooses: Summariser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Told that books with a low number are worth most, it keeps them in lists that it never saw."""
    monkeypatch.setattr(summariser, "NUM_EXAMPLES", 150)
    monkeypatch.setattr(summariser, "SCHEDULE", Schedule(max_steps=200, learning_rate=1e-2, evaluate_every=50))
    monkeypatch.setattr(
        Summariser, "worth", lambda self, example: torch.tensor([-float(item) for item in example.candidates])
    )
    before = [sum(kept) for kept in chooses.select(LISTS)]
    loss = chooses.train(SPLIT, seed=0, checkpoints=tmp_path)
    assert loss is not None and loss < 0.1
    after = [sum(kept) for kept in chooses.select(LISTS)]
    best = [sum(sorted(items)[: SIZES.summary]) for items in LISTS]
    assert sum(after) - sum(best) <= (sum(before) - sum(best)) / 3, f"{after} of {best} at best, {before} before"


def test_without_long_histories_nothing_is_learned(
    chooses: Summariser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shorten_summariser(monkeypatch)
    short = replace(SPLIT, histories=[replace(history, train_end=3) for history in SPLIT.histories])
    assert chooses.train(short, seed=0, checkpoints=tmp_path) is None
