"""The datasets that stages need, each made once in the folder that they share."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from bench.gpu.check import Check, LeftOut

# Environment variables that name files and folders, set by the options --images and --cifar10.
SAMPLES, CIFAR10 = "IMAGENET_SAMPLES", "BENCH_CIFAR10"


def samples(check: Check) -> Path:
    """Return the dataset folder of the 140 sample images. Raises LeftOut where the images are not at hand."""
    from bench import loader

    if not loader.SAMPLES.is_file():
        raise LeftOut(f"the sample images are not at {loader.SAMPLES} (--images)")
    return _once(check.work / "samples", lambda folder: loader.shard_samples(folder, 1))


def lossless(check: Check, name: str, count: int, side: int, classes: int = 10) -> Path:
    """Return a dataset folder of `count` random smooth PNGs of `side` pixels square, under `name`."""

    def make(folder: Path) -> Path:
        random = np.random.default_rng(0)
        for number in range(count):
            place = folder / "images/train" / f"class{number % classes}" / f"{number:05d}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            coarse = Image.fromarray(random.integers(0, 256, (max(side // 8, 2), max(side // 8, 2), 3), np.uint8))
            coarse.resize((side, side), Image.Resampling.BICUBIC).save(place, compress_level=1)
        return shard(folder, name, side, side)

    return _once(check.work / name, make)


def digits(check: Check) -> Path:
    """Return the dataset folder of the demo."""

    def make(folder: Path) -> Path:
        from data_prep.digits import write_digits

        write_digits(folder / "images")
        return shard(folder, "digits", 32, 36)

    return _once(check.work / "digits", make)


def cifar10(check: Check) -> Path:
    """Return the dataset folder of CIFAR-10; in a dry run, one that looks like it. Raises LeftOut where there is none."""
    if named := os.environ.get(CIFAR10):
        return Path(named)
    if check.dry:
        return lossless(check, "cifarlike", 256, 32)
    raise LeftOut("no dataset folder of CIFAR-10 (--cifar10)")


def shard(folder: Path, name: str, side: int, short_side: int) -> Path:
    """Make a dataset folder of FOLDER/images. side, short_side: pixels of the images that its statistics are over."""
    sizes = ["--statistics-size", str(side), "--statistics-short-side", str(short_side)]
    places = [str(folder / "images"), str(folder / "dataset")]
    command = [sys.executable, "data_prep/shard_imagenet.py", *places, "--name", name, *sizes]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8", errors="replace"
    )
    if done.returncode:
        raise RuntimeError(f"data_prep/shard_imagenet.py ended with {done.returncode}: {done.stdout[-400:]}")
    return folder / "dataset"


def _once(folder: Path, make: Callable[[Path], Path]) -> Path:
    """Return what `make(folder)` returned, now or when it was last called: a folder `dataset` in it."""
    dataset = folder / "dataset"
    if not (dataset / "manifest.json").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        made = make(folder)
        assert made == dataset
    return dataset
