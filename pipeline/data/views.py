"""Which part of its image a view shows: sizes, crops and windows of the source, for training and for evaluation.

Everything here is arithmetic on sizes: the geometry is that of resize-then-crop. The window of the source that a crop needs
is known before decoding, so the loader decodes and resamples that window alone. Nothing is drawn: see `augment`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from pipeline.base.command import UserError
from pipeline.data.conventions import CornerRounding, Resizing, SideRounding

Int = NDArray[np.int64]


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
    """What is done to each of N presentations. All positions and sizes are (y, x), in pixels.

    resized int64 [N, 2]: size of the whole resized image (pad-crop: of the padded image; area-crop: of the source).
    crop_start int64 [N, 2]: corner of the crop in it. mirror bool [N]: whether the crop is flipped left to right.
    colour float32 [N, 3]: shift of RGB on the 0..255 scale, which is added.
    window_start, window_shape int64 [N, 2]: the part of the source that is decoded.
    roi_start, roi_end float32 [N, 2]: where the crop lies in the decoded window (edges, not pixel centres).
    operations int64 [N, K], magnitudes float64 [N, K]: of RandAugment, see `draw_operations`; K is 0 without it.
    erased int64 [N, 4]: top, left, height and width of the box of the crop that is erased; height 0: none.
    """

    resized: Int
    crop_start: Int
    mirror: NDArray[np.bool_]
    colour: NDArray[np.float32]
    window_start: Int
    window_shape: Int
    roi_start: NDArray[np.float32]
    roi_end: NDArray[np.float32]
    operations: Int
    magnitudes: NDArray[np.float64]
    erased: Int

    def __len__(self) -> int:
        return len(self.mirror)

    def rows(self, rows: slice | Int) -> Views:
        return Views(*(getattr(self, field.name)[rows] for field in dataclasses.fields(self)))


def centre_views(shapes: Int, short_side: int, crop: int) -> Views:
    """Return the centre crop of each image (shapes int64 [N, 2]) resized to shorter side `short_side`; no flip, no colour."""
    n = len(shapes)
    resized = resized_shapes(shapes, np.full(n, short_side))
    crop_start = five_crop_starts(resized, crop)[:, 4]
    return crop_views(shapes, resized, crop_start, crop, np.zeros(n, bool), np.zeros((n, 3), np.float32))


def whole_views(shapes: Int, short_side: int) -> Views:
    """Return the whole of each image (shapes int64 [N, 2]) resized to shorter side `short_side`; no flip, no colour."""
    n, corner = len(shapes), np.zeros_like(shapes)
    resized = resized_shapes(shapes, np.full(n, short_side))
    unchanged = (np.zeros(n, bool), np.zeros((n, 3), np.float32))
    return Views(resized, corner, *unchanged, corner, shapes, f32(corner), f32(shapes), **unvaried(n))


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


def crop_views(
    shapes: Int, resized: Int, crop_start: Int, crop: int, mirror: NDArray[np.bool_], colour: NDArray[np.float32]
) -> Views:
    """Map crops of resized images back to the source: the window to decode, and where the crop lies in it."""
    scale = shapes / resized  # per axis, as in Pillow and torchvision: the rounded size spans the whole image
    start, end = crop_start * scale, (crop_start + crop) * scale
    return window_views(shapes, resized, crop_start, start, end, scale, mirror, colour)


def window_views(
    shapes: Int,
    resized: Int,
    crop_start: Int,
    start: NDArray[Any],
    end: NDArray[Any],
    scale: NDArray[np.float64],
    mirror: NDArray[np.bool_],
    colour: NDArray[np.float32],
) -> Views:
    """Return views whose crops lie between `start` and `end` in the source, each number [N, 2].

    scale: pixels of the source for one of the crop, float64 [N, 2].
    """
    # The triangular filter reaches max(1, scale) beyond the crop, libjpeg's chroma upsampling one pixel more.
    margin = 2 + np.ceil(scale)
    window_start = np.maximum(np.floor(start - margin), 0).astype(np.int64)
    window_end = np.minimum(np.ceil(end + margin), shapes).astype(np.int64)
    return Views(
        resized, crop_start, mirror, colour,
        window_start, window_end - window_start, f32(start - window_start), f32(end - window_start),
        **unvaried(len(shapes)),
    )  # fmt: skip


def unvaried(n: int) -> dict[str, Any]:
    """Return the fields of N views without operations and erasing."""
    return {
        "operations": np.zeros((n, 0), np.int64),
        "magnitudes": np.zeros((n, 0)),
        "erased": np.zeros((n, 4), np.int64),
    }


def f32(values: NDArray[Any]) -> NDArray[np.float32]:
    return values.astype(np.float32)
