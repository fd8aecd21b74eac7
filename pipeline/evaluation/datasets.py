"""Opens the dataset that a net is tested on, and the one it was trained on, which is identified by its content."""

from __future__ import annotations

from pipeline.base.command import UserError
from pipeline.data.dataset import Dataset
from pipeline.data.storage import open_dataset
from pipeline.evaluation.nets import TrainedNet


def tested_on(trained: TrainedNet) -> Dataset:
    """Open the dataset to test the net on. Raises UserError if it is missing or its classes are not the net's.

    The classes are compared with those of the training dataset, if that can be read.
    """
    dataset = open_dataset(trained.data)
    if dataset.classes != trained.classes:
        raise UserError(
            f"{trained.name} has {trained.classes} classes, but the dataset {trained.data} has {dataset.classes}: "
            "give the dataset that the net was trained for"
        )
    try:
        training_dataset = trained_on(trained, dataset)
    except UserError:
        return dataset
    pairs = zip(training_dataset.manifest.classes, dataset.manifest.classes, strict=False)
    for label, (known, given) in enumerate(pairs):
        if known.wnid != given.wnid:
            raise UserError(
                f"class {label} of the dataset {trained.data} is {given.wnid}, but {trained.name} was trained with "
                f"{known.wnid}: give a dataset with the same classes in the same order"
            )
    return dataset


def on_training_data(trained: TrainedNet, dataset: Dataset) -> bool:
    """Return whether the net was trained on `dataset` (from `trained.data`), by its hash, or by its path if none is known."""
    if trained.training_sha256 is None:
        return trained.data == trained.training_data
    return dataset.sha256 == trained.training_sha256


def data_suffix(trained: TrainedNet, dataset: Dataset) -> str:
    """Return the part of file and metric names that states the test dataset: empty for the net's training dataset."""
    return "" if on_training_data(trained, dataset) else f"-data{dataset.sha256[:8]}"


def trained_on(trained: TrainedNet, dataset: Dataset) -> Dataset:
    """Return the dataset whose mean the net needs: `dataset` if it is the training dataset, else the one in the run's config.

    Raises UserError if that dataset is missing or is another one.
    """
    if on_training_data(trained, dataset):
        return dataset
    training_dataset = open_dataset(trained.training_data)
    if trained.training_sha256 not in (None, training_dataset.sha256):
        raise UserError(
            f"{trained.training_data} is not the dataset that {trained.name} was trained on (its manifest differs), and the "
            "net needs the mean of that one: give that dataset with --data, or the mean with --mean"
        )
    return training_dataset
