"""What a net needs of the dataset that it was trained on, to be used: the names of its classes and the mean of its images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.base.command import UserError
from pipeline.data.dataset import Dataset, Subtracted
from pipeline.data.graphs import Normalization
from pipeline.data.storage import open_dataset
from pipeline.evaluation.datasets import on_training_data
from pipeline.evaluation.nets import TrainedNet


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """A dataset by `name`, `sha256` of its manifest, and number of training `images`.

    classes: the readable name of every label, in the order of the labels. wnids: the names of their folders (ImageNet:
    WordNet ids), which are unique. mean: float32 [crop, crop, 3] or [3], RGB, 0..255: subtracted from the images.
    """

    name: str
    sha256: str
    images: int
    classes: tuple[str, ...]
    wnids: tuple[str, ...]
    mean: NDArray[np.float32]

    @staticmethod
    def of(dataset: Dataset, crop: int, subtracted: Subtracted) -> TrainingData:
        """For a net that sees `crop` pixels square, of which `subtracted` is subtracted.

        Raises UserError where the statistics cannot be read.
        """
        return TrainingData(
            name=dataset.name,
            sha256=dataset.sha256,
            images=dataset.manifest.splits["train"].samples,
            classes=dataset.class_names,
            wnids=tuple(info.wnid for info in dataset.manifest.classes),
            mean=Normalization.of(dataset.statistics.subtracting(subtracted), crop).mean,
        )


def training_dataset(trained: TrainedNet) -> Dataset:
    """The dataset that a net was trained on. Raises UserError where another dataset, or none, is in its place."""
    dataset = open_dataset(trained.data)
    if not on_training_data(trained, dataset):
        raise UserError(
            f"{trained.data} is not the dataset that {trained.name} was trained on (its manifest differs): "
            "give that one with --data"
        )
    return dataset
