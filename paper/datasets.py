"""What a page says of a dataset, from its folder where that is at hand: name, images, classes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.base.command import UserError
from pipeline.data.dataset import Dataset

CLASSES = 10  # that are named; of more, some at the beginning


@dataclass(frozen=True, kw_only=True)
class DataFacts:
    """One dataset. sha256: None where the runs do not say what they were trained on.

    images: by split; empty, as `classes` is, where the folder is not at hand or holds other data by now.
    """

    sha256: str | None
    name: str
    images: Mapping[str, int] = field(default_factory=dict)
    classes: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """For people: `1,442 train and 355 val images, 10 classes: 0, 1, 2 ...`."""
        if not self.images:
            return "Its folder is not at hand"
        images = " and ".join(f"{number:,} {split}" for split, number in self.images.items())
        shown = ", ".join(self.classes[:CLASSES]) + (" ..." if len(self.classes) > CLASSES else "")
        return f"{images} images, {len(self.classes):,} classes: {shown}"


def described(sha256: str | None, places: Iterable[str]) -> DataFacts:
    """What the first of the folders `places` that holds this dataset says of it."""
    places = list(dict.fromkeys(places))
    if sha256 is None:
        return DataFacts(sha256=None, name="unknown dataset")
    for place in places:
        try:
            dataset = Dataset(place)
        except (UserError, OSError):
            continue
        if dataset.sha256 == sha256:
            return DataFacts(
                sha256=sha256,
                name=_name(dataset, Path(place).name),
                images={name: split.samples for name, split in dataset.manifest.splits.items()},
                classes=dataset.class_names,
            )
    return DataFacts(sha256=sha256, name=Path(places[0]).name if places else "dataset")


def _name(dataset: Dataset, folder: str) -> str:
    """The dataset's name, beside the folder's where that is another."""
    return dataset.name if dataset.name == folder else f"{dataset.name} (folder {folder})"
