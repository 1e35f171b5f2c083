"""The demo's data: a synthetic bookshop, and a few of its readers to serve.

Each demo reader stops right before an old interest comes back: the next title follows from one old interaction alone.
"""

import json
from pathlib import Path
from typing import Any

from training.data.splits import time_split
from training.data.synthetic import FAR_GAP, find_echoes, synthetic_dataset
from training.run.inputs import Inputs, fingerprint
from training.run.stage import whole_file

INTERACTIONS = "demo-interactions.jsonl"
_NUM_READERS = 20


def demo_inputs(num_users: int, seed: int) -> Inputs:
    dataset = synthetic_dataset(num_users=num_users, seed=seed)
    split = time_split(dataset)
    return Inputs(dataset, split, fingerprint(split))


def write_demo_interactions(inputs: Inputs, bundle: Path) -> None:
    """Beside the bundle's own files: events as `POST /interactions` takes them, of reader-1, reader-2, …"""
    tests = {(inputs.split.histories[target.user].user_id, target.position) for target in inputs.split.test}
    echoes = [echo for echo in find_echoes(inputs.dataset).to_dicts() if _is_good(echo, tests)]
    latest = {echo["user_id"]: echo for echo in echoes}
    histories = inputs.dataset.interactions.partition_by("user_id", as_dict=True, maintain_order=True)
    with whole_file(bundle / INTERACTIONS) as draft, draft.open("w", encoding="utf-8") as file:
        for number, echo in enumerate(list(latest.values())[:_NUM_READERS], start=1):
            events = histories[(echo["user_id"],)].head(echo["position"])
            for event in events.select("item_id", "timestamp").to_dicts():
                file.write(json.dumps({"user_id": f"reader-{number}", **event, "type": "read"}) + "\n")


def _is_good(echo: dict[str, Any], tests: set[tuple[str, int]]) -> bool:
    """Far, and of the test period: no model has seen it."""
    return echo["position"] - echo["source_position"] >= FAR_GAP and (echo["user_id"], echo["position"]) in tests
