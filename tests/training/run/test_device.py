"""Devices and the precision of training."""

import pytest
import torch
from torch.nn import functional

from training.run import device
from training.run.device import autocast, pick_device
from training.run.stage import (
    StageError,
)


def test_a_missing_device_is_an_error() -> None:
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device("auto").type in {"cpu", "cuda"}
    with pytest.raises(StageError, match="--device quantum"):
        pick_device("quantum")


@pytest.mark.parametrize(
    ("width", "has_bf16", "expected"),
    [(128, True, torch.bfloat16), (64, True, torch.float32), (512, False, torch.float32)],
)
def test_a_cpu_trains_in_bf16_where_it_is_faster(
    width: int, has_bf16: bool, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "has_bf16_instructions", lambda: has_bf16)
    layer = torch.nn.Linear(width, 8)
    with autocast(torch.device("cpu"), width):
        assert layer(torch.ones(2, width)).dtype == expected
    assert layer(torch.ones(2, width)).dtype == torch.float32, "autocast must end with the context"


def test_attention_stays_in_fp32_under_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "has_bf16_instructions", lambda: True)
    query, key, value = torch.randn(3, 2, 4, 10, 8, generator=torch.Generator().manual_seed(0)).unbind()
    mask = torch.ones(10, 10, dtype=torch.bool).tril()
    exact = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    with autocast(torch.device("cpu"), 512):
        found = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    assert torch.equal(found, exact)
