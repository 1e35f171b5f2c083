"""Objects of Kubernetes in tests: those of deploy/base, and what a validator says of them."""

from pathlib import Path
from typing import Any

import kubernetes_validate
import yaml  # type: ignore[import-untyped]

BASE = Path(__file__).resolve().parents[2] / "deploy/base"
# The oldest version that the chart allows, and the newest whose schemas the validator has.
VERSIONS = ("1.25", "1.37")

Object = dict[str, Any]


def base() -> list[Object]:
    """The objects of deploy/base as kustomize makes them, with the map of settings under its plain name."""
    kustomization = yaml.safe_load((BASE / "kustomization.yaml").read_text(encoding="utf-8"))
    files = [(BASE / name).read_text(encoding="utf-8") for name in kustomization["resources"]]
    objects = [each for text in files for each in yaml.safe_load_all(text)]
    for generator in kustomization["configMapGenerator"]:
        data = dict(literal.split("=", 1) for literal in generator["literals"])
        objects.append({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": generator["name"]}, "data": data})
    return objects


def problems(objects: list[Object]) -> list[str]:
    """One line for each object that a schema of Kubernetes refuses, unknown fields included."""
    found = []
    for each in objects:
        for version in VERSIONS:
            try:
                kubernetes_validate.validate(each, version, strict=True)
            except kubernetes_validate.ValidationError as error:
                found.append(f"{each['kind']} {each['metadata']['name']}, Kubernetes {version}: {error.message}")
    return found


def one(objects: list[Object], kind: str, name: str = "") -> Object:
    """The object of a kind, whose name ends with `name`."""
    [found] = [each for each in objects if each["kind"] == kind and each["metadata"]["name"].endswith(name)]
    return found


def bare(value: Any) -> Any:
    """An object without what belongs to a release: labels, annotations, the image."""
    dropped = {"labels", "annotations", "image", "imagePullPolicy", "matchLabels", "selector"}
    if isinstance(value, dict):
        return {key: bare(part) for key, part in value.items() if key not in dropped}
    return [bare(part) for part in value] if isinstance(value, list) else value
