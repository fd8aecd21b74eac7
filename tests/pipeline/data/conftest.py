"""Data sets for the tests of pipeline/data/."""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.data.dataset import Dataset
from tests.pipeline.data.small_datasets import REAL_IMAGES, encode, photograph, write_dataset


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """40 JPEGs of all shapes: landscape, portrait, tiny, wide, greyscale, every chroma subsampling, EXIF rotation."""
    random = np.random.default_rng(1)
    images = []
    for number in range(40):
        height, width = (int(side) for side in random.integers(120, 520, 2))
        if number == 0:
            height, width = 56, 75
        if number == 1:
            height, width = 97, 600
        image = photograph(number, height, width)
        if number % 10 == 3:
            image = image.convert("L")
        options: dict[str, object] = {"quality": 92}
        if image.mode == "RGB":
            options["subsampling"] = number % 3
        if number % 10 == 4:
            exif = Image.Exif()
            exif[274] = 6  # turned by a quarter; to be ignored
            options["exif"] = exif
        images.append(encode(image, **options))
    return write_dataset(tmp_path_factory.mktemp("photographs") / "data", images, shard_size=7)


@pytest.fixture(scope="session")
def tiny_images(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """50 PNG images of 32 x 32, as CIFAR's."""
    images = [encode(photograph(100 + number, 32, 32), "PNG", compress_level=1) for number in range(50)]
    return write_dataset(tmp_path_factory.mktemp("tiny") / "data", images)


@pytest.fixture(scope="session")
def real_images(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """The 140 real ImageNet images, where they are at hand."""
    if not REAL_IMAGES.is_file():
        pytest.skip("../shared/data/imagenet-samples.tar is not there")
    with tarfile.open(REAL_IMAGES) as tar:
        members = sorted((member.name, tar.extractfile(member)) for member in tar if member.isfile())
        images = [file.read() for _, file in members if file is not None]
    return write_dataset(tmp_path_factory.mktemp("real") / "data", images, shard_size=50)


@pytest.fixture
def make_dataset(tmp_path: Path) -> Callable[..., Dataset]:
    return lambda images, **options: write_dataset(tmp_path / "made", images, **options)
