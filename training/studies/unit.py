"""`unit`: what one element of a memory should be.

`window`        the state of the window that ends at the event (the default)
`item`          the state of the event's item alone, read as a window of one
`mean of 2, 5`  the mean of so many consecutive windows' states; the memory has as many elements less

Nothing but the retriever is trained again: the top half reads states it was not tuned for, which a unit has to bear in
mind where it loses. Token-level states of a title are left out: an element would be several vectors, and memory,
retriever and store know one (with the item vocabulary a title is one token, and they are `item`).
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from model_store.lm.split_lm import SplitLM
from model_store.text.prompt import Prompt
from training.annotate import Annotated, Annotation, read_annotated, read_shards, write_shards
from training.data.splits import Split, Target
from training.lm.states import States, encode_prompts, spans_of, window_states
from training.lm.windows import Windows
from training.memory.targets import learning_targets
from training.rows.contest import Contest
from training.studies.finding import Finding, Value, compared, gain_of
from training.studies.memory import bytes_per_user
from training.studies.setting import (
    Made,
    Setting,
    best_single,
    ndcg,
    nothing,
    num_elements,
    retrieved,
    users_of,
    with_examples,
)
from training.train_retriever import Training, train

MakeStates = Callable[[SplitLM, Windows, list[Target], Path], States]


class Blocks(Windows):
    """A memory of one element for every `size` events, counted from the newest; it stands for the block's last."""

    def __init__(self, split: Split, prompt: Prompt, max_memory: int, size: int) -> None:
        super().__init__(split, prompt, max_memory)
        self.size = size

    def memory_positions(self, target: Target) -> np.ndarray:
        return super().memory_positions(target)[::-1][:: self.size][::-1]


def states_of_windows(lm: SplitLM, windows: Windows, targets: list[Target], directory: Path) -> States:
    plain = Windows(windows.split, windows.prompt, windows.max_memory)  # the events between those of a block, too
    return window_states(lm, windows, spans_of(plain, targets), directory / "windows")


def states_of_items(lm: SplitLM, windows: Windows, targets: list[Target], directory: Path) -> States:
    """An item has one state, whoever has it."""
    spans = spans_of(windows, targets)
    had = {user: windows.split.histories[user].items[slice(*span)] for user, span in spans.items()}
    items = np.unique(np.concatenate(list(had.values())))
    encoded = encode_prompts(lm, [windows.prompt.tokens(windows.titles([item])) for item in items.tolist()])
    arrays = {user: encoded[np.searchsorted(items, each)] for user, each in had.items()}
    return States(lm.hidden_size, {user: start for user, (start, _) in spans.items()}, arrays)


def pooled(states: States, size: int) -> States:
    """Each the mean of itself and the `size` − 1 before it, or as many as there are."""
    return replace(states, arrays={user: _running_mean(array, size) for user, array in states.arrays.items()})


def _running_mean(array: np.ndarray, size: int) -> np.ndarray:
    """(length, D) → the same shape."""
    sums = np.concatenate([np.zeros_like(array[:1], dtype=np.float64), array.cumsum(axis=0, dtype=np.float64)])
    stops = np.arange(1, len(array) + 1)
    starts = np.maximum(0, stops - size)
    return ((sums[stops] - sums[starts]) / (stops - starts)[:, None]).astype(np.float16)


def means_of(size: int) -> MakeStates:
    return lambda lm, windows, targets, directory: pooled(states_of_windows(lm, windows, targets, directory), size)


# name → (events to an element, states)
UNITS: Mapping[str, tuple[int, MakeStates]] = {
    "window": (1, states_of_windows),
    "item": (1, states_of_items),
    "mean of 2": (2, means_of(2)),
    "mean of 5": (5, means_of(5)),
}


def run(setting: Setting) -> Finding:
    targets = setting.targets()
    own = setting.contest(setting.base.bundle, targets)
    lines = {unit: _line(setting, own, unit) for unit in UNITS}
    return Finding(
        question="what is an element of memory?",
        x="unit",
        columns={
            "no memory": ".4f",
            "same retriever": ".4f",
            "retriever of the unit": ".4f",
            gain_of("retriever of the unit"): "+.4f",
            "oracle": ".4f",
            "oracle gain, nats": ".4f",
            "captured": ".0%",
            "elements": ".1f",
            "bytes per user": ",d",
        },
        lines=lines,
        panels={
            "NDCG@10": ["no memory", "same retriever", "retriever of the unit", "oracle"],
            "oracle gain, nats per title": ["oracle gain, nats"],
        },
        remarks=[
            "The language model stays the one that was tuned to read the states of windows. Bytes are those of a full "
            "memory, each user's own; states of items could be stored once for everybody."
        ],
    )


def _line(setting: Setting, own: Contest, unit: str) -> dict[str, Value]:
    size, make_states = UNITS[unit]
    slug = unit.replace(" ", "-")
    directory = own.need_workshop().directory / slug
    windows = Blocks(own.split, own.bundle.prompt, own.bundle.manifest.memory.max_elements, size)
    states = make_states(own.bundle.lm, windows, list(own.targets), directory / "states")
    contest = replace(with_examples(own, windows), states=states)
    trained = _retrain(setting, windows, make_states, directory)
    recipe = setting.base.recipe

    def annotate() -> list[Annotation]:
        write_shards(own.bundle.lm, windows, own.targets, states, recipe=recipe, directory=directory / "annotations")
        return read_shards(directory / "annotations")

    contest = replace(contest, annotate=annotate)
    taught = replace(contest, bundle=replace(own.bundle, retriever=trained.retriever.to(own.bundle.lm.device)))
    rows = {
        "no memory": ndcg(own, "none", nothing),
        "same retriever": ndcg(contest, f"unit-{slug}-same", retrieved),
        "retriever of the unit": ndcg(taught, f"unit-{slug}-own", retrieved),
        "oracle": ndcg(contest, f"unit-{slug}-oracle", best_single(contest)),
    }
    return {
        **compared(rows, users_of(own.targets), reference="no memory"),
        "oracle gain, nats": trained.quality.oracle_gain,
        "captured": trained.quality.captured,
        "elements": num_elements(contest),
        "bytes per user": bytes_per_user(own.bundle, -(-windows.max_memory // size)),
    }


def _retrain(setting: Setting, windows: Windows, make_states: MakeStates, directory: Path) -> Training:
    """As the stage does, with the unit's labels and states; the temperature is the one that gains most."""
    made = setting.base
    annotated = _annotated(setting, made, windows, make_states, directory).with_memory()
    trained = [
        train(
            annotated,
            made.recipe,
            temperature=temperature,
            seed=setting.seed,
            checkpoints=directory / f"checkpoints-{temperature}",
        )
        for temperature in made.recipe.label_temperatures
    ]
    return max(trained, key=lambda each: each.quality.gain)


def _annotated(setting: Setting, made: Made, windows: Windows, make_states: MakeStates, directory: Path) -> Annotated:
    if make_states is states_of_windows:  # the bundle's own
        return read_annotated(made.stages / "annotations")
    periods = learning_targets(windows.split, made.recipe, setting.seed)
    learned = [*periods["train"], *periods["valid"]]
    states = make_states(made.bundle.lm, windows, learned, directory / "learning-states")
    for period, targets in periods.items():
        write_shards(made.bundle.lm, windows, targets, states, recipe=made.recipe, directory=directory / period)
    train_part, valid_part = (read_shards(directory / period) for period in ("train", "valid"))
    return Annotated(train_part, valid_part, states)
