"""Computes the pixel statistics of the training split: per-pixel mean image and RGB covariance (paper: section 3.4).

All sums are integers, so the result is the same to the last bit for any number of workers, in any order.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.data.dataset import Statistics


@dataclass(frozen=True, kw_only=True)
class StatisticsPlan:
    """What is averaged: centre crops of `size` pixels of images resized to shorter side `short_side`.

    short_side None: no resizing, every image is `size` x `size` already (CIFAR-10). images: how many images from the start
    of the shuffled training split (a seeded random sample); None is all.
    """

    size: int = 224
    short_side: int | None = 256
    images: int | None = None


def centre_crop(image: Image.Image, size: int, short_side: int | None) -> NDArray[np.uint8]:
    """Return the centre crop of the resized image (bilinear, antialiased): uint8 [size, size, 3], 0..255, RGB.

    Only the crop is resampled: its window is mapped back to source pixels.
    """
    if image.mode != "RGB":  # converting RGB would copy it
        image = image.convert("RGB")
    if short_side is None:
        return np.asarray(image)
    shortest = min(image.size)

    def window(source: int) -> tuple[float, float]:
        resized = round(source * short_side / shortest)
        scale = source / resized  # source pixels per pixel of the resized image
        start = round((resized - size) / 2) * scale
        return start, min(start + size * scale, source)

    (left, right), (top, bottom) = window(image.width), window(image.height)
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, right, bottom)))


class PixelSums:
    """Integer sums over `images` crops: pixels uint64 [S, S, 3]; products uint64 [3, 3], of RGB 0..255."""

    def __init__(self, size: int) -> None:
        self.size, self.images = size, 0
        self.pixels = np.zeros((size, size, 3), np.uint64)
        self.products = np.zeros((3, 3), np.uint64)

    def add(self, crop: NDArray[np.uint8]) -> None:
        """Count one crop: uint8 [S, S, 3]."""
        self.pixels += crop
        # Integers in float64 stay exact up to 2**53 (here at most 255**2 * S**2). einsum, because BLAS would start threads
        # in every worker; dot products of contiguous colours, because the narrow matrix product takes three times as long.
        colours = crop.reshape(-1, 3).T.astype(np.float64, order="C")
        for row in range(3):
            for column in range(row, 3):
                product = np.uint64(np.einsum("n,n->", colours[row], colours[column]))
                self.products[row, column] += product
                if row != column:
                    self.products[column, row] += product
        self.images += 1

    def merge(self, images: int, pixels: NDArray[np.uint64], products: NDArray[np.uint64]) -> None:
        self.images += images
        self.pixels += pixels
        self.products += products

    def statistics(self) -> Statistics:
        """Return the mean image and the eigen-decomposition of the [0, 1] RGB covariance, eigenvalues in descending order.

        The sign of an eigenvector is arbitrary; its largest component (by absolute value) is made positive.
        """
        mean_image = (self.pixels / self.images).astype(np.float32)
        count = self.images * self.size**2
        # In Python's integers (object), which are exact; float64 would cancel digits.
        sums, products = self.pixels.sum(axis=(0, 1)).astype(object), self.products.astype(object)
        covariance = (count * products - np.outer(sums, sums)) / (count**2 * 255**2)
        eigenvalues, eigenvectors = np.linalg.eigh(covariance.astype(np.float64))
        eigenvalues, eigenvectors = eigenvalues[::-1].copy(), eigenvectors[:, ::-1].copy()
        largest = np.abs(eigenvectors).argmax(axis=0)
        eigenvectors *= np.where(eigenvectors[largest, range(3)] < 0, -1.0, 1.0)
        return Statistics(mean_image=mean_image, eigenvalues=eigenvalues, eigenvectors=eigenvectors)
