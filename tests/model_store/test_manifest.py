"""The manifest is immutable and strict; the space changes exactly when a hidden state changes."""

from typing import Any

import pytest
from pydantic import ValidationError

from model_store.manifest import BackboneSpec, Manifest, MemorySpec, PromptSpec, space_id

BACKBONE = BackboneSpec(base_model="m", weights_sha256="w", split_layer=2, num_layers=4, hidden_size=8)
PROMPT, MEMORY = PromptSpec(), MemorySpec()
SPACE = space_id(BACKBONE, PROMPT, MEMORY)
MANIFEST = Manifest(name="n", created_at="2026-01-01T00:00:00Z", backbone=BACKBONE, num_items=3, space=SPACE)


def test_a_manifest_reads_back_as_written() -> None:
    assert Manifest.model_validate_json(MANIFEST.model_dump_json()) == MANIFEST


@pytest.mark.parametrize("part", [MANIFEST, MANIFEST.backbone, MANIFEST.prompt, MANIFEST.memory, MANIFEST.retriever])
def test_no_field_can_be_changed(part: Any) -> None:
    for name in type(part).model_fields:
        with pytest.raises(ValidationError, match="frozen"):
            setattr(part, name, getattr(part, name))


def test_an_unknown_field_is_refused_at_every_level() -> None:
    facts = MANIFEST.model_dump()
    for level in (None, "backbone", "prompt", "memory", "retriever", "generation"):
        changed = {**facts, "typo": 1} if level is None else {**facts, level: {**facts[level], "typo": 1}}
        with pytest.raises(ValidationError, match="typo"):
            Manifest.model_validate(changed)


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        ("prompt", "recent_length", 0),
        ("prompt", "max_title_tokens", 0),
        ("backbone", "split_layer", 0),
        ("backbone", "dtype", "int8"),
        ("memory", "max_elements", -1),
        ("retriever", "top_k", 0),
        ("retriever", "combine", "append"),
        ("generation", "num_beams", 0),
        ("generation", "grounding_popularity_gamma", 0.1),
        ("generation", "neighbor_share", 0.5),
    ],
)
def test_impossible_values_are_refused(part: str, name: str, value: object) -> None:
    facts = MANIFEST.model_dump()
    with pytest.raises(ValidationError, match=name):
        Manifest.model_validate({**facts, part: {**facts[part], name: value}})


def test_there_are_two_vocabularies() -> None:
    with pytest.raises(ValidationError, match="vocabulary"):
        Manifest.model_validate({**MANIFEST.model_dump(), "vocabulary": "words"})
    old = {name: value for name, value in MANIFEST.model_dump().items() if name != "vocabulary"}
    assert Manifest.model_validate(old).vocabulary == "titles", "bundles without the field have the title vocabulary"


def test_fields_of_older_formats_without_effect_are_accepted_and_dropped() -> None:
    """A share of item neighbours above 0 had an effect: such a bundle has to be built again."""
    facts = MANIFEST.model_dump()
    facts["generation"] |= {"grounding_popularity_gamma": 0.0, "neighbor_share": 0.0, "neighbor_half_life": 2.0}
    assert Manifest.model_validate(facts) == MANIFEST


@pytest.mark.parametrize(
    "update",
    [
        {"base_model": "x"},
        {"adapter": "x"},
        {"weights_sha256": "x"},
        {"split_layer": 3},
        {"num_layers": 5},
        {"hidden_size": 9},
        {"dtype": "bfloat16"},
    ],
)
def test_each_field_of_the_backbone_changes_the_space(update: dict[str, Any]) -> None:
    assert space_id(BACKBONE.model_copy(update=update), PROMPT, MEMORY) != SPACE


@pytest.mark.parametrize(
    "update", [{"head": "x"}, {"terminator": ";\n"}, {"max_title_tokens": 3}, {"recent_length": 3}]
)
def test_each_field_of_the_prompt_changes_the_space(update: dict[str, Any]) -> None:
    assert space_id(BACKBONE, PROMPT.model_copy(update=update), MEMORY) != SPACE


def test_the_tests_of_the_space_cover_every_field() -> None:
    assert set(BackboneSpec.model_fields) == {
        "base_model", "adapter", "weights_sha256", "split_layer", "num_layers", "hidden_size", "dtype"
    }, "add a test that says whether the new field changes the space"  # fmt: skip
    assert set(PromptSpec.model_fields) == {"head", "terminator", "max_title_tokens", "recent_length"}
    assert set(MemorySpec.model_fields) == {"max_elements", "state_dtype"}


def test_the_size_of_memory_does_not_change_the_space() -> None:
    assert space_id(BACKBONE, PROMPT, MemorySpec(max_elements=1)) == SPACE, "users would lose their memory"


def test_the_space_never_changes() -> None:
    """Keys and records of stores in use contain it. A change makes every stored state unreachable."""
    assert SPACE == "9d5cc316d68d"
