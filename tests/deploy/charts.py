"""Renders deploy/chart with Helm's own engine.

In: releases, each {"name": NAME, "values": {...}}. Out: one result for each: the objects that Helm makes and the notes,
or the error. Helm works in a process of its own, because its library is a Go program that takes over the signals of its
process: that process gets the releases as JSON on standard input.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

CHART = Path(__file__).resolve().parents[2] / "deploy/chart"


def render(*releases: dict[str, Any]) -> list[dict[str, Any]]:
    """Of each release: {"objects": [...], "notes": text}, or {"error": text}."""
    run = subprocess.run(
        [sys.executable, __file__], input=json.dumps(releases), capture_output=True, text=True, timeout=60, check=False
    )
    assert run.returncode == 0, run.stderr
    results: list[dict[str, Any]] = json.loads(run.stdout)
    return results


def findings() -> list[dict[str, Any]]:
    """What `helm lint` says of the chart: warnings and errors."""
    [result] = render({"lint": True})
    return [each for each in result["messages"] if each["severity"] > 1] + result["errors"]


def _result(helm: Any, release: dict[str, Any]) -> dict[str, Any]:
    if "lint" in release:
        return dict(helm.lint(str(CHART)))
    with helm.Chart.load(str(CHART)) as chart:
        try:
            files = chart.render(release.get("values", {}), name=release["name"], namespace="shop")
        except helm.HelmError as error:
            return {"error": str(error)}
    notes = "".join(text for name, text in files.items() if name.endswith("NOTES.txt"))
    manifests = [text for name, text in sorted(files.items()) if name.endswith(".yaml")]
    return {"notes": notes, "objects": [each for text in manifests for each in yaml.safe_load_all(text) if each]}


if __name__ == "__main__":
    import helm_python

    print(json.dumps([_result(helm_python, release) for release in json.load(sys.stdin)]))
