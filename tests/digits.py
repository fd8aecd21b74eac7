"""The demo's dataset of real handwritten digits, made by the real command."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from data_prep.digits import write_digits
from tests.helpers import ROOT


def write_dataset(folder: Path) -> Path:
    """Write the images and their dataset folder, which is returned, into `folder`."""
    images, dataset = folder / "images", folder / "dataset"
    write_digits(images)
    command = [sys.executable, "data_prep/shard_imagenet.py", str(images), str(dataset), "--name", "digits"]
    sizes = ["--statistics-size", "32", "--statistics-short-side", "36", "--workers", "1"]
    subprocess.run([*command, *sizes], cwd=ROOT, check=True, capture_output=True)
    return dataset
