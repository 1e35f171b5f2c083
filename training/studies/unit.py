"""`unit`: what one element of a memory represents.

`window`        the state of the window that ends at the event (the default)
`item`          the state of the event's item alone, read as a window of one item
`mean of 2, 5`  the mean of the states of that many consecutive windows; the memory has fewer elements accordingly

The retriever is trained again for each unit, the top half is not: it reads states that it was not tuned for, which may
be the reason where a unit is worse. Token-level states of a title are not tried: an element would be several vectors,
but memory, retriever and store hold one. (With the item vocabulary a title is one token, so they equal `item`.)
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from model_store.lm.split_lm import SplitLM
from model_store.memory.retriever import Retriever
from model_store.text.prompt import Prompt
from training.data.splits import Split, Target
from training.lm.states import States, encode_prompts, spans_of, window_states
from training.lm.windows import Windows
from training.memory.annotations import (
    Annotation,
    AnnotationSet,
    learning_targets,
    read_annotation_set,
    read_annotations,
    write_annotations,
)
from training.memory.learning import RetrievalQuality, collate, fit_retriever, measure_retrieval
from training.rows.evaluation import Evaluation
from training.rows.memory_choices import best_single_choice, no_memory, retriever_choice
from training.studies.context import (
    StudyContext,
    ndcg,
    num_memories,
    remarks_on_voices,
    users_of,
    with_windows,
)
from training.studies.memory import bytes_per_user
from training.studies.result import StudyResult, Value, gain_column, means_and_gains

MakeStates = Callable[[SplitLM, Windows, list[Target], Path], States]


class BlockWindows(Windows):
    """Windows with one memory for every `size` events, counted from the newest: the last event of each block."""

    def __init__(self, split: Split, prompt: Prompt, max_memory: int, size: int) -> None:
        super().__init__(split, prompt, max_memory)
        self.size = size

    def memory_positions(self, target: Target) -> np.ndarray:
        return super().memory_positions(target)[::-1][:: self.size][::-1]


def states_of_windows(lm: SplitLM, windows: Windows, targets: list[Target], directory: Path) -> States:
    """States of all events of the memories, also of those inside a block."""
    plain = Windows(windows.split, windows.prompt, windows.max_memory)
    return window_states(lm, windows, spans_of(plain, targets), directory / "windows")


def states_of_items(lm: SplitLM, windows: Windows, targets: list[Target], directory: Path) -> States:
    """An item has the same state for all users."""
    spans = spans_of(windows, targets)
    items_of = {user: windows.split.histories[user].items[slice(*span)] for user, span in spans.items()}
    items = np.unique(np.concatenate(list(items_of.values())))
    encoded = encode_prompts(lm, [windows.prompt.tokens(windows.titles([item])) for item in items.tolist()])
    arrays = {user: encoded[np.searchsorted(items, own)] for user, own in items_of.items()}
    return States(lm.hidden_size, {user: start for user, (start, _) in spans.items()}, arrays)


def mean_states(states: States, size: int) -> States:
    """The mean of each state and of up to `size` − 1 states before it."""
    return replace(states, arrays={user: _running_mean(array, size) for user, array in states.arrays.items()})


def _running_mean(array: np.ndarray, size: int) -> np.ndarray:
    """(length, D) → the same shape."""
    sums = np.concatenate([np.zeros_like(array[:1], dtype=np.float64), array.cumsum(axis=0, dtype=np.float64)])
    stops = np.arange(1, len(array) + 1)
    starts = np.maximum(0, stops - size)
    return ((sums[stops] - sums[starts]) / (stops - starts)[:, None]).astype(np.float16)


def means_of(size: int) -> MakeStates:
    return lambda lm, windows, targets, directory: mean_states(states_of_windows(lm, windows, targets, directory), size)


# name → (events of an element, states)
UNITS: Mapping[str, tuple[int, MakeStates]] = {
    "window": (1, states_of_windows),
    "item": (1, states_of_items),
    "mean of 2": (2, means_of(2)),
    "mean of 5": (5, means_of(5)),
}


def run(context: StudyContext) -> StudyResult:
    own = context.evaluation(context.base.bundle, context.targets())
    return StudyResult(
        question="what should an element of memory represent?",
        x="unit",
        columns={
            "no memory": ".4f",
            "same retriever": ".4f",
            "retriever of the unit": ".4f",
            gain_column("retriever of the unit"): "+.4f",
            "oracle": ".4f",
            "oracle gain, nats": ".4f",
            "captured": ".0%",
            "elements": ".1f",
            "bytes per user": ",d",
        },
        lines={unit: _line(context, own, unit) for unit in UNITS},
        panels={
            "NDCG@10": ["no memory", "same retriever", "retriever of the unit", "oracle"],
            "oracle gain, nats per title": ["oracle gain, nats"],
        },
        remarks=[
            "The language model is the same in all lines; it was tuned to read the states of windows. Bytes are those "
            "of a full memory, stored for each user; states of items could be stored once for all users.",
            *remarks_on_voices(own.bundle),
        ],
    )


def _line(context: StudyContext, own: Evaluation, unit: str) -> dict[str, Value]:
    size, make_states = UNITS[unit]
    slug = unit.replace(" ", "-")
    directory = own.training.directory / slug
    windows = BlockWindows(own.split, own.bundle.prompt, own.bundle.manifest.memory.max_elements, size)
    states = make_states(own.bundle.lm, windows, list(own.targets), directory / "states")
    retriever, quality = _fit_retriever(context, windows, make_states, directory)
    recipe = context.base.recipe

    def annotate() -> list[Annotation]:
        annotations = directory / "annotations"
        write_annotations(own.bundle.lm, windows, own.targets, states, recipe=recipe, directory=annotations)
        return read_annotations(annotations)

    same = replace(with_windows(own, windows), states=states, annotate=annotate)
    fitted = replace(same, bundle=replace(own.bundle, retriever=retriever.to(own.bundle.lm.device)))
    rows = {
        "no memory": ndcg(own, "none", no_memory),
        "same retriever": ndcg(same, f"unit-{slug}-same", retriever_choice),
        "retriever of the unit": ndcg(fitted, f"unit-{slug}-own", retriever_choice),
        "oracle": ndcg(same, f"unit-{slug}-oracle", best_single_choice(same.annotate())),
    }
    return {
        **means_and_gains(rows, users_of(own.targets), reference="no memory"),
        "oracle gain, nats": quality.oracle_gain if quality else None,
        "captured": quality.captured if quality else None,
        "elements": num_memories(same),
        "bytes per user": bytes_per_user(own.bundle, -(-windows.max_memory // size)),
    }


def _fit_retriever(
    context: StudyContext, windows: Windows, make_states: MakeStates, directory: Path
) -> tuple[Retriever, RetrievalQuality | None]:
    """Trains as the stage does, on labels and states of the unit. The temperature with the largest gain is kept.

    The quality is that on the targets that judge; None without them.
    """
    recipe = context.base.recipe
    annotated = _annotation_set(context, windows, make_states, directory).with_memory()
    trained = [
        fit_retriever(
            annotated,
            recipe,
            temperature=temperature,
            seed=context.seed,
            checkpoints=directory / f"checkpoints-{temperature}",
        )
        for temperature in recipe.label_temperatures
    ]
    best = max(trained, key=lambda each: each.quality.gain).retriever
    if not annotated.judge:
        return best, None
    return best, measure_retrieval(best, collate(annotated.judge, annotated.states, "log_gain", temperature=1.0))


def _annotation_set(context: StudyContext, windows: Windows, make_states: MakeStates, directory: Path) -> AnnotationSet:
    base = context.base
    if make_states is states_of_windows:  # the bundle was trained on these
        return read_annotation_set(base.stages / "annotations")
    parts = learning_targets(windows.split, base.recipe, context.seed)
    all_targets = [target for targets in parts.values() for target in targets]
    states = make_states(base.bundle.lm, windows, all_targets, directory / "learning-states")
    for part, targets in parts.items():
        write_annotations(base.bundle.lm, windows, targets, states, recipe=base.recipe, directory=directory / part)
    teach, choose, judge = (read_annotations(directory / part) for part in parts)
    return AnnotationSet(teach, choose, judge, states)
