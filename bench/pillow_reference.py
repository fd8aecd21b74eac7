"""The slow, simple reference: resize the whole image with Pillow, then crop, flip, add the colour, subtract the mean.

It uses only what was drawn of a view (resized size, crop corner, mirror, colour), and not its window geometry.
"""

from __future__ import annotations

import io

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image


def decoded(encoded: bytes) -> Image.Image:
    return Image.open(io.BytesIO(encoded)).convert("RGB")


def resized(encoded: bytes, shape: NDArray[np.int64]) -> Image.Image:
    height, width = (int(side) for side in shape)
    return decoded(encoded).resize((width, height), Image.Resampling.BILINEAR)


def crop(image: Image.Image, start: NDArray[np.int64], side: int) -> Image.Image:
    y, x = (int(place) for place in start)
    return image.crop((x, y, x + side, y + side))


def exact_crop(
    encoded: bytes, shape: NDArray[np.int64], start: NDArray[np.int64], side: int, mirror: bool
) -> NDArray[np.float64]:
    """Resize, crop and flip with torch in float64, without rounding (Pillow rounds after each of its two passes)."""
    pixels = torch.from_numpy(np.array(decoded(encoded))).permute(2, 0, 1)[None].double()
    height, width = (int(length) for length in shape)
    whole = torch.nn.functional.interpolate(pixels, size=(height, width), mode="bilinear", antialias=True)
    y, x = (int(place) for place in start)
    image = whole[0, :, y : y + side, x : x + side].permute(1, 2, 0).numpy()
    return image[:, ::-1] if mirror else image


def scale_crop(
    encoded: bytes,
    shape: NDArray[np.int64],
    start: NDArray[np.int64],
    side: int,
    mirror: bool,
    colour: NDArray[np.float32],
    mean: NDArray[np.float32],
) -> NDArray[np.float32]:
    image = crop(resized(encoded, shape), start, side)
    if mirror:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(image, np.float32) + colour - mean


def psnr(images: NDArray[np.float32], reference: NDArray[np.float32]) -> float:
    """Return the peak signal-to-noise ratio in dB, for a peak of 255."""
    error = float(np.mean((images.astype(np.float64) - reference) ** 2))
    return float("inf") if error == 0 else 10 * np.log10(255**2 / error)
