"""What the metadata of an exported model.safetensors say of its net, and the mean that its images have subtracted.

`pipeline.export` writes them, and `pipeline.evaluate` and `--init` read them, since none of it shows in the weights:

    arch, stride, shortcut    of the net, as a config has them
    short_side, crop          pixels of the centre-crop test
    subtract                  mean-image or mean-colour
    mean_sha256               of the numbers in mean.npy: `mean_sha256`
    dataset_sha256            of the training dataset's manifest
    classes, wnids            JSON lists of readable names and of class folders, in the order of the scores

Values of safetensors' metadata are texts; numbers are decimal.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from pipeline.base.command import UserError
from pipeline.base.regular import open_regular
from pipeline.base.typed import read_typed
from pipeline.data.dataset import Dataset, Statistics, Subtracted
from pipeline.data.graphs import Normalization
from pipeline.models.resnet import Shortcut, Stride

CLASSES, MEAN_SHA256 = "classes", "mean_sha256"  # the second tells our exports of now from other files
MEAN_FILE = "mean.npy"  # beside model.safetensors


@dataclass(frozen=True, kw_only=True)
class ExportedNet:
    """The metadata, typed; the module's table says what each is."""

    arch: str
    stride: Stride
    shortcut: Shortcut
    short_side: int
    crop: int
    subtract: Subtracted
    mean_sha256: str
    dataset_sha256: str
    classes: tuple[str, ...]
    wnids: tuple[str, ...]

    def metadata(self) -> dict[str, str]:
        """As the file holds them."""
        values = asdict(self).items()
        return {name: json_list(value) if isinstance(value, tuple) else str(value) for name, value in values}


@dataclass(frozen=True, kw_only=True)
class ExportedMean:
    """The mean that an exported net has subtracted from its images of `crop` pixels square; `file`: where it may lie."""

    sha256: str
    crop: int
    subtract: Subtracted
    file: Path

    def statistics(self, dataset: Dataset) -> Statistics:
        """Statistics with that mean: those of `dataset` where they have it, else made of `file`.

        Raises UserError where neither has it.
        """
        with suppress(UserError):  # no statistics
            own = dataset.statistics.subtracting(self.subtract)
            if mean_sha256(Normalization.of(own, self.crop).mean) == self.sha256:
                return own
        # Suppressed where the file is gone, or holds no array of numbers.
        with suppress(OSError, ValueError, TypeError), open_regular(self.file) as opened:
            mean = np.load(opened, allow_pickle=False).astype(np.float32)
            if mean_sha256(mean) == self.sha256:
                image = mean.reshape(1, 1, 3) if mean.ndim == 1 else mean
                return Statistics(mean_image=image, eigenvalues=np.zeros(3), eigenvectors=np.zeros((3, 3)))
        raise UserError(
            f"the mean that the net was trained with is neither that of the dataset {dataset.folder} nor in {self.file}: put "
            f"the {MEAN_FILE} there that was exported with the weights, or give the training dataset"
        )


def mean_sha256(mean: NDArray[np.float32]) -> str:
    """SHA-256 of the numbers of a mean image or colour: float32, little-endian, row by row, R, G, B."""
    return hashlib.sha256(np.ascontiguousarray(mean, "<f4").tobytes()).hexdigest()


def json_list(names: Sequence[str]) -> str:
    """Names as a JSON list."""
    # What is not UTF-8 (a lone surrogate) has no place in the formats: JSON can write it as `\udcff`, as Python does here.
    return json.dumps(names, ensure_ascii=False).encode(errors="backslashreplace").decode()


def exported_net(file: Path) -> ExportedNet | None:
    """What a file says of its net; None where it is no export of `pipeline.export`, or of before exports said it.

    Raises UserError where the file is damaged.
    """
    found: dict[str, Any] = metadata_of(file)
    if MEAN_SHA256 not in found:
        return None
    values = {name: found[name] for name in ExportedNet.__dataclass_fields__ if name in found}
    for name in values.keys() & {"short_side", "crop", "classes", "wnids"}:
        with suppress(ValueError):  # read_typed says what does not fit
            values[name] = json.loads(values[name])
    return read_typed(ExportedNet, values, f"the metadata of {file}")


def is_older_export(file: Path) -> bool:
    """Whether a file is an export of `pipeline.export` from before exports said what their net needs."""
    found = metadata_of(file)
    return CLASSES in found and MEAN_SHA256 not in found


def metadata_of(file: Path) -> dict[str, str]:
    """The metadata of a .safetensors file; of other files none. Raises UserError where the file is damaged."""
    if file.suffix != ".safetensors":
        return {}
    try:
        with safe_open(file, "pt") as opened:
            return opened.metadata() or {}
    except SafetensorError as error:
        raise UserError(f"{file} is not a safetensors file ({error}): download or save it again") from None
