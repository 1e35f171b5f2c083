"""Boosted trees read what the combiner reads, of the targets that taught the voices."""

from pathlib import Path

import numpy as np
import pytest

from model_store.voices.candidates import find_candidates
from tests.training.evaluations import RECIPE, SPLIT, TARGETS, bundle_with_voices, small_evaluation
from training.data.splits import Target
from training.items.pasts import Pasts
from training.items.voice_setup import learning_targets
from training.items.voting import candidates_of
from training.rows.evaluation import Evaluation
from training.rows.plus import boosted
from training.rows.registry import certificate, predict
from training.run.stage import StageError


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    root = tmp_path_factory.mktemp("boosted")
    return small_evaluation(bundle_with_voices(root / "bundle"), root / "cache")


def flat_forecast(targets: object) -> np.ndarray:
    return np.full((len(targets), 21), 1 / 21, dtype=np.float32)  # type: ignore[arg-type]


def test_a_line_of_the_table_is_what_a_candidate_has_when_it_is_ranked(evaluation: Evaluation) -> None:
    voices, targets = evaluation.voices, [target for target in TARGETS if target.position > 3]
    pasts = Pasts(SPLIT, evaluation.tokens, length=12)
    table, is_truth = boosted._table(candidates_of(voices, pasts, targets, flat_forecast))
    mixtures = voices.mix(flat_forecast(targets), [pasts.past(target) for target in targets])
    found = [find_candidates(mixtures, row, pasts.allowed(target)) for row, target in enumerate(targets)]
    lines = np.concatenate([boosted.features(each, voices.combiner.num_older) for each in found])
    np.testing.assert_array_equal(table, lines)
    tokens = np.concatenate([each.tokens for each in found])
    assert tokens[is_truth].tolist() == [pasts.truth(target) for target in targets]


def test_users_without_older_events_have_zeros(evaluation: Evaluation) -> None:
    pasts, target = Pasts(SPLIT, evaluation.tokens, length=12), Target(0, 2)
    mixtures = evaluation.voices.mix(flat_forecast([target]), [pasts.past(target)])
    candidates = find_candidates(mixtures, 0, None)
    num_older = evaluation.voices.combiner.num_older
    assert candidates.older is None
    assert not boosted.features(candidates, num_older)[:, -num_older:].any()


def test_the_trees_learn_from_the_targets_of_the_voices(
    evaluation: Evaluation, monkeypatch: pytest.MonkeyPatch
) -> None:
    learned: list[Target] = []

    def spy(voices: object, pasts: object, targets: list[Target], forecast: object) -> object:
        learned.extend(targets)
        return candidates_of(voices, pasts, targets, forecast)  # type: ignore[arg-type]

    monkeypatch.setattr(boosted, "candidates_of", spy)
    lists = predict(evaluation, "boosted", 0)
    assert all(len(set(ranked)) == 10 for ranked in lists)
    teach, judge = learning_targets(SPLIT, RECIPE, len(evaluation.voices), 0)
    assert learned == [*teach, *judge] and set(learned) <= set(SPLIT.valid)
    facts = certificate(evaluation, "boosted", 0)
    assert facts is not None and facts["settings"]["trees"] > 0
    learned.clear()
    predict(evaluation, "boosted", 0)
    assert not learned, "the trees are fitted once"


def test_without_valid_targets_there_is_a_clear_error(evaluation: Evaluation, tmp_path: Path) -> None:
    nothing = small_evaluation(evaluation.bundle, tmp_path)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(boosted, "learning_targets", lambda *args: ([], []))
        with pytest.raises(StageError, match="nothing to learn"):
            predict(nothing, "boosted", 0)
