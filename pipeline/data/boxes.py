"""Random boxes of a drawn area and aspect ratio, as data: the rule of torchvision's RandomResizedCrop and RandomErasing.

Both draw an area and a ratio up to ten times and take the first box that fits (`get_params` of the two transforms). The
place is uniform. Boxes are (top, left, height, width), in pixels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.base.command import UserError
from pipeline.data.draws import AREA_CROP, GEOMETRY, Draws

Int = NDArray[np.int64]
Range = tuple[float, float]
WIDEST = 1000  # ratio of a box's sides


def check_ranges(key: str, area: Range, ratio: Range) -> None:
    """Raise UserError unless `key`.area lies within (0, 1] and `key`.ratio around 1, each as [minimum, maximum]."""
    if not 0 < area[0] <= area[1] <= 1:
        raise UserError(
            f"{key}.area is [{area[0]:g}, {area[1]:g}]: give [minimum, maximum] as shares of the image's area, "
            "above 0 and at most 1, such as [0.08, 1.0]"
        )
    if not 1 / WIDEST <= ratio[0] <= ratio[1] <= WIDEST:
        raise UserError(
            f"{key}.ratio is [{ratio[0]:g}, {ratio[1]:g}]: give [minimum, maximum] of the aspect ratio, between "
            f"1/{WIDEST} and {WIDEST}, such as [0.75, 1.33]"
        )


def area_boxes(draws: Draws, shapes: Int, area: Range, ratio: Range) -> Int:
    """Draw the crop of each image (shapes int64 [N, 2], heights and widths): int64 [N, 4], as RandomResizedCrop does.

    area: minimum and maximum of the crop's share of the image. ratio: of its width to its height, uniform in its logarithm.
    Where no try fits, the box is the largest one in the centre whose ratio lies in the range.
    """
    widths, heights = tries(draws.uniforms(*AREA_CROP), shapes, area, ratio)
    fits = (widths > 0) & (heights > 0) & (heights <= shapes[:, :1]) & (widths <= shapes[:, 1:])
    found, sizes = first_fitting(fits, heights, widths)
    fallback = _largest(shapes, ratio)
    sizes = np.where(found[:, None], sizes, fallback)
    free = shapes - sizes
    places = np.floor(draws.uniforms(GEOMETRY)[:, 1:3] * (free + 1)).astype(np.int64)
    return np.concatenate([np.where(found[:, None], places, free // 2), sizes], axis=1)


def tries(uniforms: NDArray[np.float64], shapes: Int, area: Range, ratio: Range) -> tuple[Int, Int]:
    """Return the two sides of each try, the first `ratio` times the second: int64 [N, tries] each.

    uniforms: float64 [N, 2 * tries], an area and a ratio for each try.
    """
    areas = shapes.prod(axis=1)[:, None] * (area[0] + uniforms[:, 0::2] * (area[1] - area[0]))
    low, high = np.log(ratio[0]), np.log(ratio[1])
    ratios = np.exp(low + uniforms[:, 1::2] * (high - low))
    return _rounded(np.sqrt(areas * ratios)), _rounded(np.sqrt(areas / ratios))


def first_fitting(fits: NDArray[np.bool_], heights: Int, widths: Int) -> tuple[NDArray[np.bool_], Int]:
    """Return whether any try of a row fits, and height and width of the first that does: bool [N], int64 [N, 2]."""
    first = fits.argmax(axis=1)[:, None]
    sizes = np.concatenate([np.take_along_axis(sides, first, axis=1) for sides in (heights, widths)], axis=1)
    found = np.take_along_axis(fits, first, axis=1)[:, 0]
    return found, np.where(found[:, None], sizes, 0)


def _largest(shapes: Int, ratio: Range) -> Int:
    """Return height and width of the largest box in each image whose ratio of width to height lies in the range."""
    heights, widths = shapes[:, 0], shapes[:, 1]
    own = widths / heights
    lower = np.where(own < ratio[0], _rounded(widths / ratio[0]), heights)
    narrower = np.where(own > ratio[1], _rounded(heights * ratio[1]), widths)
    return np.maximum(np.stack([lower, narrower], axis=1), 1)


def _rounded(values: NDArray[np.floating[Any]]) -> Int:
    return np.rint(values).astype(np.int64)  # halves to even, as Python's round
