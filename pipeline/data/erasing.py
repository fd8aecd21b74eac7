"""Random erasing as data: which box of an image becomes 0 is drawn before decoding; Zhong et al., arXiv:1708.04896."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.base.command import UserError
from pipeline.data.boxes import check_ranges, first_fitting, tries
from pipeline.data.draws import ERASE, ERASE_TRIES, Draws


@dataclass(frozen=True, kw_only=True)
class EraseConfig:
    """Random erasing: a random box of the finished image becomes 0, which is the mean.

    The defaults of area and ratio are those of torchvision's RandomErasing, whose box this is, with its value 0.

    Args:
        probability: with which an image loses a box; 0 turns erasing off, as in the paper.
        area: minimum and maximum of the box's share of the image.
        ratio: minimum and maximum of the box's height divided by its width, uniform in the logarithm.
    """

    probability: float = 0.0
    area: tuple[float, float] = (0.02, 0.33)
    ratio: tuple[float, float] = (0.3, 3.3)

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise UserError(f"augment.erase.probability is {self.probability:g}: it must lie in [0, 1], such as 0.25")
        check_ranges("augment.erase", self.area, self.ratio)


def draw_erased(draws: Draws, side: int, config: EraseConfig) -> NDArray[np.int64]:
    """Draw the boxes of images `side` pixels square: int64 [N, 4], top, left, height and width; height 0: no box.

    The rule is that of torchvision's RandomErasing, which leaves an image as it is where none of ten tries fits.
    """
    shapes = np.full((len(draws.ids), 2), side, np.int64)
    heights, widths = tries(draws.uniforms(*ERASE_TRIES), shapes, config.area, config.ratio)
    fits = (heights > 0) & (widths > 0) & (heights < side) & (widths < side)
    found, sizes = first_fitting(fits, heights, widths)
    chance = draws.uniforms(ERASE)
    erased = found & (chance[:, 0] < config.probability)
    places = np.floor(chance[:, 1:3] * (side - sizes + 1)).astype(np.int64)
    return np.where(erased[:, None], np.concatenate([places, sizes], axis=1), 0)


def erase(images: torch.Tensor, boxes: NDArray[np.int64]) -> None:
    """Set the boxes of `draw_erased` to 0 in images [N, H, W, 3], on any device."""
    # By NumPy on a CPU: torch would wake all its threads for each box, which took 0.7 ms of CPU time an image.
    pixels = images.numpy() if images.device.type == "cpu" else images
    for row in np.flatnonzero(boxes[:, 2]).tolist():
        top, left, height, width = boxes[row].tolist()
        pixels[row, top : top + height, left : left + width] = 0
