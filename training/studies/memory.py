"""`memory`: the size of the memory and the length of the window, measured by quality, latency and bytes.

A smaller memory M only cuts the bundle's memory and needs no training; voices then read K + M events. Each length K of
the window needs a variant of the recipe. All lines are measured on the same targets, which have more earlier events
than the longest window.
"""

from dataclasses import replace

from model_store.bundle import Bundle
from training.data.splits import Target
from training.lm.windows import Windows
from training.rows.memory_choices import no_memory, retriever_choice
from training.studies.context import (
    StudyContext,
    TrainedBundle,
    milliseconds,
    ndcg,
    num_memories,
    users_of,
    with_manifest,
    with_windows,
)
from training.studies.result import StudyResult, Value, gain_column, means_and_gains

SIZES = (10, 30, 90, 200, 500)
LENGTHS = (5, 10, 20)


def run(context: StudyContext) -> StudyResult:
    base = context.base
    own_length = base.bundle.manifest.prompt.recent_length
    targets = context.targets(min_history=max(*LENGTHS, own_length))
    lines: dict[str, dict[str, Value]] = {}
    for size in SIZES:
        lines[f"M = {size}"] = _line(context, base, targets, size, past_length=own_length + size)
    for length in sorted({*LENGTHS, own_length}):
        trained = base if length == own_length else context.variant(recent_length=length)
        lines[f"K = {length}"] = _line(context, trained, targets, trained.bundle.manifest.memory.max_elements)
    return StudyResult(
        question="how large should the memory be, and how long the window?",
        x="memory size M, window K",
        columns={
            "no memory": ".4f",
            "retrieved": ".4f",
            gain_column("retrieved"): "+.4f",
            "elements": ".1f",
            "bytes per user": ",d",
            "ms": ".1f",
            "× no memory": ".2f",
        },
        lines=lines,
        panels={
            "NDCG@10": ["no memory", "retrieved"],
            "ms per answer": ["ms"],
            "bytes per user when full": ["bytes per user"],
        },
        remarks=[
            f"In the lines M the window is K = {own_length}. `elements` is the mean number of memories that these "
            "histories have; bytes are those of a full memory."
        ],
    )


def _line(
    context: StudyContext,
    trained: TrainedBundle,
    targets: list[Target],
    size: int,
    *,
    past_length: int | None = None,
) -> dict[str, Value]:
    """The states are computed once, for the largest size. `past_length`: events of voices, None as served."""
    largest = with_manifest(trained.bundle, "memory", max_elements=max(*SIZES, size))
    evaluation = context.evaluation(largest, targets)
    evaluation = with_windows(evaluation, Windows(evaluation.split, evaluation.bundle.prompt, size))
    evaluation = replace(evaluation, past_length=past_length)
    name = f"{size}-{past_length or 'all'}"
    rows = {
        "no memory": ndcg(evaluation, "none", no_memory, voters="window"),
        "retrieved": ndcg(evaluation, f"retrieved-{name}", retriever_choice),
    }
    times = milliseconds(evaluation, f"latency-{name}", context.time_targets)
    return {
        **means_and_gains(rows, users_of(targets), reference="no memory"),
        "elements": num_memories(evaluation),
        "bytes per user": bytes_per_user(trained.bundle, size),
        "ms": times["ms"],
        "× no memory": times["times_plain"],
    }


def bytes_per_user(bundle: Bundle, size: int) -> int:
    """Bytes of the records of `size` memories in the store."""
    return size * bundle.codec.record_bytes
