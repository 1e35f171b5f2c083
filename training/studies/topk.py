"""`topk`: the number of memories that the top half reads, chosen by the retriever, at random, or by age.

`retrieved` may abstain and take fewer, as in serving. `by score` always takes k memories, without the null slot.
"""

from dataclasses import replace

from training.rows.memory_choices import newest_choice, no_memory, retriever_choice
from training.studies.context import (
    StudyContext,
    ndcg,
    num_memories,
    random_ndcg,
    remarks_on_voices,
    users_of,
    with_manifest,
    without_null,
)
from training.studies.result import StudyResult, Value, gain_column, means_and_gains

COUNTS = (0, 1, 2, 4, 8, 16, 32)


def run(context: StudyContext) -> StudyResult:
    targets = context.targets()
    evaluation = context.evaluation(context.base.bundle, targets)
    none = ndcg(evaluation, "none", no_memory)
    lines: dict[str, dict[str, Value]] = {}
    for count in COUNTS:
        rows = dict.fromkeys(("retrieved", "by score", "random", "newest"), none)
        if count:
            served = replace(evaluation, bundle=with_manifest(evaluation.bundle, "retriever", top_k=count))
            forced = replace(served, bundle=replace(served.bundle, retriever=without_null(served.bundle.retriever)))
            rows = {
                "retrieved": ndcg(served, f"topk-{count}-retrieved", retriever_choice),
                "by score": ndcg(forced, f"topk-{count}-score", retriever_choice),
                "random": random_ndcg(evaluation, f"topk-{count}-random", count),
                "newest": ndcg(evaluation, f"topk-{count}-newest", newest_choice(count)),
            }
        values = means_and_gains({"no memory": none, **rows}, users_of(targets), reference="no memory")
        lines[str(count)] = values
    gain = gain_column("retrieved")
    return StudyResult(
        question="how many memories should the top half read?",
        x="memories k",
        columns={"retrieved": ".4f", gain: "+.4f", "by score": ".4f", "random": ".4f", "newest": ".4f"},
        lines=lines,
        panels={"NDCG@10": ["retrieved", "by score", "random", "newest"]},
        remarks=[
            f"These targets have {num_memories(evaluation):.1f} memories on average. k = 0 is the model without "
            f"memory. The bundle itself takes up to {evaluation.bundle.manifest.retriever.top_k}.",
            *remarks_on_voices(evaluation.bundle),
        ],
    )
