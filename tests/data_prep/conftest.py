"""Small image sources, and the commands run as a user runs them."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.helpers import ROOT
from tests.images import encode, smooth
from tests.patience import limit

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def command() -> Command:
    """`command("data_prep/x.py", *arguments)`: the finished process of that command, as a user runs it."""

    def run(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(ROOT / script), *map(str, arguments)],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=limit(250),
        )

    return run


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders train/ and val/: three classes, odd sizes, a greyscale, an EXIF-rotated and a PNG image."""
    root = tmp_path_factory.mktemp("source")
    generator = np.random.default_rng(1)
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: rotate by 90 degrees
    for split, count in (("train", 9), ("val", 3)):
        for wnid in ("n01440764", "n01443537", "n02119789"):
            folder = root / split / wnid
            folder.mkdir(parents=True)
            for number in range(count):
                height, width = (int(one) for one in generator.integers(30, 90, 2))
                name = f"{wnid}_{number}.JPEG" if split == "train" else f"ILSVRC2012_val_{number * 3:08d}.JPEG"
                image = smooth(generator, height, width, "L" if number == 2 else "RGB")
                options: dict[str, Any] = {"exif": exif} if number == 1 else {}
                (folder / name).write_bytes(encode(image, quality=90, **options))
    (root / "train/n02119789/line drawing.v2.png").write_bytes(encode(smooth(generator, 41, 57), "PNG"))
    (root / "train/n02119789/.hidden.jpg").write_bytes(b"not an image")
    (root / "train/n02119789/notes.txt").write_text("not an image either")
    return root


def tree_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file under `folder`, by relative path."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="session")
def hashes() -> Callable[[Path], dict[str, str]]:
    return tree_hashes
