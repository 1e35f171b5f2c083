"""Every command in README.md and docs/*.md runs as it stands, in the order of its document.

Answers that a document shows are compared in shape (names of fields, kinds of values) with what really comes. Commands
marked `needs=…` are not run: their programs, files and options must exist.
"""

import contextlib
import importlib
import io
import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from tests.docs.documents import ROOT, Block, document
from tests.docs.sandbox import Sandbox

WITH_COMMANDS = ("README.md", "docs/integrate.md", "docs/operate.md")
TESTED = ("README.md", "deploy/README.md", *sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("docs/*.md")))
UNLEARNED = "memory"  # an untrained retriever may choose nothing where the documented answer shows memories
_ASSIGNMENT = re.compile(r"\w+=")


@pytest.mark.parametrize("name", WITH_COMMANDS)
def test_commands_run_as_they_stand_and_answers_have_the_documented_shape(name: str, sandbox: Sandbox) -> None:
    printed = ""
    for block in document(name).blocks:
        if block.is_serving:
            sandbox.serve(block.script)
        elif block.is_shell and block.needs is None:
            printed = sandbox.run(block.script)
        elif block.language == "json":
            difference = _difference(_last_json(block.text), _last_json(printed))
            assert difference is None, f"{name}:{block.line}: {difference}; really: {printed}"


def test_the_documents_with_commands_are_all_listed() -> None:
    runnable = {name for name in TESTED for block in document(name).blocks if block.is_shell and block.needs is None}
    assert runnable == set(WITH_COMMANDS)


@pytest.mark.parametrize("name", TESTED)
def test_every_shown_answer_follows_its_command(name: str) -> None:
    blocks = document(name).blocks
    for before, block in zip([None, *blocks], blocks, strict=False):
        if block.language == "json":
            follows = before is not None and before.is_shell and before.needs is None and not before.is_serving
            assert follows, f"{name}:{block.line}: no command that a test runs stands right before this answer"


@pytest.mark.parametrize("name", TESTED)
def test_commands_that_cannot_run_here_name_what_exists(name: str) -> None:
    wrong = [
        f"{name}:{block.line}: {problem}"
        for block in document(name).blocks
        if block.is_shell and block.needs is not None
        for command in _commands(block)
        for problem in _problems(command)
    ]
    assert not wrong, "\n".join(wrong)


def test_a_wrong_command_and_a_wrong_answer_are_found() -> None:
    wrong = (
        "make no-such-target",
        "python -m training.pipeline --no-such-option",
        "python -m training.nothing",
        "python tests/nothing.py",
        "docker build -f docker/Nothing .",
        "kubectl apply -k deploy/nothing",
        "helm install automr deploy/chart --set colour=red",
        "apt install everything",
    )
    for command in wrong:
        assert list(_problems(shlex.split(command))), command
    assert _difference({"a": 1}, {"a": 2.5}) is None
    assert _difference({"a": [{"b": 1}]}, {"a": [{"b": None}]}) is None
    assert _difference({UNLEARNED: [{}]}, {UNLEARNED: []}) is None
    for documented, real in (({"a": 1}, {}), ({"a": 1}, {"a": "1"}), ({"a": [1]}, {"a": []}), ({}, {"a": 1})):
        assert _difference(documented, real), (documented, real)


# ---- answers


def _last_json(text: str) -> Any:
    """The last of the JSON documents that stand one after the other; other text is skipped."""
    found, place = None, 0
    while (start := text.find("{", place)) >= 0:
        found, place = json.JSONDecoder().raw_decode(text, start)
    assert found is not None, f"no JSON in {text!r}"
    return found


def _difference(documented: Any, real: Any, where: str = "answer") -> str | None:
    """Where the shapes differ first. Null is equal to everything; a list stands for any number of elements."""
    if documented is None or real is None:
        return None
    if isinstance(documented, dict) and isinstance(real, dict):
        if documented.keys() != real.keys():
            return f"{where}: the documented fields {sorted(documented)} are not {sorted(real)}"
        pairs = ((documented[key], real[key], f"{where}.{key}") for key in documented)
        return next((found for pair in pairs if (found := _difference(*pair))), None)
    if isinstance(documented, list) and isinstance(real, list):
        if documented and not real and not where.endswith(f".{UNLEARNED}"):
            return f"{where}: is empty"
        elements = ((*pair, f"{where}[]") for pair in zip(documented, real, strict=False))
        return next((found for each in elements if (found := _difference(*each))), None)
    return None if _kind(documented) == _kind(real) else f"{where}: {_kind(documented)} is not {_kind(real)}"


def _kind(value: Any) -> str:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return "number" if is_number else type(value).__name__


# ---- commands that are not run


def _commands(block: Block) -> list[list[str]]:
    """Words of each command."""
    lines = block.script.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def _problems(words: list[str]) -> Iterator[str]:
    """What a command names and does not exist."""
    while words and (_ASSIGNMENT.match(words[0]) or words[0] == "export"):
        words = words[1:]
    shown = " ".join(words)
    match words:
        case [] | ["kubectl", "create", *_] | ["kubectl", "apply", "-f", _]:
            pass
        case ["make", target, *variables]:
            dry_run = ["make", "-n", target, *variables]
            asked = subprocess.run(dry_run, check=False, cwd=ROOT, capture_output=True, text=True)
            if asked.returncode:
                yield f"{shown}: {asked.stderr}"
        case ["python", "-m", "service", ("bundles" | "keys") as command, action, *arguments]:
            yield from _unknown_options("service.__main__", (command, action), arguments)
        case ["python", "-m", "service", command, *arguments]:
            yield from _unknown_options("service.__main__", (command,), arguments)
        case ["python", "-m", "training.evaluate", "--task", "query", *arguments]:
            yield from _unknown_options("training.evaluate_words", (), arguments)
        case ["python", "-m", module, *arguments]:
            yield from _unknown_options(module, (), arguments)
        case ["python", script, *arguments] if script.endswith(".py"):
            missing = list(_missing(ROOT / script))
            yield from missing or _unknown_options(script[:-3].replace("/", "."), (), arguments)
        case ["docker", "build", "-f", file, *_]:
            yield from _missing(ROOT / file)
        case ["docker", "compose", "up", *_]:
            for image in _yaml(ROOT / "docker-compose.yml")["services"].values():
                yield from _missing(ROOT / image.get("build", {}).get("dockerfile", "."))
        case ["kubectl", "apply", "-k", directory]:
            kustomization = ROOT / directory / "kustomization.yaml"
            yield from _missing(kustomization)
            for resource in _yaml(kustomization)["resources"] if kustomization.is_file() else []:
                yield from _missing(kustomization.with_name(resource))
        case ["helm", "install", _, directory, *options]:
            values = ROOT / directory / "values.yaml"
            yield from _missing(values) if not values.is_file() else _unknown_values(_yaml(values), options)
        case _:
            yield f"{shown}: the test does not know this program"


def _missing(path: Path) -> Iterator[str]:
    if not path.exists():
        yield f"{path} does not exist"


def _unknown_values(values: Any, options: list[str]) -> Iterator[str]:
    for name in (option.split("=")[0] for option in options if option != "--set"):
        known = values
        for part in name.split("."):
            known = known.get(part) if isinstance(known, dict) else None
        if known is None:
            yield f"helm: the chart has no value {name}"


def _yaml(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def _unknown_options(module: str, command: tuple[str, ...], arguments: list[str]) -> Iterator[str]:
    try:
        known = _help(module, command)
    except ImportError as error:
        yield f"python -m {module}: {error}"
        return
    for word in arguments:
        if word.startswith("--") and not re.search(rf"{re.escape(word)}\b", known):
            yield f"python -m {module}: there is no option {word}"


@cache
def _help(module: str, command: tuple[str, ...]) -> str:
    program: Any = importlib.import_module(module)
    with contextlib.redirect_stdout(io.StringIO()) as printed, pytest.raises(SystemExit) as ended:
        program.main([*command, "--help"])
    assert ended.value.code == 0, f"python -m {module} {' '.join(command)} --help fails"
    return printed.getvalue()
