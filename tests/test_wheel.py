"""An installed wheel: a command that needs configs/ ends with one sentence, which names the checkout; others still work."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.helpers import ROOT
from tests.pages import files

PARTS = ("pipeline", "launch", "data_prep", "paper", "pyproject.toml", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the packages of a freshly built wheel, as `pip install --target` lays them out."""
    source, made = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in sorted(files()):
        if name.split("/")[0] in PARTS and (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, source / name)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-index", "--no-deps", "--no-build-isolation"]
    subprocess.run([*build, "--wheel-dir", made, source], check=True)
    (wheel,) = made.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(made / "site")
    return made / "site"


def command(installed: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """`python -m WORDS` with the installed packages, far from the checkout."""
    environment = os.environ | {"PYTHONPATH": str(installed)}
    return subprocess.run(
        [sys.executable, "-m", *words], cwd=installed.parent, env=environment, capture_output=True, text=True
    )


@pytest.mark.costly("builds a wheel and starts two commands from it, each with its imports of torch")
def test_commands_of_a_wheel_name_the_checkout(installed: Path) -> None:
    for words in (("pipeline.experiment", "table6"), ("launch.slurm", "--nodes", "1", "--dry-run")):
        done = command(installed, *words)
        assert done.returncode == 2, done.stderr
        assert f"\nerror: there is no {installed}/configs: this is an application" in done.stderr, done.stderr
        assert len(done.stderr.splitlines()) == 2 and not done.stdout  # the first says what starts


def test_help_of_a_wheel(installed: Path) -> None:
    done = command(installed, "data_prep.verify", "--help")
    assert done.returncode == 0 and "audit" in done.stdout.lower(), done.stderr
