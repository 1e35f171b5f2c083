"""Rules of Prometheus and the dashboard of Grafana: each expression is PromQL and asks for metrics that exist.

What alerts say of series is in alerts.yml, for `make promtool`.
"""

import json
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml  # type: ignore[import-untyped]

from service.metrics import Metrics

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
RULES, DASHBOARD = DEPLOY / "prometheus-rules.yml", DEPLOY / "grafana-dashboard.json"
_PARTS = ("_bucket", "_sum", "_count")
# Grafana fills it in; any duration makes the expression whole.
_INTERVAL = ("$__rate_interval", "5m")


def metrics() -> dict[str, set[str]]:
    """The labels of each series that the service shows, beside those that Prometheus adds."""
    series: dict[str, set[str]] = {}
    made = Metrics()
    for metric in made.registry.collect():
        name = metric.name + ("_total" if metric.type == "counter" else "")
        labels = set(getattr(made, name.removeprefix("automr_"))._labelnames)
        if metric.type == "histogram":
            series |= {name + part: labels | {"le"} for part in _PARTS}
        else:
            series[name] = labels
    return series


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"] for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    read: list[dict[str, Any]] = json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
    return read


def expressions() -> list[str]:
    asked = [target["expr"].replace(*_INTERVAL) for panel in panels() for target in panel["targets"]]
    return asked + [rule["expr"] for rule in rules()]


def selected(expression: str) -> list[tuple[str, set[str]]]:
    """What an expression selects: names of series, each with the labels that it must have."""
    found: list[tuple[str, set[str]]] = []

    def look(node: Any) -> None:
        if isinstance(node, promql_parser.VectorSelector):
            found.append((node.name or "", {matcher.name for matcher in node.matchers.matchers}))

    promql_parser.walk(promql_parser.parse(expression), look)
    return found


@pytest.mark.parametrize("expression", expressions())
def test_expressions_ask_for_series_and_labels_that_exist(expression: str) -> None:
    known = metrics() | {rule["record"]: {"le", "route"} for rule in rules() if "record" in rule}
    asked = selected(expression)
    assert asked
    for name, labels in asked:
        assert name in known, f"{name} is no metric of the service"
        assert labels <= known[name], f"{name} has no labels {labels - known[name]}"


def test_every_alert_says_what_to_do_and_is_tested() -> None:
    tests = (Path(__file__).parent / "alerts.yml").read_text(encoding="utf-8")
    alerts = [rule for rule in rules() if "alert" in rule]
    assert alerts
    for alert in alerts:
        assert {"summary", "action"} <= alert["annotations"].keys(), alert["alert"]
        assert alert["labels"]["severity"] in ("page", "ticket"), alert["alert"]
        assert alert["alert"] in tests, f"alerts.yml has no test of {alert['alert']}"


def test_panels_do_not_overlap() -> None:
    taken: dict[tuple[int, int], str] = {}
    for panel in panels():
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert (x, y) not in taken, f"{panel['title']} lies on {taken[x, y]}"
                taken[x, y] = panel["title"]
    assert len({panel["id"] for panel in panels()}) == len(panels())
