"""Opens the dataset that a net is tested on, and the one it was trained on, which is identified by its content."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.base.command import UserError
from pipeline.data.dataset import Dataset, Statistics, Subtracted
from pipeline.data.storage import open_dataset
from pipeline.evaluation.exports import ExportedMean
from pipeline.evaluation.nets import TrainedNet


@dataclass(frozen=True, kw_only=True)
class Datasets:
    """tested: what a model is tested on. training: what it was trained on, or why that cannot be opened.

    subtracted: what of the training dataset is subtracted from the model's images. mean: what it must be, where an exported
    file says so; it may then come from elsewhere.
    """

    tested: Dataset
    training: Dataset | UserError
    subtracted: Subtracted = "mean-image"
    mean: ExportedMean | None = None

    @property
    def statistics(self) -> Statistics:
        """Those of the training images: their mean is the model's. Raises UserError where they cannot be read."""
        if self.mean is not None:
            return self.mean.statistics(self.tested)
        if isinstance(self.training, UserError):
            raise self.training
        return self.training.statistics.subtracting(self.subtracted)


def open_datasets(trained: TrainedNet) -> Datasets:
    """Open each of the model's datasets once. Raises UserError where the one to test on is not there or has other classes.

    The classes are compared with those of the training dataset, if that can be read.
    """
    tested = open_dataset(trained.data)
    check_class_count(trained.name, trained.classes, tested, trained.data)
    wnids = [known.wnid for known in tested.manifest.classes]
    if trained.convention is not None and trained.convention.class_order == "wnid" and wnids != sorted(wnids):
        raise UserError(
            f"the classes of {trained.data} are not in the order of their names, in which {trained.convention.name}'s nets "
            "give their scores: prepare the dataset with its classes in that order"
        )
    try:
        training = _training_dataset(trained, tested)
    except UserError as error:
        return Datasets(tested=tested, training=error, subtracted=trained.subtracted, mean=trained.mean)
    _check_classes(trained, trained.wnids or [known.wnid for known in training.manifest.classes], wnids)
    return Datasets(tested=tested, training=training, subtracted=trained.subtracted, mean=trained.mean)


def check_class_count(name: str, classes: int, dataset: Dataset, place: str) -> None:
    """Raise UserError where a net has another number of classes than the dataset in `place`."""
    if dataset.classes != classes:
        raise UserError(
            f"{name} has {classes} classes, but the dataset {place} has {dataset.classes}: "
            "give the dataset that the net was trained for"
        )


def _check_classes(trained: TrainedNet, known: Sequence[str], given: Sequence[str]) -> None:
    """Raise UserError where the dataset to test on has other class folders than the one that the net was trained on."""
    for label, (there, here) in enumerate(zip(known, given, strict=False)):
        if there != here:
            raise UserError(
                f"class {label} of the dataset {trained.data} is {here}, but {trained.name} was trained with "
                f"{there}: give a dataset with the same classes in the same order"
            )


def on_training_data(trained: TrainedNet, dataset: Dataset) -> bool:
    """Return whether the net was trained on `dataset` (from `trained.data`), by its hash, or by its path if none is known."""
    if trained.training_sha256 is None:
        return trained.data == trained.training_data
    return dataset.sha256 == trained.training_sha256


def data_suffix(trained: TrainedNet, dataset: Dataset) -> str:
    """Return the part of file and metric names that states the test dataset: empty for the net's training dataset."""
    return "" if on_training_data(trained, dataset) else f"-data{dataset.sha256[:8]}"


def _training_dataset(trained: TrainedNet, tested: Dataset) -> Dataset:
    """Return the dataset whose mean the net needs: `tested` if it is the training dataset, else the one in the run's config.

    Raises UserError if that dataset is missing or is another one.
    """
    if on_training_data(trained, tested):
        return tested
    training = open_dataset(trained.training_data)
    if trained.training_sha256 not in (None, training.sha256):
        raise UserError(
            f"{trained.training_data} is not the dataset that {trained.name} was trained on (its manifest differs), and the "
            "net needs the mean of that one: give that dataset with --data, or the mean with --mean"
        )
    return training
