"""Contract 3: augmentation is data. Scale, crop, flip and colour of a presentation are numbers, drawn before decoding.

A presentation is (seed, epoch, sample id). Its draws come from a counter-based generator, so they do not depend on its
batch, on the rank that decodes it, or on earlier draws. The geometry is that of resize-then-crop. The window of the source
that the crop needs is known before decoding, so the loader decodes and resamples that window alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.base.command import UserError
from pipeline.data.conventions import CornerRounding, Resizing, SideRounding
from pipeline.data.dataset import Statistics
from pipeline.data.philox import philox, standard_normal, uniform

AUGMENT_STREAM = 2  # beside order.ORDER_STREAM: the second half of the Philox key

Int = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class ResizeStage:
    """Progressive resizing: the size of training images in the iterations below `until`.

    Args:
        until: the first iteration after the stage.
        crop: side of the square that the net sees, pixels.
        short_side: minimum and maximum of the shorter side in pixels, inclusive.
    """

    until: int = dataclasses.field(metadata={"unit": "iterations"})
    crop: int
    short_side: tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """How training images are varied.

    Args:
        kind: scale-crop (ImageNet, section 3.4 of the paper): shorter side uniform in `short_side`, random `crop` square,
            flip, colour. pad-crop (CIFAR, section 4.2): the per-pixel mean is subtracted from the whole `crop` square
            image, then `pad` zeros on each side, a random `crop` square of the result, flip. none: the centre `crop` of
            the image resized to the first `short_side`, without flip or colour.
        short_side: minimum and maximum of the shorter side in pixels, inclusive; 256 and 480 in section 3.4.
        crop: side of the square that the net sees, pixels.
        flip: mirror half of the presentations.
        colour: standard deviation of AlexNet's PCA colour coefficients (0.1 there); 0 turns them off.
        pad: pixels of zeros on each side, for pad-crop; 4 in section 4.2.
        stages: progressive resizing, a list such as [{until: 1000, crop: 128, short_side: [146, 274]}], in rising order
            of `until`; after the last stage `crop` and `short_side` hold. None in the paper.
    """

    kind: Literal["scale-crop", "pad-crop", "none"] = "scale-crop"
    short_side: tuple[int, int] = (256, 480)
    crop: int = 224
    flip: bool = True
    colour: float = 0.1
    pad: int = 4
    stages: tuple[ResizeStage, ...] = ()

    def __post_init__(self) -> None:
        low, high = self.short_side
        if self.crop < 1 or self.pad < 0 or self.colour < 0:
            raise UserError("augment: crop must be at least 1, pad and colour must not be negative")
        if self.kind != "pad-crop" and not self.crop <= low <= high:
            raise UserError(
                f"augment: a crop of {self.crop} pixels does not fit short_side [{low}, {high}]: "
                "it must be [minimum, maximum] with crop <= minimum <= maximum"
            )
        ends = [stage.until for stage in self.stages]
        if ends != sorted({max(1, end) for end in ends}):
            raise UserError(f"augment.stages end at {ends}: give their `until` in rising order, each at least 1")
        if ends and self.kind == "pad-crop":
            raise UserError("augment.stages resize images, and pad-crop does not: use kind scale-crop, or no stages")
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
        return dataclasses.replace(self, crop=stage.crop, short_side=stage.short_side, stages=())


@dataclass(frozen=True, kw_only=True)
class _Crops:
    """Evaluation: crops of the image resized to shorter side `short_side` (256 in the paper).

    resizing: None: as training resizes; else as the origin of other weights does (`pipeline.data.origin_pixels`).
    """

    short_side: int = 256
    crop: int = 224
    resizing: Resizing | None = None

    def __post_init__(self) -> None:
        if not 0 < self.crop <= self.short_side:
            raise UserError(
                f"a crop of {self.crop} pixels does not fit images with a shorter side of {self.short_side}"
            )


class CenterCrop(_Crops):
    """Evaluation: the centre `crop` square of the image resized to shorter side `short_side`."""


class TenCrop(_Crops):
    """Evaluation: four corners and centre of the image resized to shorter side `short_side`, as five crops.

    The other five are their mirror images; `images.flip(-2)` of NHWC on the device costs nothing.
    """


@dataclass(frozen=True, kw_only=True)
class WholeImage:
    """Evaluation: the whole image resized to shorter side `short_side`, for the fully convolutional test (section 3.4).

    resizing: as in `CenterCrop`.
    """

    short_side: int
    resizing: Resizing | None = None
    crop: ClassVar[None] = None

    def __post_init__(self) -> None:
        if self.short_side < 1:
            raise UserError(f"images cannot be resized to a shorter side of {self.short_side} pixels: give at least 1")


View = CenterCrop | TenCrop | WholeImage


@dataclass(frozen=True)
class Views:
    """Geometry and colour of N presentations. All positions and sizes are (y, x), in pixels.

    resized int64 [N, 2]: size of the whole resized image (pad-crop: of the padded image).
    crop_start int64 [N, 2]: corner of the crop in it. mirror bool [N]: whether the crop is flipped left to right.
    colour float32 [N, 3]: shift of RGB on the 0..255 scale, which is added.
    window_start, window_shape int64 [N, 2]: the part of the source that is decoded.
    roi_start, roi_end float32 [N, 2]: where the crop lies in the decoded window (edges, not pixel centres).
    """

    resized: Int
    crop_start: Int
    mirror: NDArray[np.bool_]
    colour: NDArray[np.float32]
    window_start: Int
    window_shape: Int
    roi_start: NDArray[np.float32]
    roi_end: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.mirror)

    def rows(self, rows: slice | Int) -> Views:
        return Views(*(getattr(self, field.name)[rows] for field in dataclasses.fields(self)))


def training_views(
    seed: int, epochs: Int, ids: Int, heights: Int, widths: Int, config: AugmentConfig, statistics: Statistics
) -> Views:
    """Draw the views of N presentations; row i depends on (seed, epochs[i], ids[i], heights[i], widths[i]) alone.

    heights, widths int64 [N]: of the decoded source images. statistics: their covariance gives the colour directions.
    Raises UserError if an image does not fit the configuration.
    """
    shapes = np.stack([heights, widths], axis=1).astype(np.int64)
    n = len(shapes)
    if config.kind == "none":
        return centre_views(shapes, config.short_side[0], config.crop)
    counters = np.zeros((2, n, 4), np.uint64)
    counters[:, :, 0], counters[:, :, 1] = ids, epochs
    counters[1, :, 2] = 1  # block 0: geometry; block 1: colour
    words = philox((seed, AUGMENT_STREAM), counters.reshape(2 * n, 4)).reshape(2, n, 4)
    geometry = uniform(words[0])
    mirror = (geometry[:, 3] < 0.5) & config.flip
    colour = pca_colour(config.colour * standard_normal(words[1])[:, :3], statistics)
    if config.kind == "pad-crop":
        if n and (shapes != config.crop).any():
            height, width = shapes[(shapes != config.crop).any(axis=1)][0]
            raise UserError(
                f"pad-crop needs images of {config.crop} x {config.crop} pixels, one is {height} x {width}: "
                "set augment.crop to the images' size, or use augment.kind: scale-crop"
            )
        crop_start, corner = _integers(geometry[:, 1:3], 2 * config.pad), np.zeros_like(shapes)
        padded = shapes + 2 * config.pad
        return Views(padded, crop_start, mirror, colour, corner, shapes, _f32(corner), _f32(shapes))
    low, high = config.short_side
    resized = resized_shapes(shapes, low + _integers(geometry[:, 0], high - low))
    crop_start = _integers(geometry[:, 1:3], resized - config.crop)
    return _views(shapes, resized, crop_start, config.crop, mirror, colour)


def centre_views(shapes: Int, short_side: int, crop: int) -> Views:
    """Return the centre crop of each image (shapes int64 [N, 2]) resized to shorter side `short_side`; no flip, no colour."""
    n = len(shapes)
    resized = resized_shapes(shapes, np.full(n, short_side))
    crop_start = five_crop_starts(resized, crop)[:, 4]
    return _views(shapes, resized, crop_start, crop, np.zeros(n, bool), np.zeros((n, 3), np.float32))


def whole_views(shapes: Int, short_side: int) -> Views:
    """Return the whole of each image (shapes int64 [N, 2]) resized to shorter side `short_side`; no flip, no colour."""
    n, corner = len(shapes), np.zeros_like(shapes)
    resized = resized_shapes(shapes, np.full(n, short_side))
    unchanged = (np.zeros(n, bool), np.zeros((n, 3), np.float32))
    return Views(resized, corner, *unchanged, corner, shapes, _f32(corner), _f32(shapes))


def shape_blocks(shapes: Int, short_sides: Sequence[int], size: int, rounding: SideRounding = "round") -> list[Int]:
    """Split the samples 0..N-1 into blocks of at most `size` images that have equal shapes at each of `short_sides`.

    shapes: int64 [N, 2], heights and widths of all samples. rounding: as in `resized_shapes`. Every sample is in one block.
    The blocks depend on the arguments alone, so they are the same on any number of processes.
    """
    resized = [resized_shapes(shapes, np.full(len(shapes), short_side), rounding) for short_side in short_sides]
    _, group = np.unique(np.concatenate(resized, axis=1), axis=0, return_inverse=True)
    ids = np.argsort(group, kind="stable")
    groups = np.split(ids, np.flatnonzero(np.diff(group[ids])) + 1)
    return [part[start : start + size] for part in groups for start in range(0, len(part), size)]


def resized_shapes(shapes: Int, short_sides: Int, rounding: SideRounding = "round") -> Int:
    """Return int64 [N, 2]: sizes of images (shapes int64 [N, 2]) with the shorter side `short_sides` [N].

    rounding: of the longer side; here to the nearest pixel, half a pixel up. Others see `conventions.SideRounding`.
    """
    shorter, wanted = shapes.min(axis=1, keepdims=True), np.asarray(short_sides, np.int64)[:, None]
    if rounding == "floor-ratio":
        return (shapes / shorter * wanted).astype(np.int64)
    if rounding == "floor":
        return shapes * wanted // shorter
    return (2 * shapes * wanted + shorter) // (2 * shorter)


def five_crop_starts(resized: Int, crop: int, corner: CornerRounding = "even") -> Int:
    """Return int64 [N, 5, 2]: corners of the crops top left, top right, bottom left, bottom right, centre (torchvision's).

    corner: how the centre's is rounded.
    """
    free = resized - crop
    assert (free >= 0).all()
    corners = [free * np.array(place) for place in ((0, 0), (0, 1), (1, 0), (1, 1))]
    rounded = {"even": np.rint, "ceil": np.ceil, "floor": np.floor}[corner]
    return np.stack([*corners, rounded(free / 2).astype(np.int64)], axis=1)


def pca_colour(coefficients: NDArray[np.float64], statistics: Statistics) -> NDArray[np.float32]:
    """Return the shift of RGB on the 0..255 scale, float32 [N, 3], for coefficients a, float64 [N, 3]: 255 P (a l).

    AlexNet (Krizhevsky et al., section 4.1) states the formula for pixels in [0, 1], hence the 255.
    """
    weighted = coefficients * statistics.eigenvalues
    # Written out, because a matrix product may round differently with N and with the machine's BLAS.
    products = [weighted[:, k, None] * statistics.eigenvectors[:, k] for k in range(3)]
    return _f32(255.0 * (products[0] + products[1] + products[2]))


def _views(
    shapes: Int, resized: Int, crop_start: Int, crop: int, mirror: NDArray[np.bool_], colour: NDArray[np.float32]
) -> Views:
    """Map crops of resized images back to the source: the window to decode, and where the crop lies in it."""
    scale = shapes / resized  # per axis, as in Pillow and torchvision: the rounded size spans the whole image
    start, end = crop_start * scale, (crop_start + crop) * scale
    # The triangular filter reaches max(1, scale) beyond the crop, libjpeg's chroma upsampling one pixel more.
    margin = 2 + np.ceil(scale)
    window_start = np.maximum(np.floor(start - margin), 0).astype(np.int64)
    window_end = np.minimum(np.ceil(end + margin), shapes).astype(np.int64)
    return Views(
        resized, crop_start, mirror, colour,
        window_start, window_end - window_start, _f32(start - window_start), _f32(end - window_start),
    )  # fmt: skip


def _integers(uniforms: NDArray[np.float64], maximum: Int | int) -> Int:
    """Turn uniforms in [0, 1) into uniform integers in [0, maximum]."""
    return np.floor(uniforms * (np.asarray(maximum) + 1)).astype(np.int64)


def _f32(values: NDArray[Any]) -> NDArray[np.float32]:
    return values.astype(np.float32)
