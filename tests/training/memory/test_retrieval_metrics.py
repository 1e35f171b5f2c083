"""Metrics of the retriever: by hand, equal to those of training, and with the gains of a real model."""

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
POSITION = 20  # of every target made by hand; its memory consists of the events 0, 1, 2, …


class Fixed(Retriever):
    """Reads its logits from the states: the first coordinate of a memory state is its logit."""

    def __init__(self, null: float) -> None:
        super().__init__(D, width=2)
        self.null_logit = null

    def forward(self, query_state: Tensor, memory_states: Tensor, mask: Tensor) -> Tensor:
        logits = memory_states[:, :, 0].masked_fill(mask == 0, -torch.inf)
        return torch.cat([torch.full_like(logits[:, :1], self.null_logit), logits], dim=1).log_softmax(dim=1)


def by_hand(bundle: Bundle, cases: list[tuple[list[float], list[float]]], *, null: float = 0.0) -> RetrievalRecords:
    """One user for each (logits, gains). Events are one day apart, except the first two, which have one time."""
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
    records = measure_targets(bundle, dated(len(cases)), examples, annotations, states)
    assert records is not None
    return records


def dated(num_users: int) -> Split:
    split = diary(lengths=(30,) * num_users)
    days = np.maximum(np.arange(30) - 1, 0)
    return replace(split, histories=[replace(history, timestamps=DAY_S * days) for history in split.histories])


def test_one_target_by_hand(bundle: Bundle) -> None:
    """The best memory, 2, is ranked second; memory 1 is ranked first and taken."""
    records = by_hand(bundle, [([1.0, 3.0, 2.0], [-0.5, 0.25, 1.0])])
    assert records.place_of_best.tolist() == [1]
    assert records.retrieved_gain.tolist() == pytest.approx([0.25])
    assert records.joint_gain.tolist() == pytest.approx([0.25])
    assert records.newest_gain.tolist() == records.best_gain.tolist() == pytest.approx([1.0])
    assert records.correlation.tolist() == pytest.approx([0.5])
    assert records.abstained.tolist() == [False]
    assert set(np.round(records.random_gain[0], 4).tolist()) <= {-0.5, 0.25, 1.0}
    assert records.random_gain.shape == (1, RANDOM_DRAWS)


def test_distances_are_measured_to_the_last_event_of_a_window(bundle: Bundle) -> None:
    records = by_hand(bundle, [([1.0, 3.0, 2.0], [-0.5, 0.25, 1.0])])
    assert records.distances("positions")["retrieved"].tolist() == [POSITION - 1]
    assert records.distances("positions")["best"].tolist() == [POSITION - 2]
    assert records.distances("days")["retrieved"].tolist() == [POSITION - 1], "the first two events have one time"
    assert records.distances("days")["best"].tolist() == [POSITION - 2]
    assert set(records.distances("positions")["random"].tolist()) <= {POSITION - place for place in range(3)}
    assert len(records.distances("days")["random"]) == RANDOM_DRAWS


def test_abstaining_has_gain_zero_and_no_distance(bundle: Bundle) -> None:
    records = by_hand(bundle, [([1.0, 2.0], [3.0, -1.0]), ([1.0, 9.0], [-2.0, -1.0])], null=5.0)
    assert records.abstained.tolist() == [True, False]
    assert records.retrieved_gain.tolist() == [0, -1]
    assert records.first_gain.tolist() == [-1, -1]
    assert records.oracle_gain.tolist() == [3, 0], "the oracle takes no memory if none helps"
    assert records.distances("days")["retrieved"].tolist() == [POSITION - 1], "only one memory was taken"
    assert records.distances("days")["best"].tolist() == [POSITION - 1], "only one target is helped by some memory"


def test_the_summary_by_hand(bundle: Bundle) -> None:
    """Four targets: best memory first, best second, abstains rightly, abstains wrongly."""
    cases = [([9.0, 6.0], [2.0, 1.0]), ([9.0, 6.0], [0.5, 1.0]), ([1.0, 2.0], [-1.0, -2.0]), ([1.0, 2.0], [0.0, 4.0])]
    found = retrieval_summary(by_hand(bundle, cases, null=5.0), top_k=1)
    assert (found["targets"], found["users"], found["elements"], found["top_k"]) == (4, 4, 2, 1)
    assert found["helped"][0] == pytest.approx(3 / 4)
    assert found["precision@1"][0] == pytest.approx(2 / 3), "some memory helps three targets"
    assert found["precision@3"] == (1, 1, 1)
    assert found["chance@1"][0] == pytest.approx(1 / 2)
    assert found["abstains"][0] == pytest.approx(1 / 2)
    assert found["abstains_rightly"][0] == pytest.approx(1 / 2)
    assert found["abstains_where_nothing_helps"] == (1, 1, 1)
    assert found["takes_what_helps"] == (1, 1, 1)
    assert found["gain_nats"]["retrieved"][0] == pytest.approx((2 + 0.5) / 4)
    assert found["gain_nats"]["oracle"][0] == pytest.approx((2 + 1 + 4) / 4)
    assert found["captured"] is None or found["captured"][0] == pytest.approx(2.5 / 7)
    assert found["captured_joint"] is None, "one memory has no joint gain"
    assert found["rank_correlation"][0] == pytest.approx((1 - 1 - 1 + 1) / 4)


def test_undefined_metrics_are_none(bundle: Bundle) -> None:
    """No memory helps any target, the retriever always abstains, and one memory has no order."""
    found = retrieval_summary(by_hand(bundle, [([1.0], [-1.0]), ([1.0], [-2.0])], null=5.0), top_k=1)
    undefined = ("captured", "rank_correlation", "takes_what_helps", *(f"precision@{k}" for k in CUTS))
    assert all(found[name] is None for name in undefined), {name: found[name] for name in undefined}
    assert found["distance"]["days"]["retrieved"] is None
    assert found["distance"]["days"]["random"]["mean"] == POSITION - 1
    assert found["abstains"] == (1, 1, 1)


def test_without_memory_there_are_no_records(bundle: Bundle) -> None:
    empty = Annotation(0, 2, np.arange(0), np.zeros(D, dtype=np.float16), np.array([-5.0], dtype=np.float32), 1)
    assert measure_targets(bundle, diary(), [], [empty], States(D, {}, {})) is None


# --- a real model -------------------------------------------------------------------------------------------------


def real_records(
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
    records = measure_targets(bundle, split, evaluation.examples, annotations, evaluation.states)
    assert records is not None
    assert 0 < records.abstained.sum() < len(records.abstained), (
        "the retriever abstains always or never, so half of the cases are not tested"
    )
    return evaluation, annotations, records


def test_it_agrees_with_measure_retrieval(make_bundle: Any, tmp_path: Path) -> None:
    evaluation, annotations, records = real_records(make_bundle, tmp_path, top_k=1)
    quality = measure_retrieval(evaluation.bundle.retriever, collate(annotations, evaluation.states, "log_gain", 0.1))
    found = retrieval_summary(records, top_k=1)
    assert found["abstains"][0] == pytest.approx(quality.abstains)
    assert found["gain_nats"]["retrieved"][0] == pytest.approx(quality.gain, abs=1e-5)
    assert found["gain_nats"]["oracle"][0] == pytest.approx(quality.oracle_gain, abs=1e-5)
    taken = records.place_of_best[(records.best_gain > 0) & ~records.abstained] == 0
    assert taken.sum() / (records.best_gain > 0).sum() == pytest.approx(quality.precision_at_1)


def test_the_joint_gain_is_that_of_all_chosen_memories(make_bundle: Any, tmp_path: Path) -> None:
    evaluation, annotations, records = real_records(make_bundle, tmp_path, top_k=3)
    lm, spec = evaluation.bundle.lm, evaluation.bundle.manifest.retriever
    examples = {(example.user, example.position): example for example in evaluation.examples}
    ordered = sorted(annotations, key=lambda each: len(each.memory_positions))
    for each, joint, abstained in zip(ordered, records.joint_gain, records.abstained, strict=True):
        example = examples[each.user, each.position]
        memory = torch.from_numpy(each.memory(evaluation.states).astype(np.float32))
        query = torch.from_numpy(each.query_state.astype(np.float32))
        with torch.inference_mode():
            scores = evaluation.bundle.retriever(query[None], memory[None], torch.ones(1, len(memory)))
            choice = choose(scores, spec.top_k)
            shown = memory[choice.indices[0][choice.mask[0] == 1]][None]
            encoded = encode_answers(lm, [example.prompt], [example.answer])
            with_it = answer_log_probs(lm, encoded, shown, torch.ones(shown.shape[:2]).long(), spec.combine)
        assert joint == pytest.approx(float(with_it) - each.log_probs[0], abs=1e-4)
        assert abstained == (shown.shape[1] == 0)
    assert not np.allclose(records.joint_gain, records.retrieved_gain), "three memories gain the same as one"
    assert retrieval_summary(records, top_k=3)["gain_nats"]["joint"][0] == pytest.approx(records.joint_gain.mean())


def test_records_are_the_same_after_writing_and_reading(make_bundle: Any, tmp_path: Path) -> None:
    _, _, records = real_records(make_bundle, tmp_path, top_k=1)
    write_records(records, tmp_path / "records.safetensors")
    back = read_records(tmp_path / "records.safetensors")
    for name, values in vars(records).items():
        np.testing.assert_array_equal(getattr(back, name), values, err_msg=name)
