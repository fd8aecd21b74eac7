"""The pixels that nets of another origin get: whole images decoded and resized as the origin's own code does it.

Slower than DALI's graphs, which decode and resize the window of a crop alone, and round once: on real images of equal
sizes, those agree with Pillow's two uint8 passes in 98 to 99% of a net's top-1 choices.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageOps

from pipeline.data.conventions import Resampling
from pipeline.data.images import decode
from pipeline.data.views import TenCrop, View, five_crop_starts, resized_shapes

Pixels = NDArray[Any]  # 0..255: uint8 by Pillow, else float32, which torch7's bicubic lets go beyond


def view_pixels(encoded: bytes, view: View) -> Pixels:
    """Return one image as `view` shows it: RGB [crop, crop, 3], ten crops [5, crop, crop, 3], a whole image [H, W, 3].

    EXIF orientation is ignored, but for crops where `view.resizing.exif` says otherwise: whole images come in blocks of equal
    shapes, and the sample table knows the stored ones. Raises UnreadableImageError for an image that does not decode.
    """
    assert view.resizing is not None, "images for this pipeline's own nets come from DALI"
    image = decode(encoded)
    if view.resizing.exif and view.crop is not None:
        image = ImageOps.exif_transpose(image)
    image = image.convert("RGB")
    shape = np.array([[image.height, image.width]])
    resized = resized_shapes(shape, np.array([view.short_side]), view.resizing.longer_side)
    pixels = resample(image, int(resized[0, 0]), int(resized[0, 1]), view.resizing.resampling)
    if view.crop is None:
        return pixels
    starts = five_crop_starts(resized, view.crop, view.resizing.corner)[0]
    crops = [pixels[y : y + view.crop, x : x + view.crop] for y, x in starts]
    return np.stack(crops) if isinstance(view, TenCrop) else crops[4]


def resample(image: Image.Image, height: int, width: int, resampling: Resampling) -> Pixels:
    """Return an RGB image resized to [height, width, 3]; see `conventions.Resampling`."""
    if resampling == "pillow-bilinear":
        return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
    if resampling == "pillow-bicubic":
        return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))
    pixels = np.asarray(image, np.float32)
    if resampling == "opencv-bilinear":
        planes = torch.from_numpy(pixels).permute(2, 0, 1)[None]
        resized = F.interpolate(planes, size=(height, width), mode="bilinear", align_corners=False, antialias=False)
        return resized[0].permute(1, 2, 0).numpy()
    # torch7 resizes rows first, then columns.
    return _torch7_cubic(_torch7_cubic(pixels, width, axis=1), height, axis=0)


def _torch7_cubic(pixels: NDArray[np.float32], size: int, axis: int) -> NDArray[np.float32]:
    """Resize one axis of [H, W, 3] as torch/image does (generic/image.c, Main_scaleCubic_rowcol).

    The cubic through four neighbours (Catmull-Rom); first and last pixels stay where they are; beyond the border the image
    goes on as a straight line.
    """
    length = pixels.shape[axis]
    if size == length:
        return pixels
    if length == 1:
        return np.repeat(pixels, size, axis)
    scale = np.float32(length - 1) / np.float32(max(size - 1, 1))
    place = np.arange(size, dtype=np.float32) * scale
    left = np.minimum(place.astype(np.int64), length - 2)
    x = (place - left).astype(np.float32).reshape([-1 if a == axis else 1 for a in range(3)])
    p1, p2 = np.take(pixels, left, axis), np.take(pixels, left + 1, axis)
    p0, p3 = np.take(pixels, np.maximum(left - 1, 0), axis), np.take(pixels, np.minimum(left + 2, length - 1), axis)
    first, last = ((edge).reshape(x.shape) for edge in (left == 0, left == length - 2))
    p0, p3 = np.where(first, 2 * p1 - p2, p0), np.where(last, 2 * p2 - p1, p3)
    a1, a2, a3 = p2 - p0, 2 * p0 - 5 * p1 + 4 * p2 - p3, 3 * (p1 - p2) + p3 - p0
    resized = p1 + np.float32(0.5) * x * (a1 + x * (a2 + x * a3))
    if size > 1:  # the last pixel exactly: float32 places may lie beside it
        end = tuple(-1 if a == axis else slice(None) for a in range(3))
        resized[end] = pixels[end]
    return resized.astype(np.float32, copy=False)
