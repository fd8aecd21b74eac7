"""What a run's `precision` means on a device: the type of the images, and whether the device has the units."""

from __future__ import annotations

import sys
from typing import Literal

import torch

from pipeline.base.command import UserError

Precision = Literal["float32", "bf16"]


def images_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """The type of the training images: what the loader gives, what the net is compiled for, what an update takes.

    On a GPU in bf16 that is bfloat16, which halves what the first convolution reads. On a CPU it is float32: autocast
    converts there, in time that does not show.
    """
    return torch.bfloat16 if precision == "bf16" and device.type == "cuda" else torch.float32


def check_precision(precision: Precision, device: torch.device, warns: bool) -> None:
    """Raise UserError where a GPU has no bf16 units; warn of a CPU without them, where `warns`."""
    if precision != "bf16":
        return
    if device.type == "cuda":
        if not torch.cuda.is_bf16_supported(including_emulation=False):
            raise UserError(
                f"precision is bf16, and the GPU {torch.cuda.get_device_name(device)} has no units for it: "
                "add --precision float32"
            )
    elif warns and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        print(
            "warning: this CPU has no bf16 units, which makes precision bf16 slower than float32: "
            "--precision float32 is the faster one here",
            file=sys.stderr,
        )
