"""The rungs of decoding: where and how much of an image is decoded. A lower rung works where a higher one fails.

gpu: the window that a crop needs, on the GPU. gpu-whole: the whole image on the GPU, of which the same region is resampled.
cpu: the window, on the CPU. All rungs use the same views.
"""

from __future__ import annotations

from importlib import metadata
from typing import Literal, get_args

import torch

Rung = Literal["gpu", "gpu-whole", "cpu"]
RUNGS: tuple[Rung, ...] = get_args(Rung)  # from the fastest to the one that works everywhere

_PACKAGES = ("nvidia-nvimgcodec-cu13", "nvidia-nvimgcodec-cu12")


def lower_rungs(rung: Rung) -> tuple[Rung, ...]:
    """Return the rungs below `rung`, the next one first."""
    return RUNGS[RUNGS.index(rung) + 1 :]


def decoder_version() -> str:
    """Return the version of nvImageCodec, which decodes for DALI on GPU and CPU; "unknown" if no package says it."""
    for package in _PACKAGES:
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return "unknown"


def decoder_name(device: torch.device) -> str:
    """Return `nvImageCodec VERSION on DEVICE`, for messages."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "the CPU"
    return f"nvImageCodec {decoder_version()} on {name}"


def device_index(device: torch.device) -> int:
    """Return the number of a GPU; that of this thread's current one if `device` says none."""
    return torch.cuda.current_device() if device.index is None else device.index
