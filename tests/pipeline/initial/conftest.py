"""Shared by tests of runs that start from weights."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.run.config import Config
from tests.conftest import shared_folder
from tests.helpers import ROOT
from tests.pipeline.small_runs import config_of


@pytest.fixture(scope="session")
def upper_digits(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dataset folder of the digits 5 to 9."""

    def make(folder: Path) -> None:
        for split in ("train", "val"):
            for digit in "56789":
                shutil.copytree(digits.parent / "images" / split / digit, folder / "images" / split / digit)
        words = ["data_prep/shard_imagenet.py", str(folder / "images"), str(folder / "dataset"), "--name", "upper"]
        sizes = ["--statistics-size", "32", "--statistics-short-side", "36", "--workers", "1"]
        subprocess.run([sys.executable, *words, *sizes], cwd=ROOT, check=True, capture_output=True)

    return shared_folder(tmp_path_factory, "upper-digits", make) / "dataset"


@pytest.fixture
def source(undisturbed: Config, tmp_path: Path) -> Path:
    """A copy of a finished run of ten digits, which a test may change."""
    return shutil.copytree(undisturbed.run_folder, tmp_path / "source" / "reference")


@pytest.fixture
def config(source: Path, digits: Path, tmp_path: Path) -> Config:
    """A run of the same digits that starts from it."""
    return replace(config_of(digits, tmp_path / "runs", "fine"), init=str(source))
