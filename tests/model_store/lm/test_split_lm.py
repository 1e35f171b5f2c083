"""The two halves of a split model compute the same as the whole model, for every architecture in the README."""

from pathlib import Path

import pytest
import torch
import transformers
from torch import Tensor

from model_store.errors import UnsupportedBackbone
from model_store.lm.checkpoint import load_lm
from model_store.lm.padding import pad
from model_store.lm.split_lm import SplitLM, positions_of
from model_store.manifest import BackboneSpec, PromptSpec
from tests.conftest import ARCHITECTURES, make_model, make_tokenizer

ROWS = [[5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16], [20, 21, 22, 23, 24, 25], [30]]  # longer than the sliding windows


@pytest.fixture(scope="module", params=ARCHITECTURES)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp(request.param)
    make_model(request.param).save_pretrained(directory)
    return directory


def load(directory: Path) -> transformers.PreTrainedModel:
    model: transformers.PreTrainedModel = transformers.AutoModelForCausalLM.from_pretrained(directory)
    return model.eval()


@torch.inference_mode()
def whole_logits(model: transformers.PreTrainedModel, row: list[int]) -> Tensor:
    return model(input_ids=torch.tensor([row]), use_cache=False).logits[0]


@torch.inference_mode()
def split_logits(lm: SplitLM, rows: list[list[int]]) -> list[Tensor]:
    """(T, V) of each row, without padding."""
    tokens, mask = pad(rows)
    logits = lm.top(lm.bottom(tokens, mask), mask)
    return [logits[index, -len(row) :] for index, row in enumerate(rows)]


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("split_layer", [1, 2, 3])
def test_the_halves_give_the_logits_of_the_whole_model(checkpoint: Path, split_layer: int) -> None:
    whole, lm = load(checkpoint), SplitLM(load(checkpoint), split_layer)
    for row, actual in zip(ROWS, split_logits(lm, ROWS), strict=True):
        expected = whole_logits(whole, row)
        assert relative_error(actual, expected) < 1e-5, (
            f"split at {split_layer}: other logits for a row of {len(row)} tokens"
        )
        assert actual.argmax(-1).equal(expected.argmax(-1)), f"split at {split_layer}: another most likely token"


def test_reading_in_chunks_gives_the_same_logits(checkpoint: Path) -> None:
    lm = SplitLM(load(checkpoint), 2)
    tokens, mask = pad(ROWS)
    caches = lm.new_caches()
    with torch.inference_mode():
        chunks = []
        for start, stop in ((0, 5), (5, 6), (6, 7), (7, 12)):
            states = lm.bottom(tokens[:, start:stop], mask[:, :stop], caches[0])
            chunks.append(lm.top(states, mask[:, :stop], caches[1]))
    chunked = torch.cat(chunks, dim=1)
    for index, (row, at_once) in enumerate(zip(ROWS, split_logits(lm, ROWS), strict=True)):
        error = relative_error(chunked[index, -len(row) :], at_once)
        assert error < 1e-5, f"the two KV caches change the logits of a row of {len(row)} tokens by {error:.2g}"


def test_padding_does_not_change_logits(checkpoint: Path) -> None:
    lm = SplitLM(load(checkpoint), 2)
    for row, padded in zip(ROWS, split_logits(lm, ROWS), strict=True):
        assert relative_error(padded, split_logits(lm, [row])[0]) < 1e-5, f"padding changes a row of {len(row)} tokens"


def test_load_lm_opens_a_checkpoint(checkpoint: Path) -> None:
    make_tokenizer(["Red Moon"]).save_pretrained(checkpoint)
    spec = BackboneSpec(base_model="x", weights_sha256="x", split_layer=2, num_layers=4, hidden_size=32)
    lm, prompt = load_lm(checkpoint, spec, PromptSpec())
    assert prompt.tokenizer.bos_token == "<s>", "load_lm lost the tokenizer's special tokens"
    assert relative_error(split_logits(lm, [ROWS[0]])[0], whole_logits(load(checkpoint), ROWS[0])) < 1e-5
    assert lm.hidden_size == 32 and lm.dtype == torch.float32
    assert not any(parameter.requires_grad for parameter in lm.model.parameters()), "a loaded model has gradients"


def test_a_model_with_absolute_positions_is_refused() -> None:
    config = transformers.GPT2Config(vocab_size=100, n_embd=32, n_layer=4, n_head=4, initializer_range=0.3)
    with pytest.raises(UnsupportedBackbone, match="rotary"):
        SplitLM(transformers.AutoModelForCausalLM.from_config(config), 2)


@pytest.mark.parametrize("split_layer", [-1, 0, 4, 5])
def test_a_split_layer_that_leaves_a_half_empty_is_refused(split_layer: int) -> None:
    with pytest.raises(UnsupportedBackbone, match="between 1 and 3"):
        SplitLM(make_model("llama"), split_layer)


@pytest.mark.parametrize(("architecture", "window"), [("llama", None), ("qwen2", None), ("mistral", 8), ("gemma2", 8)])
def test_the_attention_window_is_read_from_the_configuration(architecture: str, window: int | None) -> None:
    assert SplitLM(make_model(architecture), 2).attention_window == window


def test_positions_do_not_count_padding() -> None:
    mask = torch.tensor([[0, 0, 1, 1, 0, 1], [1, 1, 1, 1, 1, 1]])
    assert positions_of(mask, 4).tolist() == [[0, 1, 1, 2], [2, 3, 4, 5]]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_head_of_the_hidden_states_gives_the_logits_of_the_top_half(architecture: str) -> None:
    """With soft-capping and scaling: training computes its loss from the head, serving from the top half."""
    lm = SplitLM(make_model(architecture), 2)
    tokens = torch.randint(0, 400, (2, 7))
    mask = torch.ones_like(tokens)
    with torch.inference_mode():
        states = lm.bottom(tokens, mask)
        hidden = lm.top_hidden(states, mask)
        assert torch.allclose(lm.head(hidden), lm.top(states, mask), atol=1e-5), "head(top_hidden) differs from top"
        assert torch.allclose(lm.head(hidden[:, -1]), lm.top(states, mask, num_logits=1)[:, 0], atol=1e-5)
