"""In a lower precision a model gives nearly the same scores and recommendations."""

import pytest
import torch
import transformers
from torch import Tensor, nn

from model_store.lm import precision as precision_module
from model_store.lm.padding import pad
from model_store.lm.precision import Bfloat16Linear, Int8Linear, Precision, set_precision
from model_store.lm.split_lm import SplitLM
from tests.conftest import ARCHITECTURES, make_model

LOWER: list[Precision] = ["bfloat16", "int8"]
NUM_TOKENS = 60


def logits_of(lm: SplitLM, rows: list[list[int]]) -> Tensor:
    """Logits (B, V) after each row."""
    tokens, mask = pad(rows)
    with torch.inference_mode():
        return lm.top(lm.bottom(tokens, mask), mask, num_logits=1)[:, -1].float()


@pytest.mark.parametrize("precision", LOWER)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_gives_nearly_the_same_logits(architecture: str, precision: Precision) -> None:
    rows = [[5, 6, 7], [8, 9, 10, 11, 12]]
    lm = SplitLM(make_model(architecture), 2)
    expected = logits_of(lm, rows)
    set_precision(lm, precision)
    error = (logits_of(lm, rows) - expected).norm() / expected.norm()
    assert 1e-6 < error < 0.1, f"{architecture} in {precision} is off by {error:.2g}"


@pytest.mark.parametrize("precision", LOWER)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_only_matrices_of_layers_are_converted(architecture: str, precision: Precision) -> None:
    lm = SplitLM(make_model(architecture), 2)
    set_precision(lm, precision)
    for part in (lm._bottom, lm._top.base_model):
        linear = {name: module for name, module in part.named_modules() if isinstance(module, nn.Linear)}
        assert not [name for name, module in linear.items() if module.weight.dtype != torch.bfloat16]
    kinds = {type(module) for module in lm._top.base_model.modules()}
    assert Bfloat16Linear in kinds and (Int8Linear in kinds) == (precision == "int8")
    assert isinstance(lm.model.get_output_embeddings(), nn.Linear), "the head was converted"
    assert lm.dtype == torch.float32 and lm.device.type == "cpu"


def test_float32_does_not_change_the_model() -> None:
    lm = SplitLM(make_model("llama"), 2)
    expected = logits_of(lm, [[5, 6, 7]])
    set_precision(lm, "float32")
    assert logits_of(lm, [[5, 6, 7]]).equal(expected)


def test_the_error_for_an_unknown_precision_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match="float32, bfloat16, int8"):
        set_precision(SplitLM(make_model("llama"), 2), "int4")  # type: ignore[arg-type]


def test_int8_is_refused_on_a_cpu_where_its_sums_overflow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision_module, "_int8_is_exact", lambda: False)
    with pytest.raises(ValueError, match="choose bfloat16"):
        set_precision(SplitLM(make_model("llama"), 2), "int8")


@pytest.mark.parametrize("bias", [True, False])
def test_int8_is_exact_for_numbers_that_need_no_rounding(bias: bool) -> None:
    """Integers need no rounding if the largest is 127. Rows of huge numbers or zeros do not affect other rows."""
    linear = nn.Linear(3, 2, bias=bias)
    linear.weight.data = torch.tensor([[127.0, 1, -3], [2, -127, 0]])
    inputs = torch.tensor([[[127.0, 5, 9], [0, 0, 0]], [[-127e6, 0, 1e6], [12.7, 0.1, -1.2]]])
    with torch.inference_mode():
        assert torch.allclose(Int8Linear(linear)(inputs), linear(inputs), rtol=1e-5, atol=1e-5)


# --- a trained model --------------------------------------------------------------------------------------------------


def histories(count: int) -> Tensor:
    """(count, 8) tokens. Each has twelve possible successors; each successor is a third as likely as the one before."""
    generator = torch.Generator().manual_seed(1)
    odds = 3.0 ** -torch.arange(12)
    steps = torch.multinomial(odds, count * 8, replacement=True, generator=generator).reshape(count, 8)
    starts = torch.randint(0, NUM_TOKENS, (count, 1), generator=generator)
    return (starts + (1 + 5 * steps).cumsum(dim=1)) % NUM_TOKENS


def small_model() -> transformers.PreTrainedModel:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=NUM_TOKENS,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        initializer_range=0.1,
    )
    model: transformers.PreTrainedModel = transformers.AutoModelForCausalLM.from_config(config)
    return model


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    """The weights of a small model after some seconds of training."""
    model, seen = small_model(), histories(1000)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(150):
        batch = seen[(step % 10) * 100 :][:100]
        optimizer.zero_grad()
        model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
    return {name: tensor.detach() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("precision", LOWER)
def test_a_trained_model_keeps_its_ranking(weights: dict[str, Tensor], precision: Precision) -> None:
    lms = []
    for _ in range(2):
        model = small_model()
        model.load_state_dict(weights)
        lms.append(SplitLM(model, 1))
    set_precision(lms[1], precision)
    rows = histories(1500)[1000:].tolist()
    best, other = (logits_of(lm, rows).topk(10, dim=1).indices for lm in lms)
    same_first = (best[:, 0] == other[:, 0]).float().mean()
    overlap = (best[:, :, None] == other[:, None, :]).any(dim=2).float().mean()
    assert same_first >= 0.99, f"{precision}: another first item for {1 - same_first:.1%}"
    assert overlap >= 0.98, f"{precision}: only {overlap:.1%} of the first ten are the same"
