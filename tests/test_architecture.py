"""Which module may import which, where heavy libraries may be used, and how large things may grow.

Reads the source files as syntax trees and gives a sentence for each violation. Nothing is imported, so a broken module
is still checked. Each checker is also tried on a small tree with a planted violation, because a checker that finds
nothing proves nothing by itself.
"""

import ast
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("automr", "service", "model_store", "training")

# A module within KEY imports nothing within VALUES.
FORBIDDEN = {
    "automr": ("service", "model_store", "training", "pydantic", "fastapi"),
    "model_store": ("service", "training", "fastapi", "starlette", "redis", "prometheus_client", "peft"),
    "service": ("automr", "training", "peft"),
    "training": ("service", "fastapi", "starlette", "redis"),
    "service.usecases": ("fastapi", "starlette", "uvicorn", "service.http"),
}
# A room is a sub-package, or a module directly below a package. KEY imports only VALUES of its own package.
ARROWS = {
    "model_store.memory": "errors",
    "model_store.manifest": "memory",
    "model_store.text": "errors manifest",
    "model_store.lm": "errors manifest text",
    "model_store.beams": "lm memory",
    "model_store.catalogue": "beams errors text",
    "model_store.answers": "catalogue",
    "model_store.event_types": "errors",
    "model_store.files": "errors manifest text",
    "model_store.signature": "errors files",
    "model_store.view": "catalogue errors event_types files manifest memory text",
    "model_store.voices": "answers errors manifest",
    "model_store.words": "errors grounding",
    "model_store.reasoner": "errors words",
    "model_store.bundle": "catalogue errors event_types files grounding lm manifest memory reasoner text view voices "
    "words",
    "model_store.related": "answers bundle",
    "model_store.inference": "answers beams bundle lm memory text voices",
    "service.tracing": "errors",
    "service.store": "ending errors logs tracing",
    "service.engine": "ending errors identity logs metrics settings tracing",
    "service.usecases": "background ending engine errors logs metrics store tracing",
    "service.bundles": "background ending engine errors garbage logs metrics settings store usecases",
    "service.export": "errors store",
    "service.event_types": "background ending errors logs store",
    "service.erasure": "background ending errors logs metrics store tracing",
    "service.feedback": "background ending errors identity logs metrics store usecases",
    "service.resources": "bundles ending engine erasure errors event_types feedback metrics settings store usecases",
    "service.identity": "background ending errors logs metrics store",
    "service.doctor": "engine errors identity metrics resources server settings store",
    "service.settings": "errors identity",
    "service.http": "background bundles ending erasure errors feedback identity logs metrics resources settings store "
    "tracing usecases",
    "training.run": "data",
    "training.items": "data run",
    "training.lm": "data items run",
    "training.memory": "data items lm run",
    "training.words": "data items run",
    "training.reasoning": "data items lm run words",
    "training.rows": "data items lm memory run",
    "training.report": "data items lm memory rows run",
    "training.studies": "data items lm memory pipeline report rows run",
}
HTTP_EDGE = ("service.app", "service.http", "service.server")
# A heavy library, and the only modules that import it.
IMPORTERS = {
    "faiss": ("model_store.grounding", "training.studies.collective"),
    "redis": ("service.store.connection", "service.store.servers"),
    "fastapi": HTTP_EDGE,
    "starlette": HTTP_EDGE,
    "uvicorn": HTTP_EDGE,
    "prometheus_client": ("service.metrics",),
    "opentelemetry": ("service.tracing.export",),
    "sklearn": ("training.items", "training.rows.plus.boosted", "training.words"),
}
# The server needs no torch: only the modules of the model's process import it, directly or through modules of ours.
HEAVY = ("torch", "transformers", "faiss")
WITH_TORCH = ("service.engine.model", "service.engine.knowledge", "service.engine.words")
ENVIRONMENT_READERS = ("service.settings", "service.__main__", "training.run.program")  # the last sets one, for torch
ENVIRONMENT = ("os.environ", "os.environb", "os.getenv", "os.putenv", "os.unsetenv")
UNPICKLERS = ("pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "torch.load")
MAX_FILE_LINES = 400
GENERATED = ("automr.models", "automr.synchronous")
MAX_FILES_IN_A_ROOM = 15
MAX_FUNCTION_LINES_MEDIAN, MAX_FUNCTION_LINES_P90 = 8, 25


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
    def targets_at_run_time(self) -> set[str]:
        """Without the imports under `if TYPE_CHECKING`."""
        typing_only = {
            id(node)
            for block in ast.walk(self.tree)
            if isinstance(block, ast.If) and isinstance(block.test, ast.Name) and block.test.id == "TYPE_CHECKING"
            for part in block.body
            for node in ast.walk(part)
        }
        nodes = (node for node in ast.walk(self.tree) if id(node) not in typing_only)
        return {target for node in nodes for _, _, target in self._imports_of(node)}

    @cached_property
    def room(self) -> str:
        """The sub-package, or the module itself if it stands directly below a package."""
        parts = self.name.split(".")
        return ".".join(parts[:2]) if len(parts) > 2 or self.path.name == "__init__.py" else self.name

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


@cache  # each file is parsed once for all checkers
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


def library_imports(tree: Iterable[Module]) -> Iterator[str]:
    for module in tree:
        for library, importers in IMPORTERS.items():
            is_importer = any(within(module.name, importer) for importer in importers)
            if not is_importer and any(within(target, library) for target in module.targets):
                yield f"{module.name} imports {library}, which only these import: {', '.join(importers)}"


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


def wrong_arrows(tree: Iterable[Module]) -> Iterator[str]:
    for module in tree:
        if module.room in ARROWS:
            package = module.room.partition(".")[0]
            allowed = [f"{package}.{name}" for name in ARROWS[module.room].split()] + [module.room]
            for target in sorted(module.targets):
                if within(target, package) and not any(within(target, name) for name in allowed):
                    yield f"{module.name} imports {target}, but {module.room} may import {ARROWS[module.room]}"


def room_cycles(tree: Iterable[Module]) -> Iterator[str]:
    tree = list(tree)
    rooms = {module.name: module.room for module in tree}
    graph: dict[str, set[str]] = {}
    for name, targets in import_graph(tree).items():
        graph.setdefault(rooms[name], set()).update({rooms[target] for target in targets} - {rooms[name]})
    for room in sorted(graph):
        way = path_between(graph, room, room)
        if way and room == min(way):
            yield f"cycle of rooms: {' -> '.join(way)}"


def torch_in_the_server(tree: Iterable[Module]) -> Iterator[str]:
    tree = list(tree)
    known = {module.name for module in tree}
    graph = {m.name: {own for t in m.targets_at_run_time if (own := longest(t, known))} for m in tree}
    heavy = {m.name for m in tree if any(within(target, lib) for target in m.targets_at_run_time for lib in HEAVY)}
    for module in sorted(name for name in graph if within(name, "service") and name not in WITH_TORCH):
        if module in heavy:
            yield f"{module} imports torch"
        ways = [way for name in sorted(heavy - {module}) if (way := path_between(graph, module, name))]
        if ways:
            yield f"{module} reaches torch: {' -> '.join(sorted(ways, key=len)[0])}"


def rooms_without_a_paragraph(tree: Iterable[Module]) -> Iterator[str]:
    for module in tree:
        if module.path.name == "__init__.py":
            if not ast.get_docstring(module.tree):
                yield f"{module.name} does not say what lives in it"
            if len(module.tree.body) > 1:
                yield f"{module.name} has code in its __init__.py"


def names_after_the_start(tree: Iterable[Module]) -> Iterator[str]:
    """A program runs where `if __name__ == "__main__"` stands: what is defined below it does not exist then."""
    for module in tree:
        starts = [place for place, node in enumerate(module.tree.body) if is_start(node)]
        if starts and starts[0] < len(module.tree.body) - 1:
            yield f"{module.name} defines something after its start"


def is_start(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"


def crowded_rooms(tree: Iterable[Module]) -> Iterator[str]:
    for folder, count in Counter(module.path.parent for module in tree if module.path.name != "__init__.py").items():
        if count > MAX_FILES_IN_A_ROOM:
            yield f"{folder.name} has {count} files, more than {MAX_FILES_IN_A_ROOM}"


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
        if lines > MAX_FILE_LINES and module.name not in GENERATED:
            yield f"{module.name} has {lines} lines, more than {MAX_FILE_LINES}"


def long_functions(tree: Iterable[Module]) -> Iterator[str]:
    sizes = sorted(size for module in tree for size in function_sizes(module.tree))
    if sizes and (p90 := sizes[int(len(sizes) * 0.9)]) > MAX_FUNCTION_LINES_P90:
        yield f"a tenth of the functions have {p90} lines or more; the limit is {MAX_FUNCTION_LINES_P90}"
    if sizes and (median := sizes[len(sizes) // 2]) > MAX_FUNCTION_LINES_MEDIAN:
        yield f"half of the functions have {median} lines or more; the limit is {MAX_FUNCTION_LINES_MEDIAN}"


def function_sizes(tree: ast.Module) -> Iterator[int]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield (node.end_lineno or node.lineno) - node.lineno + 1


Checker = Callable[[Iterable[Module]], Iterator[str]]
CHECKERS: list[Checker] = [
    forbidden_imports, wrong_arrows, library_imports, import_cycles, room_cycles, torch_in_the_server,
    environment_reads, unpickling, import_effects, rooms_without_a_paragraph, crowded_rooms, long_files, long_functions,
    names_after_the_start,
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
TORCH_BEHIND = {"service/app.py": "from model_store.lm import A", "model_store/lm.py": "import torch"}
TORCH_TYPE = {"service/app.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch"}
ROOM_CYCLE = {
    "service/store/a.py": "from service.extra.b import x",
    "service/extra/b.py": "",
    "service/extra/c.py": "from service.store import d",
    "service/store/d.py": "",
}
OPEN_SETTINGS = {"service/settings.py": "import os\nx = os.environ", "service/a.py": "import os"}
LOAD = "import torch as t\ndef f(p):\n    return t.load(p)"
NUMPY_LOAD = "import numpy\nx = numpy.load('x', allow_pickle={})"
PLANTED = [
    (forbidden_imports, {"service/app.py": "import training.sft"}, "service.app imports training.sft"),
    (forbidden_imports, {"model_store/a.py": "def f():\n    from peft import PeftModel"}, "peft"),
    (forbidden_imports, {"training/sft.py": "from service.store.client import Event"}, "service.store.client"),
    (forbidden_imports, {"service/usecases/items.py": "import fastapi.routing as r"}, "imports fastapi.routing"),
    (forbidden_imports, {"training/a.py": "import services, redistribute"}, None),
    (library_imports, {"service/items.py": "import faiss"}, "which only these import: model_store.grounding"),
    (library_imports, {"service/ingest.py": "from redis.asyncio import Redis"}, "imports redis"),
    (library_imports, {"service/http/a.py": "import fastapi", "service/store/connection.py": "import redis"}, None),
    (import_cycles, LATE_CYCLE, "cycle: service.a -> service.b -> service.c -> service.a"),
    (import_cycles, PACKAGE_CYCLE, "cycle: service -> service.a -> service"),
    (import_cycles, {"service/a.py": "from service.b import x", "service/b.py": "import os"}, None),
    (torch_in_the_server, {"service/engine/batching.py": "import torch"}, "service.engine.batching imports torch"),
    (torch_in_the_server, TORCH_BEHIND, "service.app reaches torch: service.app -> model_store.lm"),
    (torch_in_the_server, {"service/engine/model.py": "import torch", "training/a.py": "import torch"}, None),
    (torch_in_the_server, TORCH_TYPE, None),
    (wrong_arrows, {"service/store/a.py": "from service.engine import b"}, "service.store may import ending errors"),
    (wrong_arrows, {"model_store/text/a.py": "from model_store.text.b import c\nimport model_store.errors"}, None),
    (wrong_arrows, {"training/run/a.py": "def f():\n    from training.rows import b"}, "training.rows.b"),
    (room_cycles, ROOM_CYCLE, "cycle of rooms: service.extra -> service.store -> service.extra"),
    (room_cycles, {"service/store/a.py": "from service.store import b", "service/store/b.py": ""}, None),
    (rooms_without_a_paragraph, {"service/a/__init__.py": ""}, "service.a does not say"),
    (rooms_without_a_paragraph, {"service/a/__init__.py": '"""A."""\nimport os'}, "has code"),
    (rooms_without_a_paragraph, {"service/a/__init__.py": '"""A."""'}, None),
    (crowded_rooms, {f"service/a/m{number}.py": "" for number in range(16)}, "a has 16 files"),
    (crowded_rooms, {f"service/a/m{number}.py": "" for number in range(15)}, None),
    (names_after_the_start, {"service/a.py": "if __name__ == '__main__':\n    f()\ndef f(): ..."}, "after its start"),
    (names_after_the_start, {"service/a.py": "def f(): ...\nif __name__ == '__main__':\n    f()"}, None),
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
    (long_files, {"service/a.py": "x = 1\n" * (MAX_FILE_LINES + 1)}, "has 401 lines"),
    (long_files, {"service/a.py": "x = 1\n" * MAX_FILE_LINES}, None),
    (long_functions, {"service/a.py": LONG_FUNCTION + "\n" + "def g(): ...\n" * 5}, "have 26 lines or more"),
    (long_functions, {"service/a.py": ("def f():\n" + "    x = 1\n" * 9) * 3}, "have 10 lines or more"),
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
