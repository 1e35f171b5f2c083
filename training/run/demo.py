"""The demo's data: the synthetic bookshop, and events of some of its readers to send to the service.

The events of reader-1, reader-2, … stop right before a far echo: the next title follows from one old interaction alone.
Those of asker-1, asker-2, … stop right before `QUESTION`, and one present for the sister tells the answer.
"""

import json
from pathlib import Path
from typing import Any

import polars as pl

from training.data.dataset import Dataset
from training.data.questions import questions_dataset, right_memories
from training.data.splits import time_split
from training.data.synthetic import FAR_GAP, find_echoes, synthetic_dataset
from training.run.inputs import Inputs, fingerprint
from training.run.stage import atomic_file

INTERACTIONS = "demo-interactions.jsonl"
QUESTION = "the next of the series my sister liked"
_NUM_READERS, _NUM_ASKERS = 20, 3


def demo_inputs(num_users: int, seed: int) -> Inputs:
    dataset = synthetic_dataset(num_users=num_users, seed=seed)
    split = time_split(dataset)
    return Inputs(dataset, split, fingerprint(split))


def demo_questions(num_users: int, seed: int) -> Dataset:
    """The same shop, whose readers also ask. Another seed may have no reader who asks `QUESTION` late."""
    return questions_dataset(num_users, seed)


def write_demo_interactions(inputs: Inputs, questions: Dataset | None, bundle: Path) -> None:
    """Writes the events of readers and askers to a file in the bundle, in the format of `POST /interactions`."""
    tests = {(inputs.split.histories[target.user].user_id, target.position) for target in inputs.split.test}
    echoes = [echo for echo in find_echoes(inputs.dataset).to_dicts() if _is_far_test_echo(echo, tests)]
    latest = {echo["user_id"]: echo for echo in echoes}
    histories = inputs.dataset.interactions.partition_by("user_id", as_dict=True, maintain_order=True)
    with atomic_file(bundle / INTERACTIONS) as draft, draft.open("w", encoding="utf-8") as file:
        for number, echo in enumerate(list(latest.values())[:_NUM_READERS], start=1):
            events = histories[(echo["user_id"],)].head(echo["position"])
            for event in events.select("item_id", "timestamp").to_dicts():
                file.write(json.dumps({"user_id": f"reader-{number}", **event, "type": "read"}) + "\n")
        asked = [] if questions is None else _before_question(questions)[:_NUM_ASKERS]
        for number, before in enumerate(asked, start=1):
            for event in before:
                file.write(json.dumps({"user_id": f"asker-{number}", **event, "type": "buy"}) + "\n")


def _before_question(questions: Dataset) -> list[list[dict[str, Any]]]:
    """The events before `QUESTION` of each reader who asks it, the latest first: nothing was trained on these."""
    asked = right_memories(questions).filter(pl.col("query") == QUESTION).sort("timestamp", "user_id", descending=True)
    assert questions.queries is not None
    keys = ["user_id", "item_id", "timestamp"]
    events = questions.interactions.join(questions.queries, on=keys, how="left").sort("timestamp")
    return [
        events.filter((pl.col("user_id") == each["user_id"]) & (pl.col("timestamp") < each["timestamp"]))
        .select("item_id", "timestamp", "query")
        .to_dicts()
        for each in asked.to_dicts()
    ]


def _is_far_test_echo(echo: dict[str, Any], tests: set[tuple[str, int]]) -> bool:
    """Whether the echo is far and belongs to the test period, which no model was trained on."""
    return echo["position"] - echo["source_position"] >= FAR_GAP and (echo["user_id"], echo["position"]) in tests
