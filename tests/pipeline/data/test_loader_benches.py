"""The benches run and print what they promise; their figures are not judged here."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from tests.helpers import ROOT
from tests.images import NO_REAL_IMAGES, REAL_IMAGES
from tests.patience import limit

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not REAL_IMAGES.is_file(), reason=NO_REAL_IMAGES)]


def run(*command: str) -> dict[str, Any]:
    result = subprocess.run([sys.executable, *command, "--json"], cwd=ROOT, capture_output=True, text=True, check=True)
    return dict(json.loads(result.stdout.splitlines()[-1]))


def test_loader() -> None:
    figures = run("bench/loader.py", "--rounds", "1", "--images", "128", "--threads", "2")
    assert set(figures["ratios"]) == {"ours/torchvision", "ours/webdataset", "ours/dali"}
    assert all(ratio > 0 for ratio in figures["ratios"].values())


def test_augmentations() -> None:
    figures = run("bench/augmentations.py", "--rounds", "1", "--images", "64", "--threads", "2")
    ratios = figures["cpu_ratios"]
    assert len(ratios) == 5 and ratios["scale-crop"] == 1 and all(ratio > 0 for ratio in ratios.values())


def test_scale() -> None:
    figures = run("bench/scale.py", "--rounds", "1", "--iterations", "10")
    # The sample table of 1.28 M rows, 55 MB, lies in memory.
    assert figures["ratios"]["private memory beyond the libraries 1.28M/10k"] < 2
    assert figures["cases"]["1.28M, from 0"]["start_up"] < limit(60)  # seconds; reading all of the split takes longer


def test_pixels() -> None:
    figures = run("bench/pixels.py")
    assert min(graph["psnr_min"] for graph in figures.values()) > 53
