"""A demo bundle that is trained for seconds instead of minutes, and the sandbox of a document."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.docs.sandbox import Sandbox
from training import pipeline
from training.run.demo import demo_inputs
from training.run.loop import Schedule
from training.run.recipes import get_recipe


@pytest.fixture(scope="session")
def demo_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's catalogue, readers and files; its model has learned next to nothing."""
    recipe = replace(
        get_recipe("demo"),
        sft=Schedule(max_steps=40, learning_rate=4e-3, evaluate_every=40),
        sft_valid_targets=10,
        memory_from=10,
        annotate_targets=40,
        valid_targets=20,
        retriever=Schedule(max_steps=20, learning_rate=2e-3, evaluate_every=20),
        retriever_batch=16,
        synthetic_askers=100,
    )
    directory = tmp_path_factory.mktemp("docs")
    inputs = demo_inputs(recipe.synthetic_users, seed=0)
    pipeline.run(inputs, directory / "demo", recipe_name="demo", work=directory / "work", recipe=recipe)
    pipeline.complete_demo(inputs, directory / "demo", work=directory / "work", recipe=recipe, seed=0)
    return directory / "demo"


@pytest.fixture
def sandbox(tmp_path: Path, demo_bundle: Path) -> Iterator[Sandbox]:
    made = Sandbox(tmp_path, demo_bundle)
    yield made
    made.stop()
