"""A model with prepacked matrices computes the same as before."""

import pytest
import torch
from torch import nn

from model_store.lm import prepacked
from model_store.lm.padding import pad
from model_store.lm.precision import set_precision
from model_store.lm.prepacked import PrepackedLinear, prepack, prepack_matrices
from model_store.lm.split_lm import SplitLM
from tests.conftest import ARCHITECTURES, make_model


@pytest.fixture
def all_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prepack the small matrices of the test models too."""
    monkeypatch.setattr(prepacked, "_MIN_NUMBERS", 1)


def logits_of(lm: SplitLM, rows: list[list[int]]) -> torch.Tensor:
    tokens, mask = pad(rows)
    with torch.inference_mode():
        return lm.top(lm.bottom(tokens, mask), mask, num_logits=1)[:, -1]


@pytest.mark.usefixtures("all_are_large")
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_gives_the_same_logits(architecture: str) -> None:
    rows = [[5, 6, 7], [8, 9, 10, 11, 12]]
    lm = SplitLM(make_model(architecture), 2)
    expected, num_parameters = logits_of(lm, rows), sum(each.numel() for each in lm.model.parameters())
    prepack_matrices(lm)
    torch.testing.assert_close(logits_of(lm, rows), expected, rtol=1e-4, atol=1e-5)
    for part in (lm.model, lm._bottom, lm._top, lm._head):
        assert not [name for name, module in part.named_modules() if isinstance(module, nn.Linear)]
    assert lm.model.get_output_embeddings() is lm._top.get_output_embeddings(), "the head was prepacked twice"
    assert sum(each.numel() for each in lm.model.parameters()) >= num_parameters


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 600), (3, 5, 600), (2, 0, 600)])
def test_a_prepacked_layer_gives_the_same_product(shape: tuple[int, ...], dtype: torch.dtype, bias: bool) -> None:
    torch.manual_seed(0)
    linear, inputs = nn.Linear(600, 500, bias=bias).to(dtype), torch.randn(shape, dtype=dtype)
    made = prepack(linear)
    assert isinstance(made, PrepackedLinear)
    with torch.inference_mode():
        torch.testing.assert_close(
            made(inputs), linear(inputs), rtol=1e-2 if dtype == torch.bfloat16 else 1e-4, atol=1e-5
        )


def test_inputs_need_not_be_contiguous() -> None:
    linear, inputs = nn.Linear(600, 500), torch.randn(4, 1200)[:, ::2]
    with torch.inference_mode():
        torch.testing.assert_close(prepack(linear)(inputs), linear(inputs), rtol=1e-4, atol=1e-5)


def test_small_matrices_and_other_dtypes_are_not_prepacked() -> None:
    for linear in (nn.Linear(64, 64), nn.Linear(600, 500).half(), nn.Linear(600, 500, device="meta")):
        assert prepack(linear) is linear, "prepacking does not pay or is impossible here"


def test_a_layer_that_the_cpu_cannot_prepack_is_not_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: object) -> None:
        raise RuntimeError("bf16 path needs the cpu support avx512bw")

    prepacked._can_prepack.cache_clear()
    monkeypatch.setattr(prepacked, "PrepackedLinear", refuse)
    linear = nn.Linear(600, 500)
    assert prepack(linear) is linear, "the server would not start"
    prepacked._can_prepack.cache_clear()


@pytest.mark.usefixtures("all_are_large")
def test_bfloat16_layers_are_prepacked_too() -> None:
    lm = SplitLM(make_model("llama"), 2)
    set_precision(lm, "bfloat16")
    prepack_matrices(lm)
    dtypes = {module.weight.dtype for module in lm._top.base_model.modules() if isinstance(module, PrepackedLinear)}
    assert dtypes == {torch.bfloat16} and lm.dtype == torch.float32
