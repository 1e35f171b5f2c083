"""`memory`: how much to remember, and how long a window to read, against quality, latency and bytes.

The bundle's memory is capped at M elements, which needs no training. The window's length K does: one variant of the
recipe for each. All lines are measured on the same targets, which have more earlier events than the longest window.
"""

import numpy as np

from model_store.bundle import Bundle
from training.data.splits import Target
from training.lm.windows import Windows
from training.studies.finding import Finding, Value, compared, gain_of
from training.studies.setting import (
    Made,
    Setting,
    milliseconds,
    ndcg,
    nothing,
    num_elements,
    retrieved,
    users_of,
    with_examples,
    with_manifest,
)

SIZES = (10, 30, 90, 200, 500)
LENGTHS = (5, 10, 20)


def run(setting: Setting) -> Finding:
    base = setting.base
    own_length = base.bundle.manifest.prompt.recent_length
    targets = setting.targets(beyond=max(*LENGTHS, own_length))
    lines: dict[str, dict[str, Value]] = {}
    for size in SIZES:
        lines[f"M = {size}"] = _line(setting, base, targets, size)
    for length in sorted({*LENGTHS, own_length}):
        made = base if length == own_length else setting.variant(recent_length=length)
        lines[f"K = {length}"] = _line(setting, made, targets, made.bundle.manifest.memory.max_elements)
    return Finding(
        question="how many elements, and how long a window?",
        x="memory size M, window K",
        columns={
            "no memory": ".4f",
            "retrieved": ".4f",
            gain_of("retrieved"): "+.4f",
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
            f"The window of the lines M is K = {own_length}. `elements` is what these histories fill on average; "
            "bytes are those of a full memory."
        ],
    )


def _line(setting: Setting, made: Made, targets: list[Target], size: int) -> dict[str, Value]:
    """States are computed once, for the largest size."""
    widest = setting.contest(with_manifest(made.bundle, "memory", max_elements=max(*SIZES, size)), targets)
    contest = with_examples(widest, Windows(widest.split, widest.bundle.prompt, size))
    rows = {"no memory": ndcg(contest, "none", nothing), "retrieved": ndcg(contest, f"retrieved-{size}", retrieved)}
    times = milliseconds(contest, f"latency-{size}", setting.time_targets)
    return {
        **compared(rows, users_of(targets), reference="no memory"),
        "elements": num_elements(contest),
        "bytes per user": bytes_per_user(made.bundle, size),
        "ms": times["ms"],
        "× no memory": times["times_plain"],
    }


def bytes_per_user(bundle: Bundle, size: int) -> int:
    """Of a memory of `size` elements, as records in the store."""
    state = np.zeros(bundle.lm.hidden_size, dtype=np.float16)
    return size * len(bundle.codec.encode(state, bytes(8)))
