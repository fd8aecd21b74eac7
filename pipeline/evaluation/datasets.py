"""The dataset that a net is tested on, and the one it was trained on, which is known by its content wherever it lies."""

from __future__ import annotations

from pipeline.base.command import UserError
from pipeline.data.dataset import Dataset
from pipeline.data.storage import open_dataset
from pipeline.evaluation.nets import TrainedNet


def tested_on(subject: TrainedNet) -> Dataset:
    """The dataset to test the net on. Raises UserError where it is not there, or its classes are not the net's.

    Which class is which is compared with the training dataset, where that can be read.
    """
    dataset = open_dataset(subject.data)
    if dataset.classes != subject.classes:
        raise UserError(
            f"{subject.name} tells {subject.classes} classes apart, the dataset {subject.data} has {dataset.classes}: "
            "give the dataset that the net was trained for"
        )
    try:
        trained = trained_on(subject, dataset)
    except UserError:
        return dataset
    for label, (known, given) in enumerate(zip(trained.manifest.classes, dataset.manifest.classes, strict=False)):
        if known.wnid != given.wnid:
            raise UserError(
                f"class {label} of the dataset {subject.data} is {given.wnid}, {subject.name} was trained with "
                f"{known.wnid}: give a dataset with the same classes in the same order"
            )
    return dataset


def on_training_data(subject: TrainedNet, dataset: Dataset) -> bool:
    """Whether `dataset`, opened from `subject.data`, is what the net was trained on; by place where no hash is known."""
    if subject.training_sha256 is None:
        return subject.data == subject.training_data
    return dataset.sha256 == subject.training_sha256


def data_suffix(subject: TrainedNet, dataset: Dataset) -> str:
    """What the names of files and metrics say of the dataset a net was tested on: nothing of its training dataset."""
    return "" if on_training_data(subject, dataset) else f"-data{dataset.sha256[:8]}"


def trained_on(subject: TrainedNet, dataset: Dataset) -> Dataset:
    """The dataset whose mean is the net's: `dataset` where it is that one, else the one that the run's config names.

    Raises UserError where that is not there, or another lies in its place.
    """
    if on_training_data(subject, dataset):
        return dataset
    trained = open_dataset(subject.training_data)
    if subject.training_sha256 not in (None, trained.sha256):
        raise UserError(
            f"{subject.training_data} is not the dataset that {subject.name} was trained on (its manifest differs), whose mean "
            "is the net's: give that dataset with --data, or pipeline.evaluate the mean with --mean"
        )
    return trained
