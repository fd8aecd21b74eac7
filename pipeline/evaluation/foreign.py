"""Loads third-party weights: state dicts with torchvision's names, with or without `module.` and `state_dict` wrappers."""

from __future__ import annotations

import errno
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from pipeline.base.command import UserError
from pipeline.evaluation.nets import TrainedNet, classes_of, digest, load_weights
from pipeline.models.architecture import parse_arch
from pipeline.models.resnet import Shortcut, Stride, build

NESTINGS = ("state_dict", "model", "model_state_dict")
WRAPPERS = re.compile(r"^(module\.|_orig_mod\.)+")  # DataParallel and DDP, torch.compile
# The public CIFAR reproductions name two layers differently.
RENAMED = ((re.compile(r"^linear\."), "fc."), (re.compile(r"\.shortcut\."), ".downsample."))
# (shorter side, crop) of the centre-crop test: sections 3.4 and 4.2.
SIZES = {"imagenet": (256, 224), "cifar": (32, 32)}


@dataclass(frozen=True, kw_only=True)
class WeightsFile:
    """A state dict in torchvision's naming, and the model that it belongs to. crop: pixels; None: its family's usual crop."""

    file: Path
    arch: str
    shortcut: Shortcut = "default"
    stride: Stride = "paper"
    crop: int | None = None


def open_weights(source: WeightsFile, data: str | Path, short_side: int | None = None) -> TrainedNet:
    """The model with these weights, to be tested on the dataset `data`, a folder or a URL.

    short_side: pixels; the paper's for the model's family by default. Raises UserError where the file holds no weights,
    or those of another model.
    """
    architecture = parse_arch(source.arch)
    state = read_weights(source.file)
    net = build(source.arch, classes=classes_of(state, source.file), shortcut=source.shortcut, stride=source.stride)
    load_weights(net, state, source.file)
    usual_short_side, usual_crop = SIZES[architecture.family]
    return TrainedNet(
        net=net,
        arch=source.arch,
        stride=source.stride,
        checkpoint=source.file,
        iteration=None,
        weights="file",
        weights_sha256=digest(net.state_dict()),
        run=None,
        data=str(data),
        training_data=str(data),
        training_sha256=None,
        short_side=short_side or max(usual_short_side, source.crop or 0),
        crop=source.crop or usual_crop,
    )


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read the state dict in a .safetensors or torch.save file: unwrapped, with torchvision's names, on the CPU.

    Nothing in the file is executed. Raises UserError if it holds no state dict.
    """
    if not path.is_file():
        raise UserError(f"there is no weights file {path}: give a state dict (.pt, .pth, .safetensors)")
    loaded = _load(path)
    for key in NESTINGS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
    entries = loaded.items() if isinstance(loaded, Mapping) else ()
    if not entries or not all(isinstance(key, str) and isinstance(value, Tensor) for key, value in entries):
        raise UserError(f"{path} holds no state dict (a mapping of names to tensors): give one in torchvision's naming")
    return {_usual_name(key): value for key, value in entries}


def _usual_name(key: str) -> str:
    key = WRAPPERS.sub("", key)
    for pattern, name in RENAMED:
        key = pattern.sub(name, key)
    return key


def _load(path: Path) -> Any:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise UserError(f"{path} is not a safetensors file ({error}): download or save it again") from None
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # EINVAL: a truncated zip file
            raise
        more = "Unsupported" in str(error) and _is_pickled(path)
        reason = "it holds more than weights" if more else "it is damaged or of another format"
        raise UserError(
            f"{path} cannot be read as weights ({reason}): save the state dict alone, with torch.save or as safetensors"
        ) from None


def _is_pickled(path: Path) -> bool:
    """Return whether a file starts as those of torch.save: as a zip file, or (before torch 1.6) as a pickle."""
    with open(path, "rb") as file:
        return file.read(2).startswith((b"PK", b"\x80"))
