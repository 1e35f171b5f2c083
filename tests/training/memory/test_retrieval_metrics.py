"""The retriever judged alone: by hand on chosen scores, like training's own measure_retrieval, and with a real model's gains."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from model_store.bundle import Bundle
from model_store.manifest import RetrieverSpec
from model_store.memory.retriever import Retriever, choose
from tests.training.small import diary, shop
from training.data.splits import Split, time_split
from training.lm.likelihood import answer_log_probs, encode_answers
from training.lm.states import States
from training.lm.windows import Example
from training.memory.annotations import Annotation
from training.memory.learning import collate, measure_retrieval
from training.memory.retrieval_metrics import (
    CUTS,
    RANDOM_DRAWS,
    RetrievalRecords,
    measure_targets,
    read_records,
    retrieval_summary,
    retriever_scores,
    write_records,
)
from training.rows.evaluation import Evaluation, make_evaluation
from training.run.inputs import Inputs, fingerprint

D, DAY_S = 32, 86_400
POSITION = 20  # of every target made by hand; its memory are the events 0, 1, 2, …


class Fixed(Retriever):
    """Finds the scores that a test wrote into the states: element m has its logit in its first coordinate."""

    def __init__(self, null: float) -> None:
        super().__init__(D, width=2)
        self.null_logit = null

    def forward(self, query_state: Tensor, memory_states: Tensor, mask: Tensor) -> Tensor:
        logits = memory_states[:, :, 0].masked_fill(mask == 0, -torch.inf)
        return torch.cat([torch.full_like(logits[:, :1], self.null_logit), logits], dim=1).log_softmax(dim=1)


def by_hand(bundle: Bundle, cases: list[tuple[list[float], list[float]]], *, null: float = 0.0) -> RetrievalRecords:
    """One user for each (logits, gains); every event a day after the one before, but the first two at once."""
    bundle.retriever = Fixed(null)
    spec = bundle.manifest.retriever.model_copy(update={"top_k": 1})
    bundle.manifest = bundle.manifest.model_copy(update={"retriever": spec})
    arrays, annotations = {}, []
    for user, (logits, gains) in enumerate(cases):
        memory = np.zeros((len(logits), D), dtype=np.float16)
        memory[:, 0] = logits
        arrays[user] = memory
        log_probs = np.array([-5.0, *(-5.0 + gain for gain in gains)], dtype=np.float32)
        annotations.append(
            Annotation(user, POSITION, np.arange(len(gains)), np.zeros(D, dtype=np.float16), log_probs, 2)
        )
    examples = [Example(each.user, each.position, [1], (1,), each.memory_positions) for each in annotations]
    states = States(D, dict.fromkeys(arrays, 0), arrays)
    judged = measure_targets(bundle, dated(len(cases)), examples, annotations, states)
    assert judged is not None
    return judged


def dated(num_users: int) -> Split:
    split = diary(lengths=(30,) * num_users)
    days = np.maximum(np.arange(30) - 1, 0)
    return replace(split, histories=[replace(history, timestamps=DAY_S * days) for history in split.histories])


def test_one_target_by_hand(bundle: Bundle) -> None:
    """The best element, 2, is ranked second; the first, 1, is taken."""
    judged = by_hand(bundle, [([1.0, 3.0, 2.0], [-0.5, 0.25, 1.0])])
    assert judged.place_of_best.tolist() == [1]
    assert judged.retrieved_gain.tolist() == pytest.approx([0.25])
    assert judged.joint_gain.tolist() == pytest.approx([0.25])
    assert judged.newest_gain.tolist() == judged.best_gain.tolist() == pytest.approx([1.0])
    assert judged.correlation.tolist() == pytest.approx([0.5])
    assert judged.abstained.tolist() == [False]
    assert set(np.round(judged.random_gain[0], 4).tolist()) <= {-0.5, 0.25, 1.0}
    assert judged.random_gain.shape == (1, RANDOM_DRAWS)


def test_distances_are_to_the_event_that_ends_the_window(bundle: Bundle) -> None:
    judged = by_hand(bundle, [([1.0, 3.0, 2.0], [-0.5, 0.25, 1.0])])
    assert judged.distances("positions")["retrieved"].tolist() == [POSITION - 1]
    assert judged.distances("positions")["best"].tolist() == [POSITION - 2]
    assert judged.distances("days")["retrieved"].tolist() == [POSITION - 1], "the first two events are of one time"
    assert judged.distances("days")["best"].tolist() == [POSITION - 2]
    assert set(judged.distances("positions")["random"].tolist()) <= {POSITION - place for place in range(3)}
    assert len(judged.distances("days")["random"]) == RANDOM_DRAWS


def test_who_abstains_gains_nothing_and_lies_nowhere(bundle: Bundle) -> None:
    judged = by_hand(bundle, [([1.0, 2.0], [3.0, -1.0]), ([1.0, 9.0], [-2.0, -1.0])], null=5.0)
    assert judged.abstained.tolist() == [True, False]
    assert judged.retrieved_gain.tolist() == [0, -1]
    assert judged.first_gain.tolist() == [-1, -1]
    assert judged.oracle_gain.tolist() == [3, 0], "the oracle takes none where none helps"
    assert judged.distances("days")["retrieved"].tolist() == [POSITION - 1], "of the one that was taken"
    assert judged.distances("days")["best"].tolist() == [POSITION - 1], "of the one that some element helps"


def test_the_summary_by_hand(bundle: Bundle) -> None:
    """Best first; best second; abstains rightly where nothing helps; abstains wrongly."""
    cases = [([9.0, 6.0], [2.0, 1.0]), ([9.0, 6.0], [0.5, 1.0]), ([1.0, 2.0], [-1.0, -2.0]), ([1.0, 2.0], [0.0, 4.0])]
    found = retrieval_summary(by_hand(bundle, cases, null=5.0), top_k=1)
    assert (found["targets"], found["users"], found["elements"], found["top_k"]) == (4, 4, 2, 1)
    assert found["helped"][0] == pytest.approx(3 / 4)
    assert found["precision@1"][0] == pytest.approx(2 / 3), "of the three that some element helps"
    assert found["precision@3"] == (1, 1, 1)
    assert found["chance@1"][0] == pytest.approx(1 / 2)
    assert found["abstains"][0] == pytest.approx(1 / 2)
    assert found["abstains_rightly"][0] == pytest.approx(1 / 2)
    assert found["abstains_where_nothing_helps"] == (1, 1, 1)
    assert found["takes_what_helps"] == (1, 1, 1)
    assert found["gain_nats"]["retrieved"][0] == pytest.approx((2 + 0.5) / 4)
    assert found["gain_nats"]["oracle"][0] == pytest.approx((2 + 1 + 4) / 4)
    assert found["captured"] is None or found["captured"][0] == pytest.approx(2.5 / 7)
    assert found["captured_joint"] is None, "one element alone is not joint"
    assert found["rank_correlation"][0] == pytest.approx((1 - 1 - 1 + 1) / 4)


def test_what_does_not_exist_is_none(bundle: Bundle) -> None:
    """Nothing helps anywhere, everybody abstains, one element has no order."""
    found = retrieval_summary(by_hand(bundle, [([1.0], [-1.0]), ([1.0], [-2.0])], null=5.0), top_k=1)
    undefined = ("captured", "rank_correlation", "takes_what_helps", *(f"precision@{k}" for k in CUTS))
    assert all(found[name] is None for name in undefined), {name: found[name] for name in undefined}
    assert found["distance"]["days"]["retrieved"] is None
    assert found["distance"]["days"]["random"]["mean"] == POSITION - 1
    assert found["abstains"] == (1, 1, 1)


def test_without_memory_there_is_nothing_to_judge(bundle: Bundle) -> None:
    empty = Annotation(0, 2, np.arange(0), np.zeros(D, dtype=np.float16), np.array([-5.0], dtype=np.float32), 1)
    assert measure_targets(bundle, diary(), [], [empty], States(D, {}, {})) is None


# --- a real model -------------------------------------------------------------------------------------------------


def real_contest(
    make_bundle: Any, tmp_path: Path, *, top_k: int
) -> tuple[Evaluation, list[Annotation], RetrievalRecords]:
    dataset = shop()
    split = time_split(dataset)
    bundle = Bundle.open(make_bundle(retriever=RetrieverSpec(width=16, top_k=top_k)))
    evaluation = make_evaluation(
        bundle, Inputs(dataset, split, fingerprint(split)), split.test[:12], tmp_path / "cache"
    )
    annotations = evaluation.annotate()
    torch.nn.init.zeros_(bundle.retriever.null.weight)
    torch.nn.init.zeros_(bundle.retriever.null.bias)
    log_scores = retriever_scores(bundle, annotations, evaluation.states)
    torch.nn.init.constant_(bundle.retriever.null.bias, float((log_scores[:, 1:].amax(1) - log_scores[:, 0]).median()))
    judged = measure_targets(bundle, split, evaluation.examples, annotations, evaluation.states)
    assert judged is not None
    assert 0 < judged.abstained.sum() < len(judged.abstained), "all abstain, or none does: half of it goes untested"
    return evaluation, annotations, judged


def test_it_agrees_with_the_judge_that_training_uses(make_bundle: Any, tmp_path: Path) -> None:
    evaluation, annotations, judged = real_contest(make_bundle, tmp_path, top_k=1)
    quality = measure_retrieval(evaluation.bundle.retriever, collate(annotations, evaluation.states, "log_gain", 0.1))
    found = retrieval_summary(judged, top_k=1)
    assert found["abstains"][0] == pytest.approx(quality.abstains)
    assert found["gain_nats"]["retrieved"][0] == pytest.approx(quality.gain, abs=1e-5)
    assert found["gain_nats"]["oracle"][0] == pytest.approx(quality.oracle_gain, abs=1e-5)
    taken = judged.place_of_best[(judged.best_gain > 0) & ~judged.abstained] == 0
    assert taken.sum() / (judged.best_gain > 0).sum() == pytest.approx(quality.precision_at_1)


def test_joint_gain_is_that_of_all_that_is_shown_together(make_bundle: Any, tmp_path: Path) -> None:
    evaluation, annotations, judged = real_contest(make_bundle, tmp_path, top_k=3)
    lm, spec = evaluation.bundle.lm, evaluation.bundle.manifest.retriever
    examples = {(example.user, example.position): example for example in evaluation.examples}
    ordered = sorted(annotations, key=lambda each: len(each.memory_positions))
    for each, joint, abstained in zip(ordered, judged.joint_gain, judged.abstained, strict=True):
        example = examples[each.user, each.position]
        memory = torch.from_numpy(each.memory(evaluation.states).astype(np.float32))
        query = torch.from_numpy(each.query_state.astype(np.float32))
        with torch.inference_mode():
            scores = evaluation.bundle.retriever(query[None], memory[None], torch.ones(1, len(memory)))
            choice = choose(scores, spec.top_k)
            shown = memory[choice.indices[0][choice.mask[0] == 1]][None]
            understood = encode_answers(lm, [example.prompt], [example.answer])
            with_it = answer_log_probs(lm, understood, shown, torch.ones(shown.shape[:2]).long(), spec.combine)
        assert joint == pytest.approx(float(with_it) - each.log_probs[0], abs=1e-4)
        assert abstained == (shown.shape[1] == 0)
    assert not np.allclose(judged.joint_gain, judged.retrieved_gain), "three elements say the same as one"
    assert retrieval_summary(judged, top_k=3)["gain_nats"]["joint"][0] == pytest.approx(judged.joint_gain.mean())


def test_what_was_judged_is_read_back_whole(make_bundle: Any, tmp_path: Path) -> None:
    _, _, judged = real_contest(make_bundle, tmp_path, top_k=1)
    write_records(judged, tmp_path / "judged.safetensors")
    back = read_records(tmp_path / "judged.safetensors")
    for name, values in vars(judged).items():
        np.testing.assert_array_equal(getattr(back, name), values, err_msg=name)
