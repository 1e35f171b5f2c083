"""The demo's data: the synthetic bookshop, and events of twenty of its readers to send to the service.

The events of each reader stop right before a far echo: the next title follows from one old interaction alone.
"""

import json
from pathlib import Path
from typing import Any

from training.data.splits import time_split
from training.data.synthetic import FAR_GAP, find_echoes, synthetic_dataset
from training.run.inputs import Inputs, fingerprint
from training.run.stage import atomic_file

INTERACTIONS = "demo-interactions.jsonl"
_NUM_READERS = 20


def demo_inputs(num_users: int, seed: int) -> Inputs:
    dataset = synthetic_dataset(num_users=num_users, seed=seed)
    split = time_split(dataset)
    return Inputs(dataset, split, fingerprint(split))


def write_demo_interactions(inputs: Inputs, bundle: Path) -> None:
    """Writes events of reader-1, reader-2, … to a file in the bundle, in the format of `POST /interactions`."""
    tests = {(inputs.split.histories[target.user].user_id, target.position) for target in inputs.split.test}
    echoes = [echo for echo in find_echoes(inputs.dataset).to_dicts() if _is_far_test_echo(echo, tests)]
    latest = {echo["user_id"]: echo for echo in echoes}
    histories = inputs.dataset.interactions.partition_by("user_id", as_dict=True, maintain_order=True)
    with atomic_file(bundle / INTERACTIONS) as draft, draft.open("w", encoding="utf-8") as file:
        for number, echo in enumerate(list(latest.values())[:_NUM_READERS], start=1):
            events = histories[(echo["user_id"],)].head(echo["position"])
            for event in events.select("item_id", "timestamp").to_dicts():
                file.write(json.dumps({"user_id": f"reader-{number}", **event, "type": "read"}) + "\n")


def _is_far_test_echo(echo: dict[str, Any], tests: set[tuple[str, int]]) -> bool:
    """Whether the echo is far and belongs to the test period, which no model was trained on."""
    return echo["position"] - echo["source_position"] >= FAR_GAP and (echo["user_id"], echo["position"]) in tests
