"""RandAugment's operations against timm's definitions, written down here with Pillow alone (timm/data/auto_augment.py)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps

from pipeline.data.operations import apply, vary_arrays, vary_tensors
from pipeline.data.rand_augment import NO_OPERATION, OPERATIONS
from tests.images import photograph

FILL = (124, 116, 104)
MAGNITUDES = (0.0, 0.02, 2.5, -2.5, 6.31, -6.31, 9.99, 10.0, -10.0)
BILINEAR, AFFINE = Image.Resampling.BILINEAR, Image.Transform.AFFINE
RESAMPLED = ("rotate", "shear-x", "shear-y", "translate-x", "translate-y")
ROUNDED_OTHERWISE = ("auto-contrast", "colour", "contrast")


def warped(image: Image.Image, matrix: tuple[float, ...]) -> Image.Image:
    return image.transform(image.size, AFFINE, matrix, BILINEAR, fillcolor=FILL)


def solarize_add(image: Image.Image, add: int) -> Image.Image:
    return image.point([min(255, i + add) if i < 128 else i for i in range(256)] * 3)


def enhanced(enhancer: type) -> Callable[[Image.Image, float], Image.Image]:
    return lambda image, level: enhancer(image).enhance(max(0.1, 1.0 + level / 10 * 0.9))


# By name: (image, level with its direction) -> image.
TIMM: dict[str, Callable[[Image.Image, float], Image.Image]] = {
    "auto-contrast": lambda image, _: ImageOps.autocontrast(image),
    "equalize": lambda image, _: ImageOps.equalize(image),
    "invert": lambda image, _: ImageOps.invert(image),
    "rotate": lambda image, level: image.rotate(level / 10 * 30, resample=BILINEAR, fillcolor=FILL),
    "posterize": lambda image, level: ImageOps.posterize(image, max(1, 4 - int(abs(level) / 10 * 4))),
    "solarize": lambda image, level: ImageOps.solarize(image, 256 - min(256, int(abs(level) / 10 * 256))),
    "solarize-add": lambda image, level: solarize_add(image, min(128, int(abs(level) / 10 * 110))),
    "colour": enhanced(ImageEnhance.Color),
    "contrast": enhanced(ImageEnhance.Contrast),
    "brightness": enhanced(ImageEnhance.Brightness),
    "sharpness": enhanced(ImageEnhance.Sharpness),
    "shear-x": lambda image, level: warped(image, (1, level / 10 * 0.3, 0, 0, 1, 0)),
    "shear-y": lambda image, level: warped(image, (1, 0, 0, level / 10 * 0.3, 1, 0)),
    "translate-x": lambda image, level: warped(image, (1, 0, level / 10 * 0.45 * image.size[0], 0, 1, 0)),
    "translate-y": lambda image, level: warped(image, (1, 0, 0, 0, 1, level / 10 * 0.45 * image.size[1])),
}


def pictures() -> list[Image.Image]:
    """Photographs, and pictures on which operations have special cases: one colour, few colours, the extremes."""
    random = np.random.default_rng(0)
    arrays = [
        np.full((48, 48, 3), 200),
        random.choice([0, 255], (48, 48, 3)),
        random.integers(100, 104, (48, 48, 3)),
        random.integers(0, 256, (48, 48, 3)),
    ]
    return [photograph(3, 64, 64), photograph(4, 33, 33)] + [Image.fromarray(one.astype(np.uint8)) for one in arrays]


@pytest.mark.parametrize("name", OPERATIONS)
def test_pixels_on_a_cpu_are_timms(name: str) -> None:
    for image in pictures():
        for level in MAGNITUDES:
            found = np.asarray(apply(image, OPERATIONS.index(name), level, FILL))
            np.testing.assert_array_equal(found, np.asarray(TIMM[name](image, level)), err_msg=f"level {level}")


@pytest.mark.parametrize("name", OPERATIONS)
def test_tensors_of_a_gpu_get_the_same_pixels(name: str) -> None:
    """Played by the CPU. A resampled pixel differs by a grey level, or by more along the line where image and fill meet."""
    number = OPERATIONS.index(name)
    for image in pictures():
        tensor = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        for level in MAGNITUDES:
            expected = np.asarray(apply(image, number, level, FILL)).astype(int)
            found = apply(tensor, number, level, FILL).permute(1, 2, 0).numpy()
            assert found.dtype == np.uint8 and found.shape == expected.shape
            error = np.abs(found - expected)
            if name in RESAMPLED:
                assert (error.max(axis=2) > 1).mean() < 0.06, level
            else:
                assert error.max() <= (name in ROUNDED_OTHERWISE), level


def test_the_operations_of_an_image_do_not_depend_on_the_others() -> None:
    """For arrays and tensors: images alone, in another order, and beside images that nothing is done to."""
    random = np.random.default_rng(1)
    images = random.integers(0, 256, (24, 20, 20, 3)).astype(np.uint8)
    operations = random.integers(NO_OPERATION, len(OPERATIONS), (24, 2))
    operations[5] = NO_OPERATION
    magnitudes, order, before = random.uniform(-10, 10, (24, 2)), random.permutation(24), images.copy()
    for vary in (vary_arrays, lambda pixels, *rest: vary_tensors(torch.from_numpy(pixels), *rest).numpy()):
        whole = vary(images, operations, magnitudes, FILL)
        shuffled = vary(images[order], operations[order], magnitudes[order], FILL)
        np.testing.assert_array_equal(shuffled, whole[order])
        for row in range(24):
            one = slice(row, row + 1)
            np.testing.assert_array_equal(vary(images[one], operations[one], magnitudes[one], FILL), whole[one])
        np.testing.assert_array_equal(whole[5], images[5])
        np.testing.assert_array_equal(images, before)
        assert (whole != images).any()
