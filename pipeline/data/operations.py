"""RandAugment's operations on pixels, one image at a time, so that an image does not depend on its batch.

torchvision's functions compute them: on a CPU for Pillow images, that is by Pillow, as in timm; on a GPU for tensors there.
The two differ by at most one grey level (auto-contrast, colour, contrast, and what is resampled), and by more along the line
where a rotated, sheared or shifted image meets the fill, which torchvision blends on tensors and Pillow does not; the other
operations have equal pixels (tests/pipeline/data/test_operations.py).

Differences from timm: rotate, shear and translate resample bilinearly always, where timm's default draws bilinear or bicubic;
posterize keeps at least one bit, where timm keeps none at magnitude 10, which Pillow 13 refuses.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from pipeline.data.rand_augment import LARGEST, NO_OPERATION, OPERATIONS

Picture = TypeVar("Picture", Image.Image, torch.Tensor)  # a tensor: uint8 [3, H, W]

_WHITE, _MIDDLE = 255, 128


def apply(image: Picture, operation: int, magnitude: float, fill: Sequence[float]) -> Picture:
    """Return the image after an operation, which leaves the given one as it is.

    operation: its place in OPERATIONS. magnitude: -10..10, as `draw_operations` returns it. fill: RGB on the 0..255 scale, of
    the pixels that rotate, shear and translate bring in from outside.
    """
    share, strength = magnitude / LARGEST, abs(magnitude) / LARGEST  # the scales are those of timm's LEVEL_TO_ARG
    width, height = image.size if isinstance(image, Image.Image) else image.shape[:0:-1]
    match OPERATIONS[operation]:
        case "auto-contrast":
            return functional.autocontrast(image)
        case "equalize":
            return functional.equalize(image)
        case "invert":
            return functional.invert(image)
        case "rotate":
            return functional.rotate(image, 30.0 * share, InterpolationMode.BILINEAR, fill=list(fill))
        case "posterize":
            return functional.posterize(image, max(1, 4 - int(strength * 4)))
        case "solarize":
            threshold = 256 - int(strength * 256)
            return functional.solarize(image, threshold) if threshold <= _WHITE else image
        case "solarize-add":
            return _solarize_add(image, int(strength * 110))
        case "colour":
            return functional.adjust_saturation(image, _factor(share))
        case "contrast":
            return functional.adjust_contrast(image, _factor(share))
        case "brightness":
            return functional.adjust_brightness(image, _factor(share))
        case "sharpness":
            return functional.adjust_sharpness(image, _factor(share))
        case "shear-x":
            return _affine(image, fill, shear=(0.3 * share, 0.0))
        case "shear-y":
            return _affine(image, fill, shear=(0.0, 0.3 * share))
        case "translate-x":
            return _affine(image, fill, translate=(0.45 * share * width, 0.0))
        case "translate-y":
            return _affine(image, fill, translate=(0.0, 0.45 * share * height))
        case other:
            raise AssertionError(other)


def vary_arrays(
    images: NDArray[np.uint8], operations: NDArray[np.int64], magnitudes: NDArray[np.float64], fill: Sequence[float]
) -> NDArray[np.uint8]:
    """Apply the operations of each image, uint8 [N, H, W, 3]; the given ones stay as they are.

    operations, magnitudes: int64, float64 [N, K], see `draw_operations`.
    """
    if (operations == NO_OPERATION).all():
        return images
    varied = images.copy()
    for row in np.flatnonzero((operations != NO_OPERATION).any(axis=1)):
        image = Image.fromarray(images[row])
        varied[row] = np.asarray(_in_turn(image, operations[row], magnitudes[row], fill))
    return varied


def vary_tensors(
    images: torch.Tensor, operations: NDArray[np.int64], magnitudes: NDArray[np.float64], fill: Sequence[float]
) -> torch.Tensor:
    """Do the same for images on any device, uint8 [N, H, W, 3]."""
    if (operations == NO_OPERATION).all():
        return images
    varied = images.clone()
    for row in np.flatnonzero((operations != NO_OPERATION).any(axis=1)):
        image = images[row].permute(2, 0, 1).contiguous()
        varied[row] = _in_turn(image, operations[row], magnitudes[row], fill).permute(1, 2, 0)
    return varied


def _in_turn(
    image: Picture, operations: NDArray[np.int64], magnitudes: NDArray[np.float64], fill: Sequence[float]
) -> Picture:
    for operation, magnitude in zip(operations.tolist(), magnitudes.tolist(), strict=True):
        if operation != NO_OPERATION:
            image = apply(image, operation, magnitude, fill)
    return image


def _factor(share: float) -> float:
    """Return an enhancement's factor in [0.1, 1.9]; 1 changes nothing."""
    return max(0.1, 1.0 + 0.9 * share)


def _solarize_add(image: Picture, add: int) -> Picture:
    """Make pixels below 128 brighter by `add`; torchvision has no such function."""
    if isinstance(image, Image.Image):
        table = [min(_WHITE, level + add) if level < _MIDDLE else level for level in range(256)]
        return image.point(table * 3)
    brighter = (image.to(torch.int16) + add).clamp_(max=_WHITE).to(torch.uint8)
    return torch.where(image < _MIDDLE, brighter, image)


def _affine(
    image: Picture,
    fill: Sequence[float],
    translate: tuple[float, float] = (0.0, 0.0),
    shear: tuple[float, float] = (0.0, 0.0),
) -> Picture:
    """Take each pixel (x, y) from (x + translate[0] + shear[0] y, y + translate[1] + shear[1] x) of the image."""
    return functional.affine(
        image,
        angle=0.0,
        translate=[-pixels for pixels in translate],
        scale=1.0,
        shear=[math.degrees(math.atan(slope)) for slope in shear],
        interpolation=InterpolationMode.BILINEAR,
        fill=list(fill),
        center=[0.0, 0.0],
    )
