"""Training with item tokens: titles share pieces, and the saved checkpoint equals the trained model."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from model_store.lm.item_embedding import ItemEmbedding
from model_store.lm.padding import pad
from model_store.lm.split_lm import SplitLM
from model_store.text.vocabulary import BEGIN, ItemVocabulary
from tests.conftest import TITLES, make_model, make_tokenizer
from tests.training.small import TINY, diary
from training.lm.backbone import Backbone, open_backbone
from training.lm.item_tokens import (
    LearnedItemEmbedding,
    LearnedItemHead,
    SampledSoftmax,
    add_item_vectors,
    make_item_model,
    piece_tokenizer,
)
from training.lm.packing import PackedBatches, packed_loss
from training.lm.tuning import make_model as make_tuned
from training.lm.tuning import run, trainable
from training.lm.windows import Windows

ITEMS = replace(TINY, vocabulary="items", dropout=0.1)
CPU = torch.device("cpu")
D = 16
FROM_SCRATCH = None
MODELS = pytest.mark.parametrize("architecture", [FROM_SCRATCH, "llama", "qwen2", "gemma", "gpt_neox"])


def write_checkpoint(architecture: str | None, directory: Path, **sizes: int) -> str | None:
    """A checkpoint for `--model`; None for a model from scratch."""
    if architecture is None:
        return None
    make_model(architecture, **sizes).save_pretrained(directory)
    make_tokenizer(TITLES).save_pretrained(directory)
    return str(directory)


@MODELS
def test_everything_that_should_learn_gets_a_gradient(architecture: str | None, tmp_path: Path) -> None:
    made = make_tuned(diary(), ITEMS, write_checkpoint(architecture, tmp_path), CPU)
    windows = Windows(diary(), made.prompt, 12)
    lm = SplitLM(made.model, 1)
    lm.model.train()
    packed_loss(lm, PackedBatches(windows, num_blocks=8, memory_share=0.5, seed=0)(0)).backward()
    moved = {name for name, each in trainable(lm.model).items() if each.grad is not None and each.grad.abs().sum() > 0}
    assert any("weight" in name and "embed" in name for name in moved), "the residuals do not learn"
    if architecture is None:
        assert set(trainable(lm.model)) == moved, "a parameter without gradient"
    else:
        assert any("lora" in name for name in moved), "the adapters do not learn"
        assert not any(name.endswith(".text") for name in moved), "the checkpoint's own embeddings are not frozen"


def test_the_first_gradient_is_not_dominated_by_the_first_token() -> None:
    """A row of zeros would get a very large gradient in the first norm, and clipping would make all others tiny."""
    made = make_tuned(diary(), ITEMS, None, CPU)
    lm = SplitLM(made.model, 1)
    batches = PackedBatches(Windows(diary(), made.prompt, 12), num_blocks=8, memory_share=0.5, seed=0)
    packed_loss(lm, batches(0)).backward()
    norms = {name: each.grad.norm() for name, each in trainable(lm.model).items() if each.grad is not None}
    residuals = lm.model.get_input_embeddings().get_parameter("weight").grad
    assert residuals is not None
    assert residuals[BEGIN].norm() < 0.9 * torch.stack(list(norms.values())).norm(), "one row has all the gradient"


# --- what is saved ------------------------------------------------------------------------------------------------


def tuned_and_opened(
    architecture: str | None, directory: Path, monkeypatch: pytest.MonkeyPatch, **sizes: int
) -> tuple[SplitLM, Backbone]:
    """The model at the end of training, and the model that is loaded from the directory."""
    in_training: list[SplitLM] = []

    class Watched(SplitLM):
        def __init__(self, *facts: Any) -> None:
            super().__init__(*facts)
            in_training.append(self)

    monkeypatch.setattr("training.lm.tuning.SplitLM", Watched)
    name = write_checkpoint(architecture, directory / "checkpoint", **sizes)
    run(diary(), directory / "sft", recipe=ITEMS, inputs="x", model_name=name, device="cpu")
    (trained,) = in_training
    trained.model.eval()
    return trained, open_backbone(directory / "sft", CPU)


@MODELS
def test_the_saved_model_equals_the_trained_one(
    architecture: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained, backbone = tuned_and_opened(architecture, tmp_path, monkeypatch)
    assert backbone.spec.split_layer == trained.split_layer and backbone.vocabulary == "items"
    prompts = [backbone.prompt.tokens(titles) for titles in (diary().titles[:3], diary().titles[7:9], [])]
    tokens, mask = pad(prompts)
    with torch.inference_mode():
        states, expected_states = backbone.lm.bottom(tokens, mask), trained.bottom(tokens, mask)
        torch.testing.assert_close(states, expected_states, atol=1e-4, rtol=1e-3, msg="other states are remembered")
        logits, expected = backbone.lm.top(states, mask), trained.top(states, mask)
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-3, msg="other items are likely")


@MODELS
def test_a_late_title_is_made_of_trained_pieces(
    architecture: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the tokenizer and the pieces of training, in the embedding and in the head."""
    trained, backbone = tuned_and_opened(architecture, tmp_path, monkeypatch)
    (token,) = backbone.prompt.title_tokens("Red moon never seen")
    (again,) = backbone.prompt.title_tokens(diary().titles[4])
    for number, at_work in enumerate(embeddings(backbone.lm)):
        learned = embeddings(trained)[number]
        assert isinstance(learned, LearnedItemEmbedding)
        residual = learned.weight[again]
        as_if_late = at_work.vocabulary.pieces(again, again + 1)[0]
        spelled = learned.text[as_if_late].sum(0) / len(as_if_late) ** 0.5
        torch.testing.assert_close(at_work.rows()[again], spelled + residual, atol=1e-5, rtol=1e-4)
        (pieces,) = at_work.vocabulary.pieces(token, token + 1)
        torch.testing.assert_close(at_work.rows()[token], learned.text[pieces].sum(0) / len(pieces) ** 0.5)


def embeddings(lm: SplitLM) -> tuple[ItemEmbedding, ItemEmbedding]:
    """The embeddings of the input and of the head."""
    inputs, head = lm.model.get_input_embeddings(), lm.model.get_output_embeddings()
    assert isinstance(inputs, ItemEmbedding)
    outputs = head.embedding
    assert isinstance(outputs, ItemEmbedding)
    return inputs, outputs


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_a_checkpoint_may_have_a_padding_token_beyond_the_items(
    architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Special tokens are numbered among text tokens, and the number may be larger than the catalogue."""
    sizes = {"pad_token_id": 399, "bos_token_id": 398, "eos_token_id": 397}
    trained, backbone = tuned_and_opened(architecture, tmp_path, monkeypatch, **sizes)
    tokens, mask = pad([backbone.prompt.tokens(diary().titles[:3])])
    with torch.inference_mode():
        torch.testing.assert_close(backbone.lm.bottom(tokens, mask), trained.bottom(tokens, mask), atol=1e-4, rtol=1e-3)


# --- rows ---------------------------------------------------------------------------------------------------------


def make_embedding(titles: list[str] = TITLES, *, dropout: float = 0.0, scale: float = 1.0) -> LearnedItemEmbedding:
    tokenizer = make_tokenizer(TITLES)
    text = torch.randn(len(tokenizer), D, generator=torch.Generator().manual_seed(0))
    embedding = LearnedItemEmbedding(text, ItemVocabulary(titles, tokenizer), scale=scale, dropout=dropout)
    embedding.text.requires_grad_(True)
    with torch.no_grad():
        embedding.weight.normal_(generator=torch.Generator().manual_seed(1))
    return embedding


@pytest.mark.parametrize(
    "tokens", [[[3]], [[0, 5, 5, 1]], [[20, 19], [0, 0]], list(range(21)), list(range(20, -1, -1)), [0]]
)
def test_rows_of_some_tokens_equal_all_rows_and_get_the_same_gradient(tokens: list[int]) -> None:
    one, other = make_embedding(), make_embedding()
    chosen = torch.tensor(tokens)
    weights = torch.randn(*chosen.shape, D)
    found, expected = one.rows_of(chosen), other.rows()[chosen]
    torch.testing.assert_close(found, expected)
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    for name, parameter in one.named_parameters():
        assert parameter.grad is not None, f"{name} does not learn"
        torch.testing.assert_close(parameter.grad, other.get_parameter(name).grad, msg=f"{name} learns otherwise")


def test_a_title_that_is_only_input_changes_its_pieces() -> None:
    embedding = make_embedding(["Red Moon", "Red Tea", "Blue River"])
    embedding(torch.tensor([[1]])).sum().backward()
    assert embedding.text.grad is not None and embedding.weight.grad is not None
    (pieces,) = embedding.vocabulary.pieces(1, 2)
    assert set(embedding.text.grad.abs().sum(dim=1).nonzero().flatten().tolist()) == set(pieces)
    assert embedding.weight.grad.abs().sum(dim=1).nonzero().flatten().tolist() == [1]


def test_titles_that_share_words_start_near_each_other() -> None:
    tokenizer = piece_tokenizer(["red moon", "red moon rising", "blue sea"] * 3, 400)
    text = torch.randn(len(tokenizer), 32, generator=torch.Generator().manual_seed(0))
    embedding = LearnedItemEmbedding(text, ItemVocabulary(["Red Moon", "red moon rising", "Blue Sea"], tokenizer))
    red, rising, blue = embedding.rows()[1:]
    assert torch.cosine_similarity(red, rising, dim=0) > 0.5 > torch.cosine_similarity(red, blue, dim=0)


@pytest.mark.parametrize("title", ["", "日本", "\U0001f600", "ÀÉ", "<s>", "İstanbul ﬁne", "\u200d"])
def test_any_text_has_pieces(title: str) -> None:
    tokenizer = piece_tokenizer(TITLES, 300)
    (pieces,) = ItemVocabulary([title], tokenizer).pieces(1, 2)
    assert all(0 <= piece < tokenizer.vocab_size for piece in pieces)
    assert bool(pieces) == bool(title), "a title has no piece"


def test_dropout_acts_in_training_only() -> None:
    torch.manual_seed(0)  # one draw in thirty has zeros only, twice
    embedding = make_embedding(dropout=0.9, scale=2.0)
    head, tokens, hidden = LearnedItemHead(embedding), torch.tensor([[1, 2, 3]]), torch.ones(1, D)
    head.train()
    assert (embedding(tokens) == 0).any(), "the embedding has no dropout"
    assert not head(hidden).equal(head(hidden)), "the input of the head has no dropout"
    head.eval()
    torch.testing.assert_close(embedding(tokens), 2 * embedding.rows()[tokens])
    torch.testing.assert_close(head(hidden), hidden @ embedding.rows().T)


def test_an_untied_head_has_rows_of_its_own() -> None:
    model = make_model("gpt_neox", tie_word_embeddings=False)
    words = [each.get_parameter("weight") for each in (model.get_input_embeddings(), model.get_output_embeddings())]
    make_item_model(model, ItemVocabulary(TITLES, make_tokenizer(TITLES)), dropout=0.0, train_text=False)
    inputs, head = model.get_input_embeddings(), model.get_output_embeddings()
    assert isinstance(inputs, LearnedItemEmbedding) and isinstance(head, LearnedItemHead)
    assert head.embedding is not inputs
    assert inputs.text.equal(words[0]) and head.embedding.text.equal(words[1]), (
        "the pieces of embedding and head are mixed up"
    )


def test_vectors_of_items_with_one_title_are_added() -> None:
    made = make_tuned(diary(), replace(ITEMS, collaborative_start=False), None, CPU)
    inputs = made.model.get_input_embeddings()
    assert isinstance(inputs, LearnedItemEmbedding)
    before = inputs.weight.detach().clone()
    add_item_vectors(made.model, np.array([[1.0] * D, [2.0] * D, [5.0] * D], dtype=np.float32), [4, 4, 7])
    added = (inputs.weight - before)[:, 0].tolist()
    assert (added[4], added[7]) == pytest.approx((3.0, 5.0)) and sum(map(abs, added)) == pytest.approx(8.0)


# --- the loss over a part of the catalogue ------------------------------------------------------------------------


def loss_with(num_popular: int, num_sampled: int, hidden: Tensor, labels: Tensor) -> Callable[[], Tensor]:
    """The loss with a new sample at each call. Popular tokens are spread over the token numbers."""
    head = LearnedItemHead(make_embedding()).eval()
    softmax = SampledSoftmax(
        [(7 * token) % 21 for token in range(21)], num_popular=num_popular, num_sampled=num_sampled
    )
    return lambda: softmax(head, hidden, labels)


def exact(hidden: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(hidden @ make_embedding().rows().T, labels)


HIDDEN = 0.3 * torch.randn(6, D, generator=torch.Generator().manual_seed(2))
LABELS = torch.tensor([1, 5, 5, 20, 9, 14])


@pytest.mark.parametrize("num_popular", [21, 50])
@pytest.mark.parametrize("num_sampled", [0, 8])
def test_if_every_item_is_popular_the_loss_is_exact(num_popular: int, num_sampled: int) -> None:
    found = loss_with(num_popular, num_sampled, HIDDEN, LABELS)()
    torch.testing.assert_close(found, exact(HIDDEN, LABELS))


@pytest.mark.parametrize("label", [3, 1])  # 3 · 7 = 21 ≡ 0: the least popular, 1 · 7: among the popular
@pytest.mark.parametrize("num_popular", [0, 15])
def test_the_sum_of_exponentials_is_estimated_without_bias(num_popular: int, label: int) -> None:
    hidden, labels = HIDDEN[:1], torch.tensor([label])
    own = (hidden @ make_embedding().rows()[label]).item()
    draw = loss_with(num_popular, 4, hidden, labels)
    torch.manual_seed(0)
    with torch.inference_mode():
        sums = torch.stack([draw() for _ in range(3000)]).add(own).exp()
    expected = (hidden @ make_embedding().rows().T).exp().sum()
    error = sums.std() / len(sums) ** 0.5
    assert sums.std() > 0, "nothing is sampled"
    assert abs(sums.mean() - expected) < 4 * error, f"{sums.mean():.3f} ± {error:.3f} for {expected:.3f}"


def test_only_sampled_rows_get_a_gradient() -> None:
    head = LearnedItemHead(make_embedding()).eval()
    softmax = SampledSoftmax(range(21), num_popular=2, num_sampled=3)
    softmax(head, HIDDEN[:1], torch.tensor([4])).backward()
    gradient = head.embedding.weight.grad
    assert gradient is not None
    moved = set(gradient.abs().sum(dim=1).nonzero().flatten().tolist())
    assert {4, 20, 19} <= moved and len(moved) <= 6, "the rows with a gradient are not the rows in the loss"
