"""What the documents say about the code is true and complete: links, map, fields, settings, metrics, errors, logs."""

import ast
import importlib
import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, get_args, get_origin

import pytest
from pydantic import BaseModel, SecretStr

from service import errors
from service.http.requests import bodies, filters, rules
from service.http.schemas import erasure, interactions, items, ops, problems, recommendations
from service.metrics import Metrics
from service.settings import PREFIX, Settings
from tests.docs.documents import ROOT, Document, document, documents

MAX_README_LINES = 155
MAP_START, MAP_END = "## The map", "## Where to go next"
LOUD = ("warning", "error", "exception")  # log calls that an operator has to understand


def test_the_readme_is_short() -> None:
    assert len(document("README.md").text.splitlines()) <= MAX_README_LINES


@pytest.mark.parametrize("page", documents(), ids=lambda page: str(page.path.relative_to(ROOT)))
def test_links_lead_somewhere(page: Document) -> None:
    broken = [link for link in page.links if not _exists(page.path, link)]
    assert not broken, f"{page.path}: {broken}"


def test_every_feature_names_tests_that_exist() -> None:
    text = document("docs/features.md").text
    named = re.findall(r"\[(test_\w+)\]\(\.\./(tests/[\w/]+\.py)\)", text)
    assert len(named) == len(re.findall(r"\[test_", text))
    missing = [f"{file}: {name}" for name, file in named if not _defines(ROOT / file, name)]
    assert not missing, missing
    rows = [line.split("|") for line in text.splitlines() if line.startswith("| ") and line.count("|") == 8]
    unproven = [
        cells[1] for cells in rows if "[test_" not in cells[2] and not cells[2].strip().startswith(("no", "AutoMR"))
    ]
    assert len(rows) > 40 and not unproven, unproven


def _defines(file: Path, name: str) -> bool:
    return (
        file.is_file() and re.search(rf"^ *(async )?def {name}\(", file.read_text(encoding="utf-8"), re.M) is not None
    )


def test_a_broken_link_is_found() -> None:
    for link in ("nothing.md", "#no-such-heading", "docs/operate.md#no-such-heading"):
        assert not _exists(ROOT / "README.md", link)
    assert _exists(ROOT / "README.md", "docs/operate.md#settings") and _exists(
        ROOT / "README.md", "https://example.org"
    )


def test_every_page_of_docs_is_linked_from_the_readme() -> None:
    linked = {link.partition("#")[0] for link in document("README.md").links}
    assert {str(path.relative_to(ROOT)) for path in ROOT.glob("docs/*.md")} <= linked


def test_the_map_shows_every_room_and_no_other() -> None:
    text = document("README.md").text
    lines = text[text.index(MAP_START) : text.index(MAP_END)].splitlines()
    package, shown = "", set()
    for line in lines:
        if found := re.match(r"(model_store|service|training)/", line):
            package = found[1]
        elif package and (found := re.match(r"[├└]── (\w+)/", line)):
            shown.add(f"{package}/{found[1]}")
    rooms = {
        str(path.parent.relative_to(ROOT))
        for name in ("model_store", "service", "training")
        for path in (ROOT / name).glob("*/__init__.py")
    }
    assert shown == rooms
    named = re.findall(r"\b\w+\.py\b", "\n".join(lines))
    missing = [name for name in named if not any((ROOT / folder / name).exists() for folder in _PLACES)]
    assert not missing


_PLACES = ("model_store", "service", "training", "tests")


def test_every_field_and_value_of_the_api_is_explained() -> None:
    named = document("docs/integrate.md").code_words
    missing = [
        f"{model.__name__}.{word}"
        for model in _schemas()
        for word in [*_fields(model), *_values(model)]
        if word not in named
    ]
    assert not missing


def test_every_route_is_listed() -> None:
    from service.app import create_app

    paths = create_app(Settings.from_env({})).openapi()["paths"]
    listed = "\n".join(" ".join(row) for row in document("docs/integrate.md").rows("The routes"))
    missing = [f"{method} {path}" for path, methods in paths.items() for method in methods if path not in listed]
    assert not missing


def test_the_table_of_settings_is_that_of_the_code() -> None:
    rows = document("docs/operate.md").rows("Settings")[1:]
    table = {cells[0].strip("`"): cells[1].strip("`") for cells in rows}
    settings = {PREFIX + name.upper(): _default(field.default) for name, field in Settings.model_fields.items()}
    assert table == settings


def test_the_table_of_metrics_is_that_of_the_code() -> None:
    table = {
        cells[0].strip("`"): set(re.findall(r"\w+", cells[1]))
        for cells in document("docs/operate.md").rows("Metrics")[1:]
    }
    metrics = {
        metric._name + ("_total" if metric._type == "counter" else ""): set(metric._labelnames)
        for metric in vars(Metrics()).values()
        if hasattr(metric, "_labelnames")
    }
    assert table == metrics


def test_every_error_is_explained() -> None:
    titles = {error.title for _, error in inspect.getmembers(errors, _is_final_error)}
    text = document("docs/troubleshoot.md").text
    assert not {title for title in titles if title not in text}


def test_messages_of_the_troubleshooting_table_are_those_of_the_code() -> None:
    messages = [text for path in _sources() for text in _texts(path)]
    rows = document("docs/troubleshoot.md").rows("The service does not start")[1:]
    told = [fragment for cells in rows for fragment in re.findall(r"`([^`]+)`", cells[0])]
    assert len(told) >= len(rows)
    unknown = [fragment for fragment in told if not any(fragment in message for message in messages)]
    assert not unknown


def test_every_warning_and_error_of_the_log_is_explained() -> None:
    rows = document("docs/troubleshoot.md").rows("Log lines")[1:]
    told = {event for cells in rows for event in re.findall(r"`([^`]+)`", cells[0])}
    loud = {event for path in _sources() for event, level in _logged(path) if level in LOUD}
    assert not loud - told, "not explained"
    assert not told - {text for path in _sources() for text in _texts(path)}, "explained, but never logged"


def test_all_repeated_work_is_explained() -> None:
    rows = document("docs/troubleshoot.md").rows("Repeated work")[1:]
    told = [name for cells in rows for name in re.findall(r"`([^`]+)`", cells[0])]
    assert sorted(told) == sorted(name for path in _sources() for name in _repeated(path))


# ---- reading


def _exists(page: Path, link: str) -> bool:
    if re.match(r"[a-z]+:", link):
        return True  # of the network, which tests do not use
    name, _, anchor = link.partition("#")
    target = page if not name else (page.parent / name)
    if not target.exists():
        return False
    return not anchor or anchor in Document(target).anchors


def _schemas() -> Iterator[type[BaseModel]]:
    for module in (erasure, interactions, items, ops, problems, recommendations, bodies, filters, rules):
        for _, model in inspect.getmembers(module, inspect.isclass):
            if issubclass(model, BaseModel):
                yield model


def _fields(model: type[BaseModel]) -> list[str]:
    return list(model.model_fields)


def _values(model: type[BaseModel]) -> Iterator[str]:
    """Words of every Literal."""
    for field in model.model_fields.values():
        for kind in (field.annotation, *get_args(field.annotation)):
            if get_origin(kind) is Literal:
                yield from get_args(kind)


def _default(value: Any) -> str:
    """As the table shows it: as in the environment."""
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, tuple):
        return ",".join(map(str, value)) or "none"
    if isinstance(value, float):
        return f"{value:g}"
    return json.dumps(value) if isinstance(value, bool) else str(value)


def _is_final_error(found: object) -> bool:
    """Not a base of other errors."""
    return inspect.isclass(found) and issubclass(found, errors.ServiceError) and not found.__subclasses__()


def _sources() -> Iterator[Path]:
    for package in ("service", "model_store"):
        yield from sorted((ROOT / package).rglob("*.py"))


def _texts(path: Path) -> Iterator[str]:
    """Every string of a file. Of what an f-string fills in, constants are kept and all else is left out."""
    module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"))
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.JoinedStr):
            yield "".join(_part(part, module) for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def _part(part: ast.expr, module: ModuleType) -> str:
    match part:
        case ast.Constant(value=text):
            return str(text)
        case ast.FormattedValue(value=ast.Name(id=name)):
            return str(vars(module).get(name, ""))
        case _:
            return ""


def _logged(path: Path) -> Iterator[tuple[str, str]]:
    """(event, level) of each call `log.LEVEL("event", ...)`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        match node:
            case ast.Call(
                func=ast.Attribute(value=ast.Name(id="log"), attr=level), args=[ast.Constant(value=str(event)), *_]
            ):
                yield event, level


def _repeated(path: Path) -> Iterator[str]:
    """The names of `Repeated("name", ...)`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        match node:
            case ast.Call(func=ast.Name(id="Repeated"), args=[ast.Constant(value=str(name)), *_]):
                yield name
