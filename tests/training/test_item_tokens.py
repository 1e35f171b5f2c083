"""Training on item tokens: words are shared, the saved checkpoint computes what was trained, any decoder will do."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from model_store.split_lm import SplitLM, pad_left
from tests.conftest import TITLES, make_model, make_tokenizer
from tests.training.small import TINY, diary
from training.backbone import open_backbone
from training.item_tokens import LearnedItemEmbedding, LearnedItemHead, learn_items, piece_tokenizer
from training.packing import PackedBatches, packed_loss
from training.sft import Tuned, run, trainable
from training.sft import make_model as make_tuned
from training.windows import Windows

ITEMS = replace(TINY, vocabulary="items", dropout=0.1)
CPU = torch.device("cpu")


def tuned(architecture: str | None, directory: Path) -> Tuned:
    """From scratch, or a checkpoint of this architecture with adapters."""
    if architecture is None:
        return make_tuned(diary(), ITEMS, None, CPU)
    make_model(architecture).save_pretrained(directory)
    make_tokenizer(TITLES).save_pretrained(directory)
    return make_tuned(diary(), ITEMS, str(directory), CPU)


@pytest.mark.parametrize("architecture", [None, "llama", "qwen2", "gemma", "gpt_neox"])
def test_everything_that_should_learn_gets_a_gradient(architecture: str | None, tmp_path: Path) -> None:
    made = tuned(architecture, tmp_path)
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
        assert not any(name.endswith(".text") for name in moved), "the checkpoint's own words are not frozen"


@pytest.mark.parametrize("architecture", [None, "llama", "qwen2", "gemma", "gpt_neox"])
def test_the_saved_model_computes_what_was_trained(architecture: str | None, tmp_path: Path) -> None:
    name = None
    if architecture is not None:
        name = str(tmp_path / "checkpoint")
        make_model(architecture).save_pretrained(name)
        make_tokenizer(TITLES).save_pretrained(name)
    seen: list[Tuned] = []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("training.sft.make_model", lambda *facts: seen.append(make_tuned(*facts)) or seen[-1])
        run(diary(), tmp_path / "sft", recipe=replace(ITEMS, dropout=0.0), inputs="x", model_name=name)
    backbone = open_backbone(tmp_path / "sft", CPU)
    split = backbone.spec.split_layer
    tokens, mask = pad_left([backbone.prompt.tokens(diary().titles[:3]), backbone.prompt.tokens([])])
    trained = seen[0].whole().eval()
    with torch.inference_mode():
        actual = backbone.lm.top(backbone.lm.bottom(tokens, mask), mask, num_logits=1)
        # The halves took the layers of `trained` over; undo the renumbering by building them once more.
        expected = SplitLM(_renumbered(trained), split)
        wanted = expected.top(expected.bottom(tokens, mask), mask, num_logits=1)
    torch.testing.assert_close(actual, wanted, atol=2e-4, rtol=2e-3)


def _renumbered(model: torch.nn.Module) -> torch.nn.Module:
    count = 0
    for module in model.modules():
        if isinstance(getattr(module, "layer_idx", None), int):
            vars(module)["layer_idx"] = count
            count += 1
    return model


def test_titles_that_share_words_start_near_each_other() -> None:
    tokenizer = piece_tokenizer(["red moon", "red moon rising", "blue sea"] * 3, 400)
    text = torch.randn(len(tokenizer), 32, generator=torch.Generator().manual_seed(0))
    from model_store.vocabulary import ItemVocabulary

    embedding = LearnedItemEmbedding(text, ItemVocabulary(["Red Moon", "red moon rising", "Blue Sea"], tokenizer))
    red, rising, blue = embedding.spelled()[1:]
    assert torch.cosine_similarity(red, rising, dim=0) > 0.5 > torch.cosine_similarity(red, blue, dim=0)


def test_dropout_is_for_training_only() -> None:
    made = make_tuned(diary(), replace(ITEMS, dropout=0.9), None, CPU)
    embedding, head = made.model.get_input_embeddings(), made.model.get_output_embeddings()
    assert isinstance(head, LearnedItemHead)
    tokens = torch.tensor([[1, 2, 3]])
    made.model.train()
    assert (embedding(tokens) == 0).any(), "nothing was dropped"
    made.model.eval()
    torch.testing.assert_close(embedding(tokens), embedding(tokens))


def test_an_untied_head_has_rows_of_its_own() -> None:
    model = make_model("gpt_neox", tie_word_embeddings=False)
    from model_store.vocabulary import ItemVocabulary

    learn_items(model, ItemVocabulary(TITLES, make_tokenizer(TITLES)), dropout=0.0, train_text=False)
    head = model.get_output_embeddings()
    assert isinstance(head, LearnedItemHead) and head.embedding is not model.get_input_embeddings()
