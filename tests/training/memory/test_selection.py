"""Gains of many retrievers computed together equal those computed one by one, in likelihood and in ranks."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from model_store.memory.retriever import Retriever, choose
from tests.conftest import small_voices
from tests.training.small import TINY, diary, small_lm, small_windows
from tests.training.worlds import chain
from training import annotate as annotate_stage
from training.data.splits import Target
from training.items.pasts import Pasts
from training.lm import tuning
from training.lm.backbone import Backbone, open_backbone
from training.lm.likelihood import EncodedBatch, answer_log_probs, encode_answers
from training.lm.states import spans_of, window_states
from training.lm.windows import Windows
from training.memory import selection
from training.memory.annotations import Annotation, AnnotationSet, annotate, read_annotation_set
from training.memory.learning import collate
from training.memory.selection import (
    ServedRanking,
    is_significant,
    joint_gains,
    padded_memory,
    valid_gains,
)

SPLIT = chain()
TOP_KS = (1, 3)


@pytest.fixture(scope="module", params=["titles", "items"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Backbone, AnnotationSet]:
    recipe, out = replace(TINY, vocabulary=request.param), tmp_path_factory.mktemp(request.param)
    tuning.run(SPLIT, out / "sft", recipe=recipe, inputs="x")
    annotate_stage.run(SPLIT, out / "labels", backbone_dir=out / "sft", recipe=recipe, inputs="y")
    return open_backbone(out / "sft", torch.device("cpu")), read_annotation_set(out / "labels").with_memory()


def retrievers(hidden_size: int) -> dict[str, Retriever]:
    """Two retrievers that choose memories, and one that always abstains."""
    found = {}
    for name, null in (("a", -9.0), ("b", -9.0), ("none", 99.0)):
        torch.manual_seed(ord(name[0]))
        found[name] = Retriever(hidden_size, width=8)
        torch.nn.init.constant_(found[name].null.bias, null)
    return found


def picked_for(retriever: Retriever, annotated: AnnotationSet, each: Annotation, top_k: int) -> list[int]:
    batch = collate([each], annotated.states, "log_gain", 1.0)
    choice = choose(retriever(batch.query, batch.memory, batch.mask), top_k)
    places: list[int] = choice.indices[choice.mask == 1].tolist()
    return places


def served(backbone: Backbone) -> ServedRanking:
    tokens = np.array([backbone.prompt.title_tokens(title)[0] for title in SPLIT.titles], dtype=np.int64)
    voices = small_voices(len(SPLIT.titles), recent_length=TINY.recent_length)
    return ServedRanking(voices, Pasts(SPLIT, tokens, length=12))


@pytest.mark.parametrize("has_voices", [False, True])
@torch.inference_mode()
def test_gains_equal_those_of_single_targets(has_voices: bool, made: tuple[Backbone, AnnotationSet]) -> None:
    backbone, annotated = made
    if has_voices and backbone.vocabulary == "titles":
        return  # voices need the item vocabulary
    ranking = served(backbone) if has_voices else None
    lm, windows = backbone.lm, Windows(SPLIT, backbone.prompt, TINY.max_memory)
    candidates = retrievers(lm.hidden_size)
    found = valid_gains(
        candidates,
        TOP_KS,
        annotated.choose,
        backbone,
        windows,
        states=annotated.states,
        placement="insert",
        served=ranking,
    )
    assert found.keys() == {(name, top_k) for name in candidates for top_k in TOP_KS}
    for (name, top_k), gains in found.items():
        assert (gains.ndcg is not None) == (backbone.vocabulary == "items")
        for place, each in enumerate(annotated.choose):
            picked = picked_for(candidates[name], annotated, each, top_k)
            target = next(t for t in SPLIT.valid if (t.user, t.position) == (each.user, each.position))
            example = windows.example(target)
            alone = encode_answers(lm, [example.prompt], [example.answer], [example.excluded])

            def memory(places: list[int], each: Annotation = each) -> tuple[Tensor, Tensor]:
                states = torch.from_numpy(each.memory(annotated.states)[places]).float()[None]
                return states, torch.ones(1, len(places), dtype=torch.long)

            expected = [float(answer_log_probs(lm, alone, *memory(places), "insert")) for places in (picked, [])]
            assert gains.nats[place] == pytest.approx(expected[0] - expected[1], abs=1e-3), f"{name}, {top_k}"
            if gains.ndcg is not None:
                with_memory, without = (
                    ndcg_of(backbone, alone, memory(some), ranking, target) for some in (picked, [])
                )
                gained = with_memory - without
                assert gains.ndcg[place] == pytest.approx(gained, abs=1e-6)
    assert not found["none", 1].nats.any(), "a retriever that abstains has no gain"


def ndcg_of(
    backbone: Backbone,
    alone: EncodedBatch,
    memory: tuple[Tensor, Tensor],
    ranking: ServedRanking | None,
    target: Target,
) -> float:
    """NDCG@10 of the tokens that are not excluded."""
    states = torch.cat([alone.states[:, :-1], memory[0], alone.states[:, -1:]], dim=1)
    logits = backbone.lm.top(states, torch.ones(states.shape[:2], dtype=torch.long), num_logits=1)[0, 0]
    scores = logits.log_softmax(dim=0)
    if ranking is not None:
        scores = ranking.ranked(scores[None], [target])[0]
    scores[alone.excluded[0][alone.excluded[0] >= 0]] = -torch.inf
    rank = int((scores > scores[alone.answers[0, 0]]).sum())
    return 1 / math.log2(rank + 2) if rank < 10 else 0.0


def test_equal_choices_of_several_retrievers_are_computed_once(
    made: tuple[Backbone, AnnotationSet], monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone, annotated = made
    windows = Windows(SPLIT, backbone.prompt, TINY.max_memory)
    computed: list[int] = []

    def counted(lm: object, annotations: list[Annotation], picked: object, states: object) -> object:
        computed.append(len(annotations))
        return padded_memory(lm, annotations, picked, states)  # type: ignore[arg-type]

    monkeypatch.setattr(selection, "padded_memory", counted)
    one = retrievers(backbone.lm.hidden_size)["a"]
    first = valid_gains(
        {"a": one}, (1,), annotated.choose, backbone, windows, states=annotated.states, placement="insert"
    )
    once = sum(computed)
    many = valid_gains(
        dict.fromkeys("abcdef", one),
        (1,),
        annotated.choose,
        backbone,
        windows,
        states=annotated.states,
        placement="insert",
    )
    assert sum(computed) == 2 * once, "equal choices of six retrievers were computed more than once"
    np.testing.assert_allclose(many["f", 1].nats, first["a", 1].nats, atol=1e-5)


JOINT_TARGETS = [Target(0, 25), Target(3, 20), Target(1, 9), Target(0, 3)]
PICKED = [[0, 4, 7], [2], [1, 3], []]


@pytest.mark.parametrize("placement", ["insert", "prepend"])
def test_joint_gains_are_differences_of_likelihoods(placement: str, tmp_path: Path) -> None:
    lm, windows = small_lm(), small_windows(diary())
    states = window_states(lm, windows, spans_of(windows, JOINT_TARGETS), tmp_path)
    examples = [windows.example(target) for target in JOINT_TARGETS]
    annotations = list(annotate(lm, examples, states, placement=placement, batch_size=4))
    found = joint_gains(lm, examples, annotations, PICKED, states, placement=placement)
    for example, annotation, picked, gain in zip(examples, annotations, PICKED, found, strict=True):
        memory = torch.from_numpy(annotation.memory(states))[picked][None]
        with torch.inference_mode():
            batch = encode_answers(lm, [example.prompt], [example.answer])
            mask = torch.ones(1, len(picked), dtype=torch.long)
            expected = float(answer_log_probs(lm, batch, memory, mask, placement)) - float(annotation.log_probs[0])
        assert gain == pytest.approx(expected, abs=2e-3), f"{len(picked)} memories of user {example.user}"


def test_a_gain_is_significant_beyond_two_standard_errors_by_user() -> None:
    rng = np.random.default_rng(0)
    users = np.repeat(np.arange(100), 10)
    noise = rng.normal(size=100)[users] + rng.normal(size=1000)
    assert is_significant(1.0 + noise, users.tolist()) and not is_significant(noise - noise.mean(), users.tolist())
    assert not is_significant(-1.0 + noise, users.tolist())
    lucky = np.where(users == 0, 100.0, 0.0)  # a gain of one user in a hundred is within the standard error
    assert not is_significant(lucky - 0.02, users.tolist())
    assert not is_significant(np.ones(0), []) and not is_significant(np.ones(5), [3] * 5), "nobody to tell the error"


def test_no_targets_have_no_gains(made: tuple[Backbone, AnnotationSet]) -> None:
    backbone, annotated = made
    windows, retriever = Windows(SPLIT, backbone.prompt, TINY.max_memory), retrievers(backbone.lm.hidden_size)["a"]
    found = valid_gains({"a": retriever}, (1,), [], backbone, windows, states=annotated.states, placement="insert")
    assert len(found["a", 1].value) == 0
