"""A checkpoint with fewer layers, or with tokens of the catalogue, is still what its parts were."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from tests.conftest import ARCHITECTURES, TITLES, make_model, make_tokenizer
from tests.training.small import TINY, diary
from tests.training.worlds import communities
from training.lm import tuning
from training.lm.backbone import new_tokenizer, open_backbone
from training.lm.smaller import collaborative_vectors, keep_first_layers, use_vocabulary
from training.run.stage import StageError

CPU = torch.device("cpu")
TOKENS = torch.arange(5, 17)[None]
SMALLER = replace(TINY, keep_layers=3, catalogue_tokens=320)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_first_layers_compute_what_they_did_in_the_whole_model(architecture: str) -> None:
    whole, part = make_model(architecture), make_model(architecture)
    keep_first_layers(part, 2)
    assert part.config.num_hidden_layers == 2
    # The last state that a model returns is normalised, so the states after one layer are compared.
    expected = whole(input_ids=TOKENS, output_hidden_states=True).hidden_states[:2]
    found = part(input_ids=TOKENS, output_hidden_states=True).hidden_states[:2]
    for one, two in zip(expected, found, strict=True):
        torch.testing.assert_close(one, two)


def test_a_part_is_saved_and_loaded_like_any_checkpoint(tmp_path: Path) -> None:
    model = make_model("qwen3")
    keep_first_layers(model, 2)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    torch.testing.assert_close(loaded(input_ids=TOKENS).logits, model(input_ids=TOKENS).logits)


@pytest.mark.parametrize("count", [0, 5])
def test_a_model_has_no_layers_that_it_lacks(count: int) -> None:
    with pytest.raises(StageError, match=f"keeps {count} layers, but the checkpoint has 4"):
        keep_first_layers(make_model("llama"), count)


def tables(model: PreTrainedModel) -> list[torch.Tensor]:
    """The rows of the embedding and of the head."""
    return [place.get_parameter("weight") for place in (model.get_input_embeddings(), model.get_output_embeddings())]


def test_a_part_of_a_model_starts_without_certainty() -> None:
    whole, part = make_model("llama"), make_model("llama")
    keep_first_layers(part, 4)  # all of them, so that only the scale differs
    torch.testing.assert_close(part(input_ids=TOKENS).logits, 0.15 * whole(input_ids=TOKENS).logits)


@pytest.mark.parametrize("tied", [True, False])
def test_a_new_token_starts_from_the_old_tokens_of_its_text(tied: bool) -> None:
    model, old = make_model("llama", tie_word_embeddings=tied), make_tokenizer(TITLES)
    before = [rows.detach().clone() for rows in tables(model)]
    new = new_tokenizer([*TITLES, "Ünder Grund"], [5] * (len(TITLES) + 1), 400)
    use_vocabulary(model, old, new)
    assert model.config.vocab_size == len(new) and model.config.bos_token_id == new.bos_token_id
    for table, rows in zip(tables(model), before, strict=True):
        assert table.shape[0] == len(new)
        common = rows.mean(dim=0)
        for text in ["\n", *TITLES]:
            (token,) = new.encode(text, add_special_tokens=False)
            own = rows[old.encode(text, add_special_tokens=False)] - common
            torch.testing.assert_close(table[token], common + own.sum(dim=0) / len(own) ** 0.5)
        torch.testing.assert_close(table[new.bos_token_id], rows[old.bos_token_id])
        part_of_a_character = table[new.convert_tokens_to_ids("Ã")]
        torch.testing.assert_close(part_of_a_character, common)


def test_tokens_of_titles_that_users_had_together_are_alike() -> None:
    split = communities()  # titles are numbers; users have items of one half
    names = [f"{'Red' if row < 20 else 'Blue'} {row:02}" for row in range(40)]
    split = replace(split, titles=names)
    tokenizer = new_tokenizer(names, split.popularity.tolist(), 400)
    vectors = collaborative_vectors(split, tokenizer, 48, seed=0)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.any(vectors, axis=1).astype(float), abs=1e-5)
    words = {name: vectors[tokenizer.encode(name, add_special_tokens=False)[0]] for name in names}
    alike = np.array([[words[one] @ words[two] for two in names] for one in names])
    own, other = alike[:20, :20], alike[:20, 20:]
    assert own.mean() > 0.1 + other.mean()
    assert not vectors[tokenizer.convert_tokens_to_ids("Z")].any(), "a token of no title has a vector"


@pytest.mark.parametrize("tunes_all", [True, False])
@pytest.mark.parametrize("tied", [True, False])
def test_a_smaller_checkpoint_is_tuned_into_an_ordinary_backbone(tied: bool, tunes_all: bool, tmp_path: Path) -> None:
    make_model("llama", tie_word_embeddings=tied).save_pretrained(tmp_path / "whole")
    make_tokenizer(TITLES).save_pretrained(tmp_path / "whole")
    recipe = replace(SMALLER, tunes_all=tunes_all)
    tuning.run(diary(), tmp_path / "out", recipe=recipe, inputs="x", model_name=str(tmp_path / "whole"), device="cpu")
    backbone = open_backbone(tmp_path / "out", CPU)
    assert backbone.spec.num_layers == 3 and backbone.lm.vocab_size == len(backbone.prompt.tokenizer) <= 320
    assert backbone.prompt.head == [backbone.prompt.tokenizer.bos_token_id], "the instruction is not in these tokens"
    assert ("all weights tuned" in (backbone.spec.adapter or "")) == tunes_all


@pytest.mark.parametrize("tunes_all", [True, False])
def test_new_tokens_learn_with_adapters_too(tunes_all: bool, tmp_path: Path) -> None:
    make_model("llama").save_pretrained(tmp_path)
    make_tokenizer(TITLES).save_pretrained(tmp_path)
    made = tuning.make_model(diary(), replace(SMALLER, tunes_all=tunes_all), str(tmp_path), CPU)
    learned = tuning.trainable(made.model)
    assert any("embed_tokens" in name for name in learned)
    assert any("lora" in name for name in learned) != tunes_all
    assert any("down_proj" in name for name in learned) == tunes_all


def test_the_key_changes_with_the_size_of_the_checkpoint(tmp_path: Path) -> None:
    make_model("llama").save_pretrained(tmp_path)
    recipes = [SMALLER, replace(SMALLER, keep_layers=2), replace(SMALLER, catalogue_tokens=0)]
    keys = {
        tuning.stage_key("data", recipe, str(tmp_path), 0) for recipe in [*recipes, replace(SMALLER, tunes_all=True)]
    }
    assert len(keys) == 4
