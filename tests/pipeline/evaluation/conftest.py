"""Data sets of the evaluation tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline import evaluate
from pipeline.base import command
from pipeline.data.dataset import Dataset
from tests.images import encode, photograph, real_images
from tests.pipeline.data.small_datasets import statistics_of_size, write_dataset
from tests.pipeline.evaluation.nets_and_images import Run, write_run
from tests.pipeline.tracking.conftest import empty_store  # noqa: F401

CLASSES = 10


@pytest.fixture
def run_command(capsys: pytest.CaptureFixture[str]) -> Run:
    """(exit code, standard output, standard error) of a command: its `main` and its arguments."""

    def call(main: Callable[[list[str]], int], *arguments: object) -> tuple[int, str, str]:
        threads = torch.get_num_threads()
        with pytest.raises(SystemExit) as ended:
            command.run(lambda: main(list(map(str, arguments))))
        torch.set_num_threads(threads)
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    return call


@pytest.fixture
def made_run(ten_classes: Dataset, tmp_path: Path) -> Path:
    """A run folder with an untrained net."""
    return write_run(tmp_path / "runs", "one", ten_classes)


@pytest.fixture
def run_evaluate(run_command: Run) -> Run:
    """python -m pipeline.evaluate on one thread."""
    return lambda *arguments: run_command(evaluate.main, *arguments, "--threads", 1)


def small_images(count: int, folder: Path) -> Dataset:
    """Small JPEGs of several shapes in 10 classes."""
    random = np.random.default_rng(5)
    shapes = [(48, 64), (64, 48), (40, 40), *((int(a), int(b)) for a, b in random.integers(36, 90, (7, 2)))]
    images = [encode(photograph(number, *shapes[number % len(shapes)])) for number in range(count)]
    labels = [int(label) for label in random.permutation(np.arange(count) % CLASSES)]
    return write_dataset(folder, images, labels, shard_size=60, statistics=statistics_of_size(32))


@pytest.fixture(scope="session")
def ten_classes(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """150 images: three blocks of the centre crop, the last one short."""
    return small_images(150, tmp_path_factory.mktemp("ten-classes") / "data")


@pytest.fixture(scope="session")
def few_of_ten_classes(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """67 images: two blocks of the centre crop, five of the ten-crop test, the last ones short."""
    return small_images(67, tmp_path_factory.mktemp("few-of-ten-classes") / "data")


def real(tmp_path_factory: pytest.TempPathFactory, every: int) -> Dataset:
    files = [data for _, data in real_images(every)]
    labels = [number % CLASSES for number in range(len(files))]  # few classes: scores far from zero
    folder = tmp_path_factory.mktemp(f"real-in-ten-classes-{every}") / "data"
    return write_dataset(folder, files, labels, shard_size=50, statistics=statistics_of_size(224))


@pytest.fixture(scope="session", params=[5, pytest.param(1, marks=pytest.mark.slow)], ids=["some", "all"])
def real_in_ten_classes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """The 140 real ImageNet images, or 32 of them, where they are at hand."""
    return real(tmp_path_factory, request.param)


@pytest.fixture(scope="session")
def few_real_in_ten_classes(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """16 of them."""
    return real(tmp_path_factory, every=12)
