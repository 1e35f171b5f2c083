"""`cold`: what the rows are worth to users of whom little is known.

Targets are the valid period's events of any user, also of those too new to be evaluated otherwise, by how many events
are known before. A history that fits into the window has no memory: there AutoMR is the model without it.
"""

from collections.abc import Sequence

from training.data.splits import Split, Target, sample_targets
from training.rows.registry import predict
from training.rows.scores import score
from training.run.stage import StageError
from training.studies.finding import Finding, Value, compared, gain_of
from training.studies.setting import METRIC, Setting, ndcg, nothing, num_elements, retrieved, users_of

BINS: dict[str, tuple[int, float]] = {
    "0–2": (0, 2),
    "3–5": (3, 5),
    "6–10": (6, 10),
    "11–20": (11, 20),
    "21–50": (21, 50),
    "51+": (51, float("inf")),
}


def run(setting: Setting) -> Finding:
    events = valid_events(setting.inputs.split)
    lines: dict[str, dict[str, Value]] = {}
    for name, (least, most) in BINS.items():
        found = [target for target in events if least <= target.position <= most]
        if found:
            lines[name] = _line(setting, sample_targets(found, setting.num_targets, setting.seed))
    if not lines:
        raise StageError("nobody has an event in the valid period")
    return Finding(
        question="how many interactions before the model is worth asking, and memory worth having?",
        x="earlier interactions",
        columns={
            "targets": "d",
            "popularity": ".4f",
            "no memory": ".4f",
            "retrieved": ".4f",
            gain_of("retrieved"): "+.4f",
            "elements": ".1f",
        },
        lines=lines,
        panels={"NDCG@10": ["popularity", "no memory", "retrieved"]},
        remarks=[f"Nobody has so many: {', '.join(missing)}."] if (missing := sorted(set(BINS) - set(lines))) else [],
    )


def _line(setting: Setting, targets: Sequence[Target]) -> dict[str, Value]:
    contest = setting.contest(setting.base.bundle, targets)
    popular = score(predict(contest, "popularity", 0), targets, contest.split)[METRIC]
    rows = {
        "no memory": ndcg(contest, "none", nothing),
        "popularity": popular,
        "retrieved": ndcg(contest, "retrieved", retrieved),
    }
    return {
        **compared(rows, users_of(targets), reference="no memory"),
        "targets": len(targets),
        "elements": num_elements(contest),
    }


def valid_events(split: Split) -> list[Target]:
    """Every user's events of the valid period, however much came before.

    The cut's own targets are of long users only. Behind their train period, events up to the last valid target's time
    are certainly not of the test period; between that and the first test target's nobody knows, so they are left out.
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
