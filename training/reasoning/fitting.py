"""The weights of the ranking that fit a reasoner, and how the ranking with it compares with the deterministic one.

The language model writes other ideal items than the deterministic reasoner, so the features deserve other weights.
They are learned from its most probable thoughts, as the weights of all rows are; how far memory is used is chosen on
users that did not teach.
"""

from collections.abc import Sequence

import numpy as np

from model_store.words.index import Values
from model_store.words.ranker import Ranker
from training.reasoning.judging import Sample
from training.run.metrics import paired_bootstrap
from training.words.examples import Example
from training.words.learning import choose_scale, fit_weights, ndcgs
from training.words.rows import EVERYTHING

_SELECTOR_INPUTS = np.zeros((1, 0), dtype=np.float32)  # not read here


def fit_ranker(base: Ranker, teach: Sequence[Sample], choose: Sequence[Sample]) -> Ranker:
    """The weights without memory are those of `base`."""
    features = _Features([*teach, *choose])
    joint = fit_weights([_example(sample) for sample in teach], features, EVERYTHING, base.spread)
    fitted = Ranker(base.alone, joint, base.spread, 1.0)
    return choose_scale(fitted, [_example(sample) for sample in choose], features)


def over_deterministic(samples: Sequence[Sample], base: Ranker, fitted: Ranker) -> list[float]:
    """Mean difference in NDCG@100 from the deterministic reasoner, and its 95 % interval by user."""
    examples = [_example(sample) for sample in samples]
    usual = {
        id(example.evidence): sample.situation.features(
            sample.situation.default, sample.situation.selected(sample.situation.default), None
        )
        for example, sample in zip(examples, samples, strict=True)
    }
    columns = {
        "deterministic": ndcgs(base, examples, lambda example: usual[id(example.evidence)]),
        "reasoner": ndcgs(fitted, examples, _Features(samples)),
    }
    found = paired_bootstrap(columns, np.array([sample.situation.target.user for sample in samples]))
    return [round(value, 5) for value in found.difference("reasoner", "deterministic")]


class _Features:
    """Example → features with the first thought about it."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self._of = {id(sample.situation.evidence): sample for sample in samples}

    def __call__(self, example: Example) -> Values:
        sample = self._of[id(example.evidence)]
        thought = sample.thoughts[0]
        return sample.situation.features(thought.need, thought.used, thought.ideal)


def _example(sample: Sample) -> Example:
    situation = sample.situation
    return Example(situation.target, situation.evidence, situation.is_answer, {"profile": [0]}, _SELECTOR_INPUTS, 0.0)
