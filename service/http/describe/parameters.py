"""The fields of POST /recommend as the page shows them: made from the OpenAPI document, new fields included."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

_MAIN = ("k", "query", "exclude_seen")  # shown first; the others are folded
_ELSEWHERE = ("user_id",)
Kind = Literal["choice", "number", "text", "json"]


@dataclass(frozen=True)
class Parameter:
    """`kind`: choice (one of `options`), number, text, or json for everything else."""

    name: str
    kind: Kind
    description: str
    default: Any
    options: tuple[Any, ...]
    minimum: float | None
    maximum: float | None
    example: str

    @property
    def is_main(self) -> bool:
        return self.name in _MAIN


def parameters_of(schema: Mapping[str, Any]) -> list[Parameter]:
    """`schema`: of the request, from the document. The main parameters come first, in their own order."""
    found = [_parameter(name, field) for name, field in schema["properties"].items() if name not in _ELSEWHERE]
    return sorted(found, key=lambda parameter: _MAIN.index(parameter.name) if parameter.is_main else len(_MAIN))


def _parameter(name: str, field: Mapping[str, Any]) -> Parameter:
    types = [each for each in field.get("anyOf", [field]) if each.get("type") != "null"]
    only = types[0] if len(types) == 1 else {}
    options = tuple(only.get("enum", (True, False) if only.get("type") == "boolean" else ()))
    kinds: dict[str, Kind] = {"integer": "number", "number": "number", "string": "text"}
    return Parameter(
        name=name,
        kind="choice" if options else kinds.get(only.get("type", ""), "json"),
        description=str(field.get("description", "")),
        default=field.get("default"),
        options=options,
        minimum=only.get("minimum"),
        maximum=only.get("maximum"),
        example=json.dumps(field.get("examples", [None])[0], ensure_ascii=False),
    )
