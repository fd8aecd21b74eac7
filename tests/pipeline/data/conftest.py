"""Data sets for the tests of pipeline/data/."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from nvidia.dali import Pipeline
from PIL import Image

from pipeline.data.dataset import Dataset
from tests.images import encode, photograph, real_images
from tests.pipeline.data.fake_gpu import Event
from tests.pipeline.data.small_datasets import write_dataset


@pytest.fixture(scope="session")
def varied_jpegs(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
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
    return write_dataset(tmp_path_factory.mktemp("varied") / "data", images, shard_size=7)


@pytest.fixture(scope="session")
def tiny_images(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """50 PNG images of 32 x 32, as CIFAR's."""
    images = [encode(photograph(100 + number, 32, 32), "PNG", compress_level=1) for number in range(50)]
    return write_dataset(tmp_path_factory.mktemp("tiny") / "data", images)


@pytest.fixture(scope="session", params=[5, pytest.param(1, marks=pytest.mark.slow)], ids=["some", "all"])
def real_imagenet(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """The 140 real ImageNet images, or 32 of them, if this machine has them."""
    images = [data for _, data in real_images(request.param)]
    return write_dataset(tmp_path_factory.mktemp("real") / "data", images, shard_size=50)


@pytest.fixture
def make_dataset(tmp_path: Path) -> Callable[..., Dataset]:
    return lambda images, where="made", **options: write_dataset(tmp_path / where, images, **options)


@pytest.fixture
def fake_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """`fake_gpu.GpuFinish` works: the CPU plays the GPU."""
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    share = Pipeline.share_outputs
    monkeypatch.setattr(Pipeline, "share_outputs", lambda pipeline, stream=None: share(pipeline))
