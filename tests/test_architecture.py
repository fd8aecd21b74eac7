"""The import contract: layers run one way, there is no circle, and no string names a module of a higher layer.

Read from the source by `ast`, so that imports inside functions and under TYPE_CHECKING count too. The library
import-linter has contracts of layers, but neither sees module names in strings nor takes a folder without __init__.py
(bench/), and needs the project imported from its path: this file is shorter than what would be left to write beside it.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from tests.helpers import ROOT

PACKAGES = ("pipeline", "launch", "data_prep", "bench", "tests")

# Lowest first. A module imports from its own group and from lower layers alone. A layer has one or several groups, one a
# line, which do not import from one another. `a.b` is that module, `a.b.*` the package a.b and
# all in it that no other line names.
LAYERS: dict[str, list[str]] = {
    "foundations": [
        "pipeline pipeline.signals pipeline.command pipeline.files pipeline.cores",
    ],
    "format": [
        "pipeline.data.dataset",
    ],
    "process": [
        "pipeline.watchdog pipeline.lease pipeline.world",
    ],
    "parts": [
        "pipeline.data.*",
        "pipeline.models.*",
        "pipeline.training.*",
        "pipeline.tracking.*",
        "pipeline.analysis pipeline.analysis.figures",
    ],
    "runs and scores": [
        "pipeline.config pipeline.scaling pipeline.options pipeline.run_folder pipeline.summary",
        "pipeline.evaluation pipeline.evaluation.inference pipeline.evaluation.definitions pipeline.evaluation.partial"
        " pipeline.evaluation.protocols pipeline.evaluation.scores pipeline.evaluation.ensemble"
        " pipeline.evaluation.mistakes pipeline.evaluation.submission pipeline.evaluation.exporting"
        " pipeline.evaluation.registry",
    ],
    "trained nets": [
        "pipeline.trainer",
        "pipeline.evaluation.nets pipeline.evaluation.datasets pipeline.evaluation.foreign pipeline.evaluation.options"
        " pipeline.evaluation.score_files pipeline.evaluation.members pipeline.evaluation.model_card",
        "pipeline.analysis.responses",
        "pipeline.analysis.runs",
    ],
    "commands": [
        "pipeline.train",
        "pipeline.evaluate",
        "pipeline.ensemble",
        "pipeline.submit",
        "pipeline.mistakes",
        "pipeline.export",
        "pipeline.responses",
        "pipeline.curves",
    ],
    "experiments": [
        "pipeline.experiments.*",
    ],
    "the paper's tables": [
        "pipeline.experiment",
        "pipeline.report pipeline.analysis.page pipeline.analysis.panels pipeline.analysis.paper"
        " pipeline.analysis.records pipeline.analysis.results",
    ],
    "launchers and preparation": [
        "launch.*",
        "data_prep.*",
    ],
    "benchmarks": [
        "bench.*",
    ],
    "tests": [
        "tests.*",
    ],
}

# Groups that import from fewer layers than lie below them.
ONLY: dict[str, tuple[str, ...]] = {
    "data_prep.*": ("foundations", "format"),  # preparing data takes no torch
}

_MOVES = "to do: pipeline/experiments belongs above launch/"
EXCEPTIONS: dict[tuple[str, str], str] = {  # (module, what it names): why it may
    ("pipeline.experiments.launching", "launch.local"): _MOVES,
    ("pipeline.experiments.launching", "launch.slurm"): _MOVES,
    ("pipeline.experiments.launching", "launch.ray_train"): _MOVES,
    ("pipeline.experiments.runner", "launch.slurm_command"): _MOVES,
    ("pipeline.experiments.runner", "launch.status"): _MOVES,
    (
        "bench.pixels",
        "tests.pipeline.data.pillow_reference",
    ): "the Pillow reference moves to bench/, tests import it there",
}


class Use(NamedTuple):
    """A place where one module names another; `verb`: imports, or names in a string."""

    file: str
    line: int
    importer: str
    imported: str
    verb: str


class Source:
    """The modules below `root`: their files and where they name one another."""

    def __init__(self, root: Path, packages: Iterable[str]) -> None:
        files = [file for package in packages for file in sorted((root / package).rglob("*.py"))]
        self.root, self.files = root, {_module_name(file.relative_to(root)): file for file in files}
        self.packages = {name.rpartition(".")[0] for name in self.files} - {""}

    @cached_property
    def uses(self) -> list[Use]:
        """File by file, line by line."""
        return [use for module, file in self.files.items() for use in sorted(self._uses_of(module, file))]

    def _uses_of(self, module: str, file: Path) -> Iterator[Use]:
        place = str(file.relative_to(self.root))
        tree = ast.parse(file.read_text(), place)
        prose = set(_docstrings(tree))
        for node in ast.walk(tree):
            if isinstance(node, ast.Import | ast.ImportFrom):
                for name in self._imported(node, module, is_package=file.name == "__init__.py"):
                    yield Use(place, node.lineno, module, name, "imports")
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in prose:
                for name in self._named(node.value):
                    yield Use(place, node.lineno, module, name, "names in a string")

    def _imported(self, node: ast.Import | ast.ImportFrom, module: str, is_package: bool) -> Iterator[str]:
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            parents = module.split(".") if is_package else module.split(".")[:-1]
            above = parents[: len(parents) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            names = [f"{base}.{alias.name}" for alias in node.names]
        for name in names:
            if found := self._longest(name):
                yield found

    def _longest(self, name: str) -> str | None:
        """The module that `import name` or `from module import name` reaches, None for a library's."""
        while name and name not in self.files:
            name = name.rpartition(".")[0]
        return name or None

    def _named(self, text: str) -> Iterator[str]:
        """Modules that a string names to a program: alone, as a file's path, as module:function, or behind -m.

        `python -m a.b` in a sentence is advice to people. A string 'a.' begins a name that is put together.
        """
        if text.endswith(".") and text[:-1] in self.packages:
            yield text[:-1]
        names = re.findall(r"(?<!python )(?<!\w)-m ([\w.]+)", text)
        if re.fullmatch(r"[\w./]+\.py", text):
            names.append(text.removesuffix(".py").replace("/", "."))
        elif whole := re.fullmatch(r"([\w.]+)(:[\w.]+)?", text):
            names.append(whole[1])
        for name in names:
            if "." in (found := self._longest(name) or ""):
                yield found


def _module_name(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _docstrings(tree: ast.Module) -> Iterator[ast.AST]:
    """String constants that are statements of their own."""
    return (node.value for node in ast.walk(tree) if isinstance(node, ast.Expr))


class Contract:
    """LAYERS, looked up by module."""

    def __init__(self, layers: Mapping[str, list[str]], only: Mapping[str, tuple[str, ...]]) -> None:
        self.only, self.names = only, list(layers)
        groups = [(layer, group.split()) for layer, groups in layers.items() for group in groups]
        self.entries = [(entry, layer, group[0]) for layer, group in groups for entry in group]

    def place(self, module: str) -> tuple[str, str] | None:
        """(layer, the first entry of its group), None where no line of the table names the module."""
        matching = [(layer, group) for entry, layer, group in self.entries if entry == module]
        package = module
        while not matching and package:
            matching = [(layer, group) for entry, layer, group in self.entries if entry == f"{package}.*"]
            package = package.rpartition(".")[0]
        return matching[0] if matching else None

    def faults_of_table(self, modules: Iterable[str]) -> Iterator[str]:
        modules = list(modules)
        for module in modules:
            if self.place(module) is None:
                yield f"{module} is in no layer: name it in LAYERS of tests/test_architecture.py"
        names = [entry for entry, _, _ in self.entries]
        for entry in sorted(set(names)):
            if names.count(entry) > 1:
                yield f"LAYERS names {entry} {names.count(entry)} times: once is right"
            package = entry.removesuffix(".*")
            if package not in modules and not any(module.startswith(f"{package}.") for module in modules):
                yield f"LAYERS names {entry}, which is no longer there: take it out"

    def fault(self, use: Use) -> str | None:
        """A sentence where this use runs against the layers."""
        here, there = self.place(use.importer), self.place(use.imported)
        if here is None or there is None or here == there:
            return None
        below = self.names.index(there[0]) < self.names.index(here[0])
        allowed = self.only.get(here[1], self.names)
        if below and there[0] in allowed:
            return None
        if below:
            why = f"{here[1]} takes from {' and '.join(repr(one) for one in allowed)} alone"
        elif use.verb != "imports" and here[0] == there[0]:
            return None  # commands of one layer may start one another
        else:
            why = "which stands beside it" if here[0] == there[0] else "which is above it"
        return f"{use.file}:{use.line}, in the layer '{here[0]}', {use.verb} {use.imported} of the layer '{there[0]}': {why}"


def broken(source: Source, contract: Contract, exceptions: Mapping[tuple[str, str], str]) -> list[str]:
    """A sentence for each use that runs against the layers, and for each exception that is not needed."""
    faults = {use: fault for use in source.uses if (fault := contract.fault(use))}
    needed = {(use.importer, use.imported) for use in faults}
    stale = [
        f"EXCEPTIONS lets {importer} name {imported}, which it does not, or may: take the line out"
        for importer, imported in exceptions
        if (importer, imported) not in needed
    ]
    return [fault for use, fault in faults.items() if (use.importer, use.imported) not in exceptions] + stale


def circles(source: Source) -> list[str]:
    """The circles of imports that a walk along them meets, as `a -> b -> a`, the shortest first."""
    graph: dict[str, list[str]] = {module: [] for module in source.files}
    for use in source.uses:
        if use.verb == "imports" and use.imported != use.importer:
            graph[use.importer].append(use.imported)
    found: list[str] = []
    done: set[str] = set()

    def walk(module: str, path: list[str]) -> None:
        if module in path:
            found.append(" -> ".join([*path[path.index(module) :], module]))
        elif module not in done:
            for imported in graph[module]:
                walk(imported, [*path, module])
            done.add(module)

    for module in graph:
        walk(module, [])
    return sorted(set(found), key=len)


def sentences(faults: Iterable[str]) -> str:
    return "\n".join(faults)


SOURCE = Source(ROOT, PACKAGES)
CONTRACT = Contract(LAYERS, ONLY)


def test_every_module_is_in_one_layer() -> None:
    faults = list(CONTRACT.faults_of_table(SOURCE.files))
    assert not faults, sentences(faults)
    assert not (missing := set(ONLY) - {group for _, _, group in CONTRACT.entries}), f"ONLY names no group: {missing}"


def test_layers_run_one_way() -> None:
    faults = broken(SOURCE, CONTRACT, EXCEPTIONS)
    assert not faults, sentences(faults)


def test_no_circle() -> None:
    assert not (found := circles(SOURCE)), sentences(f"modules import one another: {circle}" for circle in found[:5])


# The checker itself, on trees made up for it.


SMALL: dict[str, list[str]] = {
    "low": ["app app.base"],
    "middle": ["app.left.*", "app.right"],
    "high": ["doors.*", "tools.*"],
}


def tree(folder: Path, files: Mapping[str, str]) -> Source:
    for name, text in {"app/__init__.py": "", "app/base.py": "", "app/left/__init__.py": "", **files}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return Source(folder, ["app", "doors", "tools"])


def faults_of(folder: Path, files: Mapping[str, str], only: Mapping[str, tuple[str, ...]] | None = None) -> list[str]:
    """What the checker says of a small tree with the layers SMALL."""
    usual = {"app/right.py": "", "doors/local.py": "", "tools/plan.py": ""}
    return broken(tree(folder, {**usual, **files}), Contract(SMALL, only or {}), {})


def test_downwards_and_within_a_room_is_fine(tmp_path: Path) -> None:
    files = {
        "app/left/a.py": "from app.base import x\nfrom . import b\nfrom .b import y\nimport torch",
        "app/left/b.py": "import app",
        "doors/local.py": "import app.left.a\nfrom app import right\nfrom doors import slurm",
        "doors/slurm.py": "COMMAND = ['-m', 'app.right']",
    }
    assert faults_of(tmp_path, files) == []


def test_an_import_upwards_is_found_wherever_it_stands(tmp_path: Path) -> None:
    text = (
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n"
        "    from doors.local import run\n"
        "def f():\n"
        "    from doors import local as door\n"
        "    import doors.local\n"
        "    from ..left import a\n"
    )
    found = faults_of(tmp_path, {"app/base.py": text.replace("..left", ".left"), "app/left/a.py": ""})
    assert found == [
        "app/base.py:3, in the layer 'low', imports doors.local of the layer 'high': which is above it",
        "app/base.py:5, in the layer 'low', imports doors.local of the layer 'high': which is above it",
        "app/base.py:6, in the layer 'low', imports doors.local of the layer 'high': which is above it",
        "app/base.py:7, in the layer 'low', imports app.left.a of the layer 'middle': which is above it",
    ]


def test_an_import_of_the_room_beside_is_found(tmp_path: Path) -> None:
    found = faults_of(tmp_path, {"app/left/a.py": "from ..right import x"})
    assert found == [
        "app/left/a.py:1, in the layer 'middle', imports app.right of the layer 'middle': which stands beside it"
    ]


def test_a_room_of_few_needs_is_held_to_them(tmp_path: Path) -> None:
    files = {"tools/plan.py": "import app.base, app.right"}
    (found,) = faults_of(tmp_path, files, {"tools.*": ("low",)})
    assert found.endswith("imports app.right of the layer 'middle': tools.* takes from 'low' alone")


def test_a_name_in_a_string_is_found(tmp_path: Path) -> None:
    text = (
        '"""Started by doors.local."""\n'
        "MODULES = {'local': 'doors.local'}\n"
        "SHELL = f'{PYTHON} -m doors.local --procs 2'\n"
        "FILE = ['doors/local.py']\n"
        "ENTRY = 'doors.local:run'\n"
        "DOTTED = 'doors.local.run'\n"
        "PUT_TOGETHER = f'doors.{name}'\n"
        "ADVICE = 'train first, with python -m doors.local or doors/local.py'\n"
    )
    found = faults_of(tmp_path, {"app/base.py": text})
    assert [re.sub(r"^app/base.py:(\d+), .*, names in a string (\S+) of .*$", r"\1 \2", one) for one in found] == [
        "2 doors.local", "3 doors.local", "4 doors.local", "5 doors.local", "6 doors.local", "7 doors",
    ]  # fmt: skip


def test_exceptions_are_let_through_while_they_are_needed(tmp_path: Path) -> None:
    source = tree(tmp_path, {"app/right.py": "import doors.local", "doors/local.py": "", "tools/plan.py": ""})
    needed, stale = ("app.right", "doors.local"), ("app.base", "doors.local")
    assert broken(source, Contract(SMALL, {}), {needed: "why"}) == []
    (found,) = broken(source, Contract(SMALL, {}), {needed: "why", stale: "why"})
    assert found == "EXCEPTIONS lets app.base name doors.local, which it does not, or may: take the line out"


def test_the_table_names_each_module_once(tmp_path: Path) -> None:
    source = tree(tmp_path, {"app/new.py": "", "doors/local.py": ""})
    faults = list(Contract({**SMALL, "twice": ["app.base"]}, {}).faults_of_table(source.files))
    assert faults == [
        "app.new is in no layer: name it in LAYERS of tests/test_architecture.py",
        "LAYERS names app.base 2 times: once is right",
        "LAYERS names app.right, which is no longer there: take it out",
        "LAYERS names tools.*, which is no longer there: take it out",
    ]


def test_a_circle_is_found(tmp_path: Path) -> None:
    files = {
        "app/left/a.py": "from app.left import b",
        "app/left/b.py": "def f():\n    import app.left.c",
        "app/left/c.py": "import app.left.a",
    }
    assert circles(tree(tmp_path, files)) == ["app.left.a -> app.left.b -> app.left.c -> app.left.a"]
