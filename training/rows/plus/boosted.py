"""Row `boosted`: boosted trees rank the candidates of the voices. The reference for how well they can be combined.

In: an evaluation whose bundle has voices. Out: lists. The trees (`HistGradientBoostingClassifier`) read exactly the
features that the combiner reads, and learn from the same targets: those that teach the voices teach the trees, and
those that judge end the training. They tell the true item from the other candidates. A library has them, but they are
slower to serve and may not be unpickled, so the product has a network.

The trees are not kept, because reading them back needs pickle; the lists are, as those of every row.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier

from model_store.voices.candidates import Candidates
from training.items.pasts import Pasts
from training.items.voice_setup import learning_targets
from training.items.voting import RankedTargets, candidates_of
from training.lm.backbone import Backbone
from training.lm.forecasts import forecast_of
from training.lm.windows import Windows
from training.rows.evaluation import Evaluation, RankedLists
from training.rows.plus.voice_rows import rank_by
from training.run.stage import StageError, begin, digest, finish, progress

_VERSION = 1
_TREES, _RATE, _PATIENCE = 300, 0.05, 20
_LEAF = 200  # candidates; one in hundreds is the true item, so smaller leaves learn single targets by heart
_LEAST = 1e-12


def boosted(evaluation: Evaluation, seed: int) -> RankedLists:
    trees = evaluation.compute_once("boosted", lambda: fit_trees(evaluation))

    def score(candidates: Candidates) -> NDArray[np.float32]:
        if not len(candidates.tokens):
            return np.zeros(0, dtype=np.float32)
        found = trees.predict_proba(features(candidates, evaluation.voices.combiner.num_older))[:, 1]
        return np.log(np.maximum(found, _LEAST)).astype(np.float32)

    return rank_by(evaluation, score, "boosted")


def features(candidates: Candidates, num_older: int) -> NDArray[np.float32]:
    """(c, F + F') as the combiner reads them: zeros for a user without older events."""
    older = candidates.older
    if older is None:
        older = np.zeros((len(candidates.tokens), num_older), dtype=np.float32)
    return np.concatenate([candidates.window, older], axis=1)


def fit_trees(evaluation: Evaluation) -> Any:
    """Raises StageError where there is nothing to learn from."""
    teach, judge = _learning_candidates(evaluation)
    if not len(teach.truth) or not len(judge.truth):
        raise StageError("no valid target has its true item among the candidates, so the trees have nothing to learn")
    parts = [*_table(teach), *_table(judge)]
    trees = HistGradientBoostingClassifier(
        max_iter=_TREES,
        learning_rate=_RATE,
        min_samples_leaf=_LEAF,
        early_stopping=True,
        n_iter_no_change=_PATIENCE,
        random_state=0,
    )
    trees.fit(parts[0], parts[1], X_val=parts[2], y_val=parts[3])
    directory = trees_directory(evaluation)
    begin(directory)
    facts = {"settings": {"trees": trees.n_iter_}, "targets": {"teach": len(teach.truth), "judge": len(judge.truth)}}
    finish(directory, directory.name, facts)
    return trees


def _learning_candidates(evaluation: Evaluation) -> list[RankedTargets]:
    """Candidates of the targets that taught the voices, and of those that judged."""
    voices, manifest, split = evaluation.voices, evaluation.bundle.manifest, evaluation.split
    recipe, seed = evaluation.training.require_recipe(), int(manifest.provenance.get("seed", 0))
    backbone = Backbone(manifest.backbone, manifest.vocabulary, evaluation.bundle.lm, evaluation.bundle.prompt)
    windows = Windows(split, backbone.prompt, recipe.max_memory)
    pasts = Pasts(split, evaluation.tokens, length=voices.spec.past_length)
    parts = learning_targets(split, recipe, len(voices), seed)
    return [
        candidates_of(voices, pasts, targets, lambda each: forecast_of(backbone, windows, each))
        for targets in progress(parts, desc="boosted", unit="part")
    ]


def _table(ranked: RankedTargets) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """One line for each candidate: its features, and whether it is the true item."""
    mask = ranked.mask.numpy()
    is_truth = np.arange(mask.shape[1]) == ranked.truth.numpy()[:, None]
    table = np.concatenate([ranked.window.numpy()[mask], ranked.older.numpy()[mask]], axis=1)
    return table, is_truth[mask]


def trees_directory(evaluation: Evaluation) -> Path:
    """Where the facts of the trees are."""
    training, manifest = evaluation.training, evaluation.bundle.manifest
    key = digest([_VERSION, training.fingerprint, manifest.space, manifest.provenance.get("voices")])
    return training.directory / f"boosted-{key}"


def trees_place(evaluation: Evaluation, seed: int) -> Path:
    return trees_directory(evaluation)
