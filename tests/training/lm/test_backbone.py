"""Adapters are put in each layer of every supported architecture, not on the head, and can be merged."""

from typing import Literal

import pytest
import torch

from tests.conftest import ARCHITECTURES, make_model
from training.lm.backbone import with_adapters
from training.run.recipes import Recipe


@pytest.mark.parametrize("layers", ["query_value", "all"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_adapters_learn_in_every_layer_and_can_be_merged(
    architecture: str, layers: Literal["query_value", "all"]
) -> None:
    model = make_model(architecture)
    tokens = torch.arange(12)[None] + 5
    before = model(input_ids=tokens).logits.detach()
    adapted = with_adapters(model, Recipe(lora_layers=layers))
    trained = {name: each for name, each in adapted.named_parameters() if each.requires_grad}
    assert all("lora" in name for name in trained), "the checkpoint's own weights are not frozen"
    assert not any("lm_head" in name or "embed_out" in name for name in trained), "the head has an adapter"
    for layer in range(model.config.num_hidden_layers):
        names = [name for name in trained if f"layers.{layer}." in name]
        assert names, f"layer {layer} has no adapter"
        assert layers == "query_value" or any(".mlp." in name for name in names), f"{names}: none in the feed-forward"
    adapted(input_ids=tokens, labels=tokens).loss.backward()
    assert all(each.grad is not None for each in trained.values())
    torch.testing.assert_close(adapted.merge_and_unload()(input_ids=tokens).logits, before, rtol=1e-4, atol=1e-4)
