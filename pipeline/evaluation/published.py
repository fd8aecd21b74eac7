"""Torchvision's own weights, by name: torchvision:resnet50, or torchvision:resnet50/IMAGENET1K_V1."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch

from pipeline.base.command import UserError, check_known
from pipeline.data.conventions import PILLOW, TORCHVISION, Convention, Resizing

PREFIX = "torchvision:"
NETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")  # those of torchvision's nets that are nets here


@dataclass(frozen=True, kw_only=True)
class Published:
    """Weights that torchvision publishes. file: where torch.hub keeps them."""

    arch: str
    url: str
    file: Path
    convention: Convention
    enum: Any  # torchvision's WeightsEnum

    @property
    def name(self) -> str:
        """The net and its weights, as a file may be called: resnet50-IMAGENET1K_V2."""
        return f"{self.arch}-{self.enum.name}"

    @property
    def classes(self) -> int:
        return len(self.enum.meta["categories"])

    @property
    def is_here(self) -> bool:
        return self.file.is_file()

    def fetch(self) -> Path:
        """Return the file, which torchvision downloads if it is not there. Raises UserError where that fails."""
        if not self.is_here:
            try:
                self.enum.get_state_dict(progress=False, check_hash=True)
            except (OSError, RuntimeError, HTTPException) as error:  # RuntimeError: another hash than the name's
                reason = " ".join(str(error).split())
                raise UserError(
                    f"the weights cannot be fetched ({reason}): download {self.url} and put it there as {self.file}"
                ) from None
        return self.file


def is_published(place: str) -> bool:
    """Whether a user means weights of torchvision's by their name, and no file."""
    return place.startswith(PREFIX)


def published(name: str) -> Published:
    """The weights named NET or NET/WEIGHTS, of which torchvision's own default are taken. Raises UserError for other names."""
    net, _, version = name.removeprefix(PREFIX).partition("/")
    check_known("net of torchvision", net, NETS)
    weights = _weights_of(net)
    if version:
        check_known(f"set of weights of {PREFIX}{net}", version, [one.name for one in weights])
    return _published(net, weights[version or "DEFAULT"])


def published_as(file: Path) -> Published | None:
    """The weights that torchvision publishes under the name of `file`, such as resnet50-11ad3fa6.pth; None: none."""
    if not file.name.startswith(NETS):
        return None
    return next((one for one in _all() if one.file.name == file.name), None)


def _all() -> Iterator[Published]:
    return (_published(net, one) for net in NETS for one in _weights_of(net))


def _weights_of(net: str) -> Any:
    from torchvision.models import get_model_weights  # takes a second

    return get_model_weights(net)


def _published(net: str, enum: Any) -> Published:
    preset = enum.transforms()  # torchvision's ImageClassification
    convention = replace(
        TORCHVISION,
        resizing=Resizing(longer_side="floor", corner="even", resampling=PILLOW[preset.interpolation.value]),
        mean=tuple(round(255 * value, 6) for value in preset.mean),
        std=tuple(round(255 * value, 6) for value in preset.std),
        short_side=preset.resize_size[0],
        crop=preset.crop_size[0],
    )
    file = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlsplit(enum.url).path).name
    return Published(arch=net, url=enum.url, file=file, convention=convention, enum=enum)
