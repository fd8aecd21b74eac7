"""Loads third-party weights: state dicts with torchvision's names, in whatever other programs save them in."""

from __future__ import annotations

import argparse
import errno
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy._core.multiarray import scalar
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from pipeline.base.command import UserError
from pipeline.data.conventions import Channels, Convention
from pipeline.data.storage import location_in
from pipeline.evaluation.exports import MEAN_FILE, ExportedMean, ExportedNet
from pipeline.evaluation.nets import TrainedNet, classes_of, digest, load_weights
from pipeline.evaluation.wrappings import unwrap
from pipeline.models.architecture import Architecture, parse_arch
from pipeline.models.resnet import Option, ResNet, Shortcut, Stride, build

# What trainings save beside weights: their options (timm), and errors as NumPy's numbers. None of it runs anything.
HARMLESS: list[Any] = [
    argparse.Namespace,
    (scalar, "numpy.core.multiarray.scalar"),
    (scalar, "numpy._core.multiarray.scalar"),
    np.dtype,
    *(type(np.dtype(kind)) for kind in ("float16", "float32", "float64", "int32", "int64", "bool")),
]
CIFAR_SIDE = 32  # pixels of CIFAR's images, which are tested whole: section 4.2


@dataclass(frozen=True, kw_only=True)
class WeightsFile:
    """A state dict in torchvision's naming, the model that it belongs to, and the dataset to test that on. Picklable.

    convention: of the weights' origin. data: a folder or a URL. key: which of the file's weights, where it holds several.
    shortcut: None: as the weights have it. stride: None: as the origin has it. short_side, crop: pixels; None: those of the
    net's family and its origin.
    exported: what the file says of its net. published: as in `TrainedNet`.
    """

    file: Path
    arch: str
    convention: Convention
    data: str
    key: str | None = None
    shortcut: Option | None = None
    stride: Stride | None = None
    short_side: int | None = None
    crop: int | None = None
    exported: ExportedNet | None = None
    published: str | None = None

    @property
    def mean(self) -> Channels | None:
        return self.convention.mean

    @property
    def std(self) -> Channels | None:
        return self.convention.std


def open_weights(source: WeightsFile, base: Path = Path()) -> TrainedNet:
    """The model with these weights. base: where relative paths begin.

    Raises UserError where the file holds no weights, or those of another model.
    """
    convention, stride = source.convention, source.stride or source.convention.stride
    architecture = parse_arch(source.arch)
    file, data = base / source.file, location_in(base, source.data)
    state = read_weights(file, source.key)
    shortcut = shortcut_of(state, architecture)
    if source.shortcut not in (None, shortcut):
        raise UserError(
            f"the weights in {file} are not those of a {source.arch} with shortcut {source.shortcut}: leave out "
            "--shortcut, which the weights show"
        )
    net = build(source.arch, classes=classes_of(state, file), shortcut=shortcut, stride=stride)
    load_weights(net, state, file)
    sha256 = digest(net.state_dict())
    adapt(net, convention)
    short_side, crop = sizes(source)
    exported = source.exported
    return TrainedNet(
        net=net,
        arch=source.arch,
        stride=stride,
        checkpoint=file,
        iteration=None,
        weights="file",
        weights_sha256=sha256,
        run=None,
        data=data,
        training_data=data,
        training_sha256=None,
        short_side=short_side,
        crop=crop,
        convention=convention,
        mean=_mean_of(exported, source.file) if exported else None,
        wnids=exported.wnids if exported else None,
        subtracted=exported.subtract if exported else "mean-image",
        published=source.published,
    )


def _mean_of(exported: ExportedNet, file: Path) -> ExportedMean:
    return ExportedMean(
        sha256=exported.mean_sha256, crop=exported.crop, subtract=exported.subtract, file=file.with_name(MEAN_FILE)
    )


def shortcut_of(state: Mapping[str, Tensor], architecture: Architecture) -> Shortcut:
    """The option of section 3.3 whose projections are among the weights: C has them everywhere, A and plain nets nowhere."""
    if architecture.kind == "plain" or not any(".downsample." in name for name in state):
        return "default" if architecture.kind == "plain" else "A"
    narrow = "layer1.1.downsample." if architecture.block == "bottleneck" else "layer1.0.downsample."
    return "C" if any(name.startswith(narrow) for name in state) else "B"


def sizes(source: WeightsFile) -> tuple[int, int]:
    """(shorter side, crop) of the centre-crop test: sections 3.4 and 4.2, or as the origin has them."""
    if parse_arch(source.arch).family == "cifar":
        usual_short_side, usual_crop = CIFAR_SIDE, CIFAR_SIDE
    else:
        usual_short_side, usual_crop = source.convention.short_side or 0, source.convention.crop
    crop = source.crop or usual_crop
    return source.short_side or max(usual_short_side, crop), crop


def adapt(net: ResNet, convention: Convention) -> None:
    """Have the net take images in RGB, and pool as at its origin."""
    net.conv1.weight.data = for_rgb(net.conv1.weight.data, convention)
    if convention.stem_pool == "ceil" and net.architecture.family == "imagenet":
        net.maxpool = nn.MaxPool2d(3, stride=2, ceil_mode=True)


def for_rgb(weight: Tensor, convention: Convention) -> Tensor:
    """The weights [C, 3, k, k] of a first convolution, whose input channels are in the convention's order, for RGB."""
    return weight.flip(1).contiguous() if convention.colour_order == "BGR" else weight


def read_weights(path: Path, key: str | None = None, option: str = "--weights-key") -> dict[str, Tensor]:
    """Read the state dict in a .safetensors or torch.save file: unwrapped, with torchvision's names, on the CPU.

    key: which one, where the file holds several (pipeline/evaluation/wrappings.py). option: the one that users name it by.
    Nothing in the file is executed. Raises UserError if it holds no state dict.
    """
    check_there(path)
    return unwrap(_load(path), path, key, option)


def check_there(path: Path) -> None:
    """Raise UserError where there is no file of weights."""
    if not path.is_file():
        raise UserError(f"there is no weights file {path}: give a state dict (.pt, .pth, .ckpt, .safetensors)")


def _load(path: Path) -> Any:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals(HARMLESS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise UserError(f"{path} is not a safetensors file ({error}): download or save it again") from None
    except (
        Exception
    ) as error:  # torch's unpickler raises errors of any type at what is no pickle, IndexError among them
        of_the_disk = isinstance(error, OSError) and error.errno != errno.EINVAL  # EINVAL: a truncated zip file
        if of_the_disk or isinstance(error, MemoryError):
            raise
        raise UserError(
            f"{path} cannot be read as weights ({_reason(str(error), path)}): save the state dict alone, with torch.save or "
            "as safetensors"
        ) from None


def _reason(error: str, path: Path) -> str:
    """Why a file is not read, by torch's words. Its objects, beside tensors and plain values, would be code that runs here."""
    if "TorchScript" in error:
        return "it is a TorchScript program"
    if "nsupported" in error and _is_pickled(path):
        named = re.search(r"GLOBAL:? ([\w.]+) ", error)
        return f"it holds more than weights: objects of {named[1]}" if named else "it holds more than weights"
    return "it is damaged or of another format"


def _is_pickled(path: Path) -> bool:
    """Return whether a file starts as those of torch.save: as a zip file, or (before torch 1.6) as a pickle."""
    with open(path, "rb") as file:
        return file.read(2).startswith((b"PK", b"\x80"))
