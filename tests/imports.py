"""What modules of the project name one another, and whether that fits a table of layers.

Read from the source by `ast`, so that imports inside functions and under TYPE_CHECKING count too. The library
import-linter has contracts of layers, but neither sees module names in strings nor takes a folder without __init__.py
(bench/), and needs the project imported from its path: this file is shorter than what would be left to write beside it.

Strings are read one by one, with constants that `+` and `/` join. Not caught: names that a call joins
(".".join([...]), os.path.join(...), "{}.{}".format(...)), words of a command that a variable holds before another
joins them (FOLDER = "launchers"; FOLDER + ".local"), a package's bare name in a list or a mapping, and a module's name
without -m, python or a path before it in a longer sentence.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

# Calls whose strings people read: `python -m a.b` in them is advice.
ADVISERS = ("UserError", "print", "parser", "CommandParser", "Meaning", "Opening")
ADVICE = ("help", "description", "epilog", "usage")  # arguments of argparse that people read


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

    def _uses_of(self, module: str, file: Path) -> set[Use]:
        place = str(file.relative_to(self.root))
        tree = ast.parse(file.read_text(), place)
        prose, advice = set(_docstrings(tree)), set(_advice(tree))
        found: set[Use] = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names, verb = self._imported(node, module, is_package=file.name == "__init__.py"), "imports"
            elif node not in prose:
                names, verb = self._named_by(node, is_advice=node in advice), "names in a string"
            else:
                continue
            found |= {Use(place, getattr(node, "lineno", 0), module, name, verb) for name in names}
        return found

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
        """The module, or package without __init__.py, that `import name` or `from module import name` reaches.

        None for a library's.
        """
        while name and name not in self.files and name not in self.packages:
            name = name.rpartition(".")[0]
        return name or None

    def _named_by(self, node: ast.AST, is_advice: bool) -> Iterator[str]:
        """Modules that an expression names without importing them."""
        match node:
            case ast.Constant(value=str(text)):
                yield from self._named(text, is_advice)
            case ast.BinOp(op=ast.Add()):
                yield from self._named(_text(node), is_advice)
            case ast.BinOp(op=ast.Div()):
                yield from self._at(_text(node))
            case ast.JoinedStr(values=parts):
                for text in map(_text, parts):
                    if re.fullmatch(r"[\w/]*/[\w/]*(\.py)?", text):
                        yield from self._at(text)
            case ast.Call(func=ast.Name(id=called) | ast.Attribute(attr=called), args=[name, *packages]):
                if called in ("import_module", "__import__"):
                    packages += [keyword.value for keyword in node.keywords if keyword.arg == "package"]
                    relative = _text(name).startswith(".") and packages
                    if found := self._longest((_text(packages[0]) if relative else "") + _text(name)):
                        yield found

    def _at(self, path: str) -> Iterator[str]:
        """The module or package at a path below the root."""
        if found := self._longest(path.strip("/").removesuffix(".py").replace("/", ".")):
            yield found

    def _named(self, text: str, is_advice: bool) -> Iterator[str]:
        """Modules that a string names to a program: alone, as a file's path, as module:function, behind -m or python.

        `python -m a.b` in a sentence to people is advice. A string 'a.' begins a name that is put together.
        """
        if text.endswith(".") and text[:-1] in self.packages:
            yield text[:-1]
        names = re.findall(rf"{'(?<!python )' if is_advice else ''}(?<!\w)-m ([\w.]+)", text)
        if not is_advice:
            scripts = re.findall(r"\bpython[\d.]*(?: -\w+)* (\w+/[\w/]*)", text)
            names += [path.strip("/").replace("/", ".") for path in scripts]
        if re.fullmatch(r"[\w./]+\.py", text):
            names.append(text.removesuffix(".py").replace("/", "."))
        elif whole := re.fullmatch(r"([\w.]+)(:[\w.]+)?", text):
            names.append(whole[1] if "." in whole[1] else "")
        for name in names:
            if found := self._longest(name):
                yield found


def _module_name(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _docstrings(tree: ast.Module) -> Iterator[ast.AST]:
    """String constants that are statements of their own."""
    return (
        node.value for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    )


def _advice(tree: ast.Module) -> Iterator[ast.AST]:
    """All within the arguments of ADVISERS and within the ADVICE of argparse."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            read = [keyword.value for keyword in node.keywords if keyword.arg in ADVICE]
            if isinstance(node.func, ast.Name) and node.func.id in ADVISERS:
                read += [*node.args, *(keyword.value for keyword in node.keywords)]
            for argument in read:
                yield from ast.walk(argument)


def _text(node: ast.AST) -> str:
    """The constants of an expression, as `+`, `/` and Path() join them; what is not constant is left out."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _text(left) + _text(right)
        case ast.BinOp(left=left, op=ast.Div(), right=right):
            return "/".join(text for text in (_text(left), _text(right)) if text)
        case ast.Call(func=ast.Name(id="Path") | ast.Attribute(attr="Path"), args=[first]):
            return _text(first)
    return ""


class Contract:
    """A table of layers (LAYERS of tests/test_architecture.py), looked up by module."""

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
            for imported in graph.get(module, []):  # a package without __init__.py imports nothing
                walk(imported, [*path, module])
            done.add(module)

    for module in graph:
        walk(module, [])
    return sorted(set(found), key=len)


def sentences(faults: Iterable[str]) -> str:
    return "\n".join(faults)
