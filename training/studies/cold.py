"""`cold`: the quality for users with short histories.

Targets are all events of the valid period, grouped by the number of earlier events, of any user that neither taught nor
chose the retriever. The usual evaluation leaves out users with few events. A history that fits into the window has no
memory: there AutoMR equals the model without memory. Memory is states and, for voices, events older than the window.
The first event of a user is ranked by the model from an empty window; the service does not ask the model then.
"""

from collections.abc import Sequence

from training.data.splits import Split, Target, sample_targets
from training.rows.memory_choices import no_memory, retriever_choice
from training.rows.registry import predict
from training.rows.row_metrics import metrics_by_target
from training.run.stage import StageError
from training.studies.context import METRIC, StudyContext, ndcg, num_memories, users_of
from training.studies.result import StudyResult, Value, gain_column, means_and_gains

BINS: dict[str, tuple[int, float]] = {
    "0–2": (0, 2),
    "3–5": (3, 5),
    "6–10": (6, 10),
    "11–20": (11, 20),
    "21–50": (21, 50),
    "51+": (51, float("inf")),
}


def run(context: StudyContext) -> StudyResult:
    events = context.judged(valid_events(context.inputs.split))
    lines: dict[str, dict[str, Value]] = {}
    for name, (least, most) in BINS.items():
        found = [target for target in events if least <= target.position <= most]
        if found:
            lines[name] = _line(context, sample_targets(found, context.num_targets, context.seed))
    if not lines:
        raise StageError("the valid period has no event of the users that judge")
    missing = sorted(set(BINS) - set(lines))
    return StudyResult(
        question="how many interactions do the model and its memory need?",
        x="earlier interactions",
        columns={
            "targets": "d",
            "popularity": ".4f",
            "no memory": ".4f",
            "retrieved": ".4f",
            gain_column("retrieved"): "+.4f",
            "elements": ".1f",
        },
        lines=lines,
        panels={"NDCG@10": ["popularity", "no memory", "retrieved"]},
        remarks=[f"No target has this many earlier interactions: {', '.join(missing)}."] if missing else [],
    )


def _line(context: StudyContext, targets: Sequence[Target]) -> dict[str, Value]:
    evaluation = context.evaluation(context.base.bundle, targets)
    popular = metrics_by_target(predict(evaluation, "popularity", 0), targets, evaluation.split)[METRIC]
    rows = {
        "no memory": ndcg(evaluation, "none", no_memory, voters="window"),
        "popularity": popular,
        "retrieved": ndcg(evaluation, "retrieved", retriever_choice),
    }
    return {
        **means_and_gains(rows, users_of(targets), reference="no memory"),
        "targets": len(targets),
        "elements": num_memories(evaluation),
    }


def valid_events(split: Split) -> list[Target]:
    """All events of the valid period, of every user.

    The targets of the split belong to long users only. For the others, an event after their train period is certainly
    in the valid period if it is not later than the last valid target; later events may be of the test period and are
    left out.
    """
    if split.name == "leave-one-out":
        return list(split.valid)
    last = max(int(split.histories[target.user].timestamps[target.position]) for target in split.valid)
    return [
        Target(user, position)
        for user, history in enumerate(split.histories)
        for position in range(history.train_end, len(history.items))
        if history.timestamps[position] <= last
    ]
