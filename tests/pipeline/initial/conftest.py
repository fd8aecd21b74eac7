"""Shared by tests of runs that start from weights."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import shared_folder
from tests.helpers import ROOT


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
