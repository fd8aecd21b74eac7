"""Data sets of the evaluation tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline import command, evaluate
from pipeline.data.dataset import Dataset
from tests.pipeline.data.small_datasets import REAL_IMAGES, encode, photograph, statistics_of_size, write_dataset
from tests.pipeline.evaluation.nets_and_images import Run, real_image_files, write_run

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
def made_run(photographs: Dataset, tmp_path: Path) -> Path:
    """A run folder with an untrained net."""
    return write_run(tmp_path / "runs", "one", photographs)


@pytest.fixture
def run_evaluate(run_command: Run) -> Run:
    """python -m pipeline.evaluate on one thread."""
    return lambda *arguments: run_command(evaluate.main, *arguments, "--threads", 1)


def write_statistics(dataset: Dataset, side: int) -> Dataset:
    statistics = statistics_of_size(side)
    np.savez(
        dataset.folder / "statistics.npz",
        mean_image=statistics.mean_image,
        eigenvalues=statistics.eigenvalues,
        eigenvectors=statistics.eigenvectors,
    )
    return Dataset(dataset.folder)


def small_photographs(count: int, folder: Path) -> Dataset:
    """Small JPEGs of several shapes in 10 classes."""
    random = np.random.default_rng(5)
    shapes = [(48, 64), (64, 48), (40, 40), *((int(a), int(b)) for a, b in random.integers(36, 90, (7, 2)))]
    images = [encode(photograph(number, *shapes[number % len(shapes)])) for number in range(count)]
    labels = [int(label) for label in random.permutation(np.arange(count) % CLASSES)]
    return write_statistics(write_dataset(folder, images, labels, shard_size=60), 32)


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """150 images: three blocks of the centre crop, the last one short."""
    return small_photographs(150, tmp_path_factory.mktemp("evaluated") / "data")


@pytest.fixture(scope="session")
def few_photographs(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """67 images: two blocks of the centre crop, five of the ten-crop test, the last ones short."""
    return small_photographs(67, tmp_path_factory.mktemp("evaluated-few") / "data")


def real(tmp_path_factory: pytest.TempPathFactory, every: int) -> Dataset:
    if not REAL_IMAGES.is_file():
        pytest.skip("../shared/data/imagenet-samples.tar is not there")
    files = real_image_files()[::every]
    labels = [number % CLASSES for number in range(len(files))]  # few classes: scores far from zero
    folder = tmp_path_factory.mktemp(f"evaluated-real-{every}") / "data"
    return write_statistics(write_dataset(folder, files, labels, shard_size=50), 224)


@pytest.fixture(scope="session")
def real_images(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """The 140 real ImageNet images, where they are at hand."""
    return real(tmp_path_factory, every=1)


@pytest.fixture(scope="session")
def few_real_images(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Every twelfth of them."""
    return real(tmp_path_factory, every=12)
