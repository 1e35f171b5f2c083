"""Who may import whom, which doors heavy libraries have, how big things may grow: read from the syntax trees.

In: the source files. Out: sentences, one for each violation. Nothing is imported, so a broken module is still
judged. Each checker is also tried on a small tree with planted violations: else its silence proves nothing.
"""

import ast
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("service", "model_store", "training")

# A module within KEY imports nothing within VALUES.
FORBIDDEN = {
    "model_store": ("service", "training", "fastapi", "starlette", "redis", "prometheus_client", "peft"),
    "service": ("training", "peft"),
    "training": ("service", "fastapi", "starlette", "redis"),
    "service.http.routes": ("torch", "transformers", "faiss"),
    "service.usecases.recommend": ("fastapi", "starlette"),
}
HTTP_EDGE = ("service.app", "service.http", "service.server")
# A heavy library, and the only modules that import it.
DOORS = {
    "faiss": ("model_store.grounding",),
    "redis": ("service.store.client",),
    "fastapi": HTTP_EDGE,
    "starlette": HTTP_EDGE,
    "prometheus_client": ("service.metrics",),
}
# Policy is tested in milliseconds: these reach torch neither directly nor through modules of ours.
HEAVY = ("torch", "transformers")
TORCH_FREE = ("service.engine.batching", "service.store.client", "service.http.schemas", "service.settings")
ENVIRONMENT_READERS = ("service.settings", "service.__main__", "training.run.program")  # the last sets one, for torch
ENVIRONMENT = ("os.environ", "os.environb", "os.getenv", "os.putenv", "os.unsetenv")
UNPICKLERS = ("pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "torch.load")
MAX_FILE_LINES = 300
MAX_FUNCTION_LINES_P90 = 40


def within(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(f"{prefix}.")


@dataclass(frozen=True)
class Module:
    name: str  # dotted; a package goes by its own name
    path: Path

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.path.read_text(encoding="utf-8"), str(self.path))

    @cached_property
    def imports(self) -> list[tuple[str, str, str]]:
        """(local name, what it is bound to, what is imported), in functions and under TYPE_CHECKING too."""
        return [found for node in ast.walk(self.tree) for found in self._imports_of(node)]

    @cached_property
    def targets(self) -> set[str]:
        return {target for _, _, target in self.imports}

    @cached_property
    def used(self) -> set[str]:
        """Every name reached through an import, spelt out: `import torch as t; t.load` uses `torch.load`."""
        bound = {local: full for local, full, _ in self.imports}
        chains = (dotted(node) for node in ast.walk(self.tree) if isinstance(node, ast.Attribute))
        parts = (chain.partition(".") for chain in chains if chain)
        return self.targets | {f"{bound[head]}.{rest}" for head, _, rest in parts if head in bound}

    def _imports_of(self, node: ast.AST) -> Iterator[tuple[str, str, str]]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                head = alias.name.partition(".")[0]  # `import a.b` binds `a`, `import a.b as c` binds `a.b`
                yield (alias.asname, alias.name, alias.name) if alias.asname else (head, head, alias.name)
        elif isinstance(node, ast.ImportFrom):
            stem = ".".join([*self._base(node.level), *([node.module] if node.module else [])])
            for alias in node.names:
                yield alias.asname or alias.name, f"{stem}.{alias.name}", f"{stem}.{alias.name}"

    def _base(self, level: int) -> list[str]:
        if level == 0:
            return []
        parents = self.name.split(".") if self.path.name == "__init__.py" else self.name.split(".")[:-1]
        return parents[: len(parents) - level + 1]


def dotted(node: ast.expr) -> str:
    """`a.b.c` of an attribute chain; "" when it starts at something other than a name."""
    if isinstance(node, ast.Name):
        return node.id
    stem = dotted(node.value) if isinstance(node, ast.Attribute) else ""
    return f"{stem}.{node.attr}" if stem and isinstance(node, ast.Attribute) else ""


def modules(root: Path) -> list[Module]:
    paths = sorted(path for package in PACKAGES for path in (root / package).rglob("*.py"))
    return [Module(module_name(path.relative_to(root)), path) for path in paths]


def module_name(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def forbidden_imports(tree: Iterable[Module]) -> Iterator[str]:
    for module in tree:
        banned = {name for owner, names in FORBIDDEN.items() if within(module.name, owner) for name in names}
        for target in sorted(module.targets):
            yield from (f"{module.name} imports {target}" for name in sorted(banned) if within(target, name))


def closed_doors(tree: Iterable[Module]) -> Iterator[str]:
    for module in tree:
        for library, doors in DOORS.items():
            is_door = any(within(module.name, door) for door in doors)
            if not is_door and any(within(target, library) for target in module.targets):
                yield f"{module.name} imports {library}, whose doors are {', '.join(doors)}"


def import_graph(tree: Iterable[Module]) -> dict[str, set[str]]:
    """Module → modules of ours that it names in an import: the longest dotted prefix that is one."""
    tree = list(tree)
    known = {module.name for module in tree}
    return {module.name: {own for t in module.targets if (own := longest(t, known))} for module in tree}


def longest(target: str, known: set[str]) -> str | None:
    while target and target not in known:
        target = target.rpartition(".")[0]
    return target or None


def import_cycles(tree: Iterable[Module]) -> Iterator[str]:
    graph = import_graph(tree)
    for module in sorted(graph):
        way = path_between(graph, module, module)
        if way and module == min(way):  # a cycle is told once, by its first member
            yield f"cycle: {' -> '.join(way)}"


def path_between(graph: dict[str, set[str]], start: str, goal: str) -> list[str]:
    """A shortest way of at least one step, start and goal included; [] when there is none."""
    ways = [[start]]
    visited: set[str] = set()
    while ways:
        way = ways.pop(0)
        for step in sorted(graph.get(way[-1], set()) - visited):
            if step == goal:
                return [*way, goal]
            visited.add(step)
            ways.append([*way, step])
    return []


def torch_in_policy(tree: Iterable[Module]) -> Iterator[str]:
    tree = list(tree)
    graph = import_graph(tree)
    heavy = {m.name for m in tree if any(within(target, lib) for target in m.targets for lib in HEAVY)}
    for module in sorted(set(TORCH_FREE) & set(graph)):
        if module in heavy:
            yield f"{module} imports torch"
        ways = (path_between(graph, module, name) for name in sorted(heavy - {module}))
        yield from (f"{module} reaches torch: {' -> '.join(way)}" for way in ways if way)


def environment_reads(tree: Iterable[Module]) -> Iterator[str]:
    for module in tree:
        if module.name not in ENVIRONMENT_READERS:
            yield from (f"{module.name} uses {name}" for name in ENVIRONMENT if name in module.used)


def unpickling(tree: Iterable[Module]) -> Iterator[str]:
    for module in tree:
        for name in UNPICKLERS:
            if any(within(used, name) for used in module.used):
                yield f"{module.name} uses {name}"
        for node in ast.walk(module.tree):
            if isinstance(node, ast.keyword) and node.arg == "allow_pickle" and not is_false(node.value):
                yield f"{module.name}:{node.value.lineno} allows pickle"


def is_false(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is False


def import_effects(tree: Iterable[Module]) -> Iterator[str]:
    """Statements that act when a module is merely imported."""
    for module in tree:
        for node in module.tree.body:
            is_call = isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
            if is_call or isinstance(node, ast.For | ast.While | ast.With):
                yield f"{module.name}:{node.lineno} acts at import"


def long_files(tree: Iterable[Module]) -> Iterator[str]:
    for module in tree:
        lines = len(module.path.read_text(encoding="utf-8").splitlines())
        if lines > MAX_FILE_LINES:
            yield f"{module.name} has {lines} lines, more than {MAX_FILE_LINES}"


def long_functions(tree: Iterable[Module]) -> Iterator[str]:
    sizes = sorted(size for module in tree for size in function_sizes(module.tree))
    if sizes and (p90 := sizes[int(len(sizes) * 0.9)]) > MAX_FUNCTION_LINES_P90:
        yield f"a tenth of the functions have {p90} lines or more; the budget is {MAX_FUNCTION_LINES_P90}"


def function_sizes(tree: ast.Module) -> Iterator[int]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield (node.end_lineno or node.lineno) - node.lineno + 1


Checker = Callable[[Iterable[Module]], Iterator[str]]
CHECKERS: list[Checker] = [
    forbidden_imports, closed_doors, import_cycles, torch_in_policy, environment_reads, unpickling,
    import_effects, long_files, long_functions,
]  # fmt: skip


@pytest.mark.parametrize("checker", CHECKERS, ids=lambda checker: checker.__name__)
def test_the_source_obeys(checker: Checker) -> None:
    broken = list(checker(modules(ROOT)))
    assert not broken, "\n".join(broken)


LONG_FUNCTION = "def f():\n" + "    x = 1\n" * MAX_FUNCTION_LINES_P90
LATE_CYCLE = {
    "service/a.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from service.b import B",
    "service/b.py": "def late():\n    from . import c",
    "service/c.py": "from service import a",
}
PACKAGE_CYCLE = {"service/__init__.py": "from .a import x", "service/a.py": "from service import x"}
TORCH_BEHIND = {"service/store/client.py": "from model_store.lm import A", "model_store/lm.py": "import torch"}
OPEN_SETTINGS = {"service/settings.py": "import os\nx = os.environ", "service/a.py": "import os"}
LOAD = "import torch as t\ndef f(p):\n    return t.load(p)"
NUMPY_LOAD = "import numpy\nx = numpy.load('x', allow_pickle={})"
PLANTED = [
    (forbidden_imports, {"service/app.py": "import training.sft"}, "service.app imports training.sft"),
    (forbidden_imports, {"model_store/a.py": "def f():\n    from peft import PeftModel"}, "peft"),
    (forbidden_imports, {"training/sft.py": "from service.store.client import Event"}, "service.store.client"),
    (forbidden_imports, {"service/http/routes/items.py": "import torch.nn as nn"}, "imports torch.nn"),
    (forbidden_imports, {"training/a.py": "import services, redistribute"}, None),
    (closed_doors, {"service/items.py": "import faiss"}, "whose doors are model_store.grounding"),
    (closed_doors, {"service/ingest.py": "from redis.asyncio import Redis"}, "imports redis"),
    (closed_doors, {"service/http/a.py": "import fastapi", "service/store/client.py": "import redis"}, None),
    (import_cycles, LATE_CYCLE, "cycle: service.a -> service.b -> service.c -> service.a"),
    (import_cycles, PACKAGE_CYCLE, "cycle: service -> service.a -> service"),
    (import_cycles, {"service/a.py": "from service.b import x", "service/b.py": "import os"}, None),
    (torch_in_policy, {"service/engine/batching.py": "import torch"}, "service.engine.batching imports torch"),
    (torch_in_policy, TORCH_BEHIND, "service.store.client reaches torch: service.store.client -> model_store.lm"),
    (torch_in_policy, {"service/engine/engine.py": "import torch", "service/http/schemas.py": "import json"}, None),
    (environment_reads, {"training/sft.py": "import os\nx = os.environ['A']"}, "uses os.environ"),
    (environment_reads, {"service/app.py": "from os import getenv as g"}, "uses os.getenv"),
    (environment_reads, {"service/app.py": "import os.path\nx = os.getenv('A')"}, "uses os.getenv"),
    (environment_reads, OPEN_SETTINGS, None),
    (unpickling, {"model_store/bundle.py": LOAD}, "model_store.bundle uses torch.load"),
    (unpickling, {"training/a.py": "from pickle import loads"}, "training.a uses pickle"),
    (unpickling, {"training/a.py": NUMPY_LOAD.format(True)}, "training.a:2 allows pickle"),
    (unpickling, {"training/a.py": NUMPY_LOAD.format(False)}, None),
    (import_effects, {"service/a.py": '"""Doc."""\nprint("hello")'}, "service.a:2 acts at import"),
    (import_effects, {"service/a.py": 'if __name__ == "__main__":\n    raise SystemExit(0)'}, None),
    (long_files, {"service/a.py": "x = 1\n" * (MAX_FILE_LINES + 1)}, "has 301 lines"),
    (long_files, {"service/a.py": "x = 1\n" * MAX_FILE_LINES}, None),
    (long_functions, {"service/a.py": LONG_FUNCTION}, "have 41 lines or more"),
    (long_functions, {"service/a.py": LONG_FUNCTION + "\n" + "def g(): ...\n" * 20}, None),
]


@pytest.mark.parametrize(("checker", "files", "expected"), PLANTED)
def test_a_planted_violation_is_found_and_nothing_else(
    checker: Checker, files: dict[str, str], expected: str | None, tmp_path: Path
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    found = list(checker(modules(tmp_path)))
    assert len(found) == (0 if expected is None else 1), found
    assert expected is None or expected in found[0]
