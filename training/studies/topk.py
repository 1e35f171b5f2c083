"""`topk`: how many memories into the top half, chosen by the retriever, blindly, or by age.

`retrieved` may abstain and take fewer, as when serving; `by score` takes as many as asked for, null slot or not.
"""

from dataclasses import replace

from training.studies.finding import Finding, Value, compared, gain_of
from training.studies.setting import (
    Setting,
    ndcg,
    newest,
    nothing,
    num_elements,
    random_ndcg,
    retrieved,
    users_of,
    with_manifest,
    without_null,
)

COUNTS = (0, 1, 2, 4, 8, 16, 32)


def run(setting: Setting) -> Finding:
    targets = setting.targets()
    contest = setting.contest(setting.base.bundle, targets)
    none = ndcg(contest, "none", nothing)
    lines: dict[str, dict[str, Value]] = {}
    for count in COUNTS:
        rows = dict.fromkeys(("retrieved", "by score", "random", "newest"), none)
        if count:
            served = replace(contest, bundle=with_manifest(contest.bundle, "retriever", top_k=count))
            forced = replace(served, bundle=replace(served.bundle, retriever=without_null(served.bundle.retriever)))
            rows = {
                "retrieved": ndcg(served, f"topk-{count}-retrieved", retrieved),
                "by score": ndcg(forced, f"topk-{count}-score", retrieved),
                "random": random_ndcg(contest, f"topk-{count}-random", count),
                "newest": ndcg(contest, f"topk-{count}-newest", newest(count)),
            }
        lines[str(count)] = compared({"no memory": none, **rows}, users_of(targets), reference="no memory")
    return Finding(
        question="how many memories should reach the top half?",
        x="memories k",
        columns={"retrieved": ".4f", gain_of("retrieved"): "+.4f", "by score": ".4f", "random": ".4f", "newest": ".4f"},
        lines=lines,
        panels={"NDCG@10": ["retrieved", "by score", "random", "newest"]},
        remarks=[
            f"These targets have {num_elements(contest):.1f} elements on average; k = 0 is the model without memory; "
            f"the bundle itself takes up to {contest.bundle.manifest.retriever.top_k}."
        ],
    )
