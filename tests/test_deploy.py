"""The files of deploy/: what they name exists, and the network policy lets the service reach its store."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from service.metrics import Metrics

DEPLOY = Path(__file__).resolve().parents[1] / "deploy"
_PARTS = ("_bucket", "_sum", "_count")


def metrics() -> set[str]:
    made = {metric.name: metric.type for metric in Metrics().registry.collect()}
    counters = {f"{name}_total" for name, kind in made.items() if kind == "counter"}
    return (
        counters | made.keys() | {name + part for name, kind in made.items() if kind == "histogram" for part in _PARTS}
    )


def expressions(name: str) -> list[str]:
    text = (DEPLOY / name).read_text(encoding="utf-8")
    if name.endswith(".json"):
        return [target["expr"] for panel in json.loads(text)["panels"] for target in panel.get("targets", [])]
    groups = yaml.safe_load(text)["groups"]
    return [rule["expr"] for group in groups for rule in group["rules"]]


@pytest.mark.parametrize("name", ["prometheus-rules.yml", "grafana-dashboard.json"])
def test_alerts_and_panels_ask_for_metrics_that_exist(name: str) -> None:
    asked = {metric for text in expressions(name) for metric in re.findall(r"automr_\w+", text)}
    assert asked and not asked - metrics()


def test_every_alert_says_what_to_do() -> None:
    groups = yaml.safe_load((DEPLOY / "prometheus-rules.yml").read_text(encoding="utf-8"))["groups"]
    alerts: list[dict[str, Any]] = [rule for group in groups for rule in group["rules"] if "alert" in rule]
    assert alerts
    for alert in alerts:
        assert {"summary", "action"} <= alert["annotations"].keys(), alert["alert"]


@pytest.mark.parametrize("port", [6379, 6380, 7000, 16379])
def test_the_network_policy_lets_a_store_on_any_port_be_reached(port: int) -> None:
    policy = yaml.safe_load((DEPLOY / "base/network.yaml").read_text(encoding="utf-8"))
    allowed = [each for rule in policy["spec"]["egress"] for each in rule["ports"] if each["protocol"] == "TCP"]
    assert any(each["port"] <= port <= each.get("endPort", each["port"]) for each in allowed)
