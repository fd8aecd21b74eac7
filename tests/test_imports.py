"""The reader of imports (tests/imports.py) on trees made up for it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.imports import Contract, Source, broken, circles

SMALL: dict[str, list[str]] = {
    "low": ["app app.base"],
    "middle": ["app.left.*", "app.right"],
    "high": ["launchers.*", "tools.*"],
}


def tree(folder: Path, files: Mapping[str, str]) -> Source:
    for name, text in {"app/__init__.py": "", "app/base.py": "", "app/left/__init__.py": "", **files}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return Source(folder, ["app", "launchers", "tools"])


def faults_of(folder: Path, files: Mapping[str, str], only: Mapping[str, tuple[str, ...]] | None = None) -> list[str]:
    """What the checker says of a small tree with the layers SMALL."""
    usual = {"app/right.py": "", "launchers/local.py": "", "tools/plan.py": ""}
    return broken(tree(folder, {**usual, **files}), Contract(SMALL, only or {}), {})


def test_downwards_and_within_a_room_is_fine(tmp_path: Path) -> None:
    files = {
        "app/left/a.py": "from app.base import x\nfrom . import b\nfrom .b import y\nimport torch",
        "app/left/b.py": "import app",
        "launchers/local.py": "import app.left.a\nfrom app import right\nfrom launchers import slurm",
        "launchers/slurm.py": "COMMAND = ['-m', 'app.right']",
    }
    assert faults_of(tmp_path, files) == []


def test_an_import_upwards_is_found_wherever_it_stands(tmp_path: Path) -> None:
    text = (
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n"
        "    from launchers.local import run\n"
        "def f():\n"
        "    from launchers import local as launcher\n"
        "    import launchers.local\n"
        "    from ..left import a\n"
    )
    found = faults_of(tmp_path, {"app/base.py": text.replace("..left", ".left"), "app/left/a.py": ""})
    assert found == [
        "app/base.py:3, in the layer 'low', imports launchers.local of the layer 'high': which is above it",
        "app/base.py:5, in the layer 'low', imports launchers.local of the layer 'high': which is above it",
        "app/base.py:6, in the layer 'low', imports launchers.local of the layer 'high': which is above it",
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
        '"""Started by launchers.local."""\n'
        "MODULES = {'local': 'launchers.local'}\n"
        "SHELL = f'{PYTHON} -m launchers.local --procs 2'\n"
        "FILE = ['launchers/local.py']\n"
        "ENTRY = 'launchers.local:run'\n"
        "DOTTED = 'launchers.local.run'\n"
        "PUT_TOGETHER = f'launchers.{name}'\n"
        "def mistake():\n"
        "    raise UserError('train first, with python -m launchers.local or launchers/local.py')\n"
    )
    found = faults_of(tmp_path, {"app/base.py": text})
    assert [re.sub(r"^app/base.py:(\d+), .*, names in a string (\S+) of .*$", r"\1 \2", one) for one in found] == [
        "2 launchers.local", "3 launchers.local", "4 launchers.local", "5 launchers.local", "6 launchers.local", "7 launchers",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("X = 'exec python -m launchers.local --procs 2'", "launchers.local"),
        ("X = 'cd /x && python launchers/local.py --procs 2'", "launchers.local"),
        ("X = f'exec python3.11 -u launchers/{name}.py'", "launchers"),
        ("X = Path('launchers') / 'local.py'", "launchers.local"),
        ("X = ROOT / 'launchers' / f'{name}.py'", "launchers"),
        ("X = f'{ROOT}/launchers/local.py'", "launchers.local"),
        ("X = f'launchers/{name}.py'", "launchers"),
        ("import_module('launchers' + '.local')", "launchers.local"),
        ("importlib.import_module('.local', 'launchers')", "launchers.local"),
        ("importlib.import_module('.local', package='launchers')", "launchers.local"),
        ("__import__('launchers')", "launchers"),
        ("import launchers", "launchers"),
        ("X = f'{ROOT}/app/base.py'", ""),
        ("X = folder / 'indoors' / 'local.py'", ""),
        ("X = 'people in launchers/local.py'", ""),
        ("print(f'{count} runs: python -m launchers.local makes more')", ""),
        ("parser.add_argument('--x', help='as ' + 'python -m launchers.local takes it')", ""),
    ],
)
def test_a_name_that_is_put_together_is_found(tmp_path: Path, line: str, named: str) -> None:
    found = faults_of(tmp_path, {"app/base.py": line})
    assert [fault.split(" of the layer")[0].split()[-1] for fault in found] == [named] * bool(named)


def test_exceptions_are_let_through_while_they_are_needed(tmp_path: Path) -> None:
    source = tree(tmp_path, {"app/right.py": "import launchers.local", "launchers/local.py": "", "tools/plan.py": ""})
    needed, stale = ("app.right", "launchers.local"), ("app.base", "launchers.local")
    assert broken(source, Contract(SMALL, {}), {needed: "why"}) == []
    (found,) = broken(source, Contract(SMALL, {}), {needed: "why", stale: "why"})
    assert found == "EXCEPTIONS lets app.base name launchers.local, which it does not, or may: take the line out"


def test_the_table_names_each_module_once(tmp_path: Path) -> None:
    source = tree(tmp_path, {"app/new.py": "", "launchers/local.py": ""})
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
