"""Contract 3: augmentation is data. All that varies in a presentation is numbers, drawn before decoding.

A presentation is (seed, epoch, sample id). Its draws come from a counter-based generator (`draws`), so they do not depend on
its batch, on the rank that decodes it, or on earlier draws. `views` makes windows of the source of the crops that are drawn
here. An image's way: crop and resize, mirror, RandAugment's operations, mean and colour, erasing.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.base.command import UserError
from pipeline.data.boxes import area_boxes, check_ranges
from pipeline.data.dataset import Statistics
from pipeline.data.draws import COLOUR, GEOMETRY, Draws
from pipeline.data.erasing import EraseConfig, draw_erased
from pipeline.data.philox import standard_normal
from pipeline.data.rand_augment import RandAugmentConfig, draw_operations
from pipeline.data.views import Int, Views, centre_views, crop_views, f32, resized_shapes, unvaried, window_views


@dataclass(frozen=True, kw_only=True)
class ResizeStage:
    """Progressive resizing: the size of training images in the iterations below `until`.

    Args:
        until: the first iteration after the stage.
        crop: side of the square that the net sees, pixels.
        short_side: minimum and maximum of the shorter side in pixels, inclusive; left out with area-crop, which has none.
    """

    until: int = dataclasses.field(metadata={"unit": "iterations"})
    crop: int
    short_side: tuple[int, int] | None = None


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """How training images are varied.

    Args:
        kind: scale-crop (ImageNet, section 3.4 of the paper): shorter side uniform in `short_side`, random `crop` square,
            flip, colour. pad-crop (CIFAR, section 4.2): the per-pixel mean is subtracted from the whole `crop` square
            image, then `pad` zeros on each side, a random `crop` square of the result, flip. area-crop (torchvision's
            RandomResizedCrop): a box of random `area` and `ratio`, resized to the `crop` square, flip, colour. none: the
            centre `crop` of the image resized to the first `short_side`, without flip, colour or anything below.
        short_side: minimum and maximum of the shorter side in pixels, inclusive; 256 and 480 in section 3.4.
        crop: side of the square that the net sees, pixels.
        flip: mirror half of the presentations.
        colour: standard deviation of AlexNet's PCA colour coefficients (0.1 there); 0 turns them off.
        pad: pixels of zeros on each side, for pad-crop; 4 in section 4.2.
        area: minimum and maximum of the box's share of the image, for area-crop; 0.08 and 1 in torchvision and in timm.
        ratio: minimum and maximum of the box's width divided by its height, uniform in the logarithm, for area-crop.
        rand_augment: random operations on colours and geometry; none in the paper.
        erase: random erasing; none in the paper.
        stages: progressive resizing, a list such as [{until: 1000, crop: 128, short_side: [146, 274]}], in rising order
            of `until`; after the last stage `crop` and `short_side` hold. None in the paper.
    """

    kind: Literal["scale-crop", "pad-crop", "area-crop", "none"] = "scale-crop"
    short_side: tuple[int, int] = (256, 480)
    crop: int = 224
    flip: bool = True
    colour: float = 0.1
    pad: int = 4
    area: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    rand_augment: RandAugmentConfig = dataclasses.field(default_factory=RandAugmentConfig)
    erase: EraseConfig = dataclasses.field(default_factory=EraseConfig)
    stages: tuple[ResizeStage, ...] = ()

    def __post_init__(self) -> None:
        low, high = self.short_side
        if self.crop < 1 or self.pad < 0 or self.colour < 0:
            raise UserError("augment: crop must be at least 1, pad and colour must not be negative")
        if self.kind in ("scale-crop", "none") and not self.crop <= low <= high:
            raise UserError(
                f"augment: a crop of {self.crop} pixels does not fit short_side [{low}, {high}]: "
                "it must be [minimum, maximum] with crop <= minimum <= maximum"
            )
        check_ranges("augment", self.area, self.ratio)
        ends = [stage.until for stage in self.stages]
        if ends != sorted({max(1, end) for end in ends}):
            raise UserError(f"augment.stages end at {ends}: give their `until` in rising order, each at least 1")
        if ends and self.kind == "pad-crop":
            raise UserError("augment.stages resize images, and pad-crop does not: use another kind, or no stages")
        if self.kind != "area-crop" and any(stage.short_side is None for stage in self.stages):
            raise UserError(
                "augment.stages: give each stage its short_side, such as [146, 274] for a crop of 128 pixels"
            )
        for stage in self.stages:
            self._in(stage)  # checks the stage's sizes

    def spans(self, start: int, stop: int) -> list[tuple[range, AugmentConfig]]:
        """Split the iterations [start, stop) by stage: at least one (range, configuration), each of one image size."""
        parts = []
        for stage in self.stages:
            if start < min(stage.until, stop):
                parts.append((range(start, min(stage.until, stop)), self._in(stage)))
                start = parts[-1][0].stop
        if start < stop or not parts:
            parts.append((range(start, stop), dataclasses.replace(self, stages=())))
        return parts

    def _in(self, stage: ResizeStage) -> AugmentConfig:
        return dataclasses.replace(self, crop=stage.crop, short_side=stage.short_side or self.short_side, stages=())


def training_views(
    seed: int, epochs: Int, ids: Int, heights: Int, widths: Int, config: AugmentConfig, statistics: Statistics
) -> Views:
    """Draw the views of N presentations; row i depends on (seed, epochs[i], ids[i], heights[i], widths[i]) alone.

    heights, widths int64 [N]: of the decoded source images. statistics: their covariance gives the colour directions.
    Raises UserError if an image does not fit the configuration.
    """
    shapes = np.stack([heights, widths], axis=1).astype(np.int64)
    if config.kind == "none":
        return centre_views(shapes, config.short_side[0], config.crop)
    draws = Draws(seed, epochs, ids)
    geometry = draws.uniforms(GEOMETRY)
    mirror = (geometry[:, 3] < 0.5) & config.flip
    colour = pca_colour(config.colour * standard_normal(draws.words(COLOUR)[0])[:, :3], statistics)
    views = _drawn_crops(draws, shapes, geometry, config, mirror, colour)
    if config.rand_augment.operations:
        operations, magnitudes = draw_operations(draws, config.rand_augment)
        views = dataclasses.replace(views, operations=operations, magnitudes=magnitudes)
    if config.erase.probability:
        views = dataclasses.replace(views, erased=draw_erased(draws, config.crop, config.erase))
    return views


def _drawn_crops(
    draws: Draws,
    shapes: Int,
    geometry: NDArray[np.float64],
    config: AugmentConfig,
    mirror: NDArray[np.bool_],
    colour: NDArray[np.float32],
) -> Views:
    """Return the crops of `config.kind`, which `geometry` (float64 [N, 4], block GEOMETRY) decides."""
    n = len(shapes)
    if config.kind == "pad-crop":
        if n and (shapes != config.crop).any():
            height, width = shapes[(shapes != config.crop).any(axis=1)][0]
            raise UserError(
                f"pad-crop needs images of {config.crop} x {config.crop} pixels, one is {height} x {width}: "
                "set augment.crop to the images' size, or use augment.kind: scale-crop"
            )
        crop_start, corner = _integers(geometry[:, 1:3], 2 * config.pad), np.zeros_like(shapes)
        padded = shapes + 2 * config.pad
        return Views(padded, crop_start, mirror, colour, corner, shapes, f32(corner), f32(shapes), **unvaried(n))
    if config.kind == "area-crop":
        boxes = area_boxes(draws, shapes, config.area, config.ratio)
        start, sizes = boxes[:, :2], boxes[:, 2:]
        return window_views(shapes, shapes, start, start, start + sizes, sizes / config.crop, mirror, colour)
    low, high = config.short_side
    resized = resized_shapes(shapes, low + _integers(geometry[:, 0], high - low))
    crop_start = _integers(geometry[:, 1:3], resized - config.crop)
    return crop_views(shapes, resized, crop_start, config.crop, mirror, colour)


def pca_colour(coefficients: NDArray[np.float64], statistics: Statistics) -> NDArray[np.float32]:
    """Return the shift of RGB on the 0..255 scale, float32 [N, 3], for coefficients a, float64 [N, 3]: 255 P (a l).

    AlexNet (Krizhevsky et al., section 4.1) states the formula for pixels in [0, 1], hence the 255.
    """
    weighted = coefficients * statistics.eigenvalues
    # Written out, because a matrix product may round differently with N and with the machine's BLAS.
    products = [weighted[:, k, None] * statistics.eigenvectors[:, k] for k in range(3)]
    return f32(255.0 * (products[0] + products[1] + products[2]))


def _integers(uniforms: NDArray[np.float64], maximum: Int | int) -> Int:
    """Turn uniforms in [0, 1) into uniform integers in [0, maximum]."""
    return np.floor(uniforms * (np.asarray(maximum) + 1)).astype(np.int64)
