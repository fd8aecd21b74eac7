"""The pixels that nets of other origins get, against the origins' own libraries (bench/origins.py tells their code)."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from torchvision import transforms

from bench import origins
from pipeline.base.command import UserError
from pipeline.data.conventions import CAFFE, CONVENTIONS, FB, OURS, PYCLS, TIMM, TORCHVISION, Convention
from pipeline.data.graphs import Normalization
from pipeline.data.loader import LoaderConfig, evaluation_batches
from pipeline.data.origin_pixels import view_pixels
from pipeline.data.views import CenterCrop, TenCrop, View, WholeImage, five_crop_starts, resized_shapes
from tests.images import encode, photograph
from tests.pipeline.data.small_datasets import write_dataset

SHAPES = ((97, 130), (130, 97), (64, 200), (72, 72), (61, 80))  # height, width; the shorter side grows and shrinks
CPU = torch.device("cpu")


def photographs() -> list[bytes]:
    """Two real photographs, and synthetic images of odd sizes, as PNG: what is compared is resizing, not decoding."""
    from sklearn.datasets import load_sample_images

    real = [Image.fromarray(image[:301, :400]) for image in load_sample_images().images]
    return [encode(image, "PNG") for image in (*real, *(photograph(1, *shape) for shape in SHAPES))]


@pytest.fixture(scope="module")
def images() -> list[bytes]:
    return photographs()


def centre(encoded: bytes, convention: Convention, short_side: int = 72, crop: int = 64) -> NDArray[np.float32]:
    view = CenterCrop(short_side=short_side, crop=crop, resizing=convention.resizing)
    return view_pixels(encoded, view).astype(np.float32)


def denormalized(tensor: torch.Tensor) -> NDArray[np.float32]:
    """[H, W, 3] of 0..255, of what the origins' code normalized: [3, H, W]."""
    std, mean = (255 * torch.tensor(values).view(3, 1, 1) for values in (origins.STD, origins.MEAN))
    return (tensor * std + mean).permute(1, 2, 0).numpy()


@pytest.mark.parametrize(("convention", "interpolation"), [(TORCHVISION, "bilinear"), (TIMM, "bicubic")])
def test_pillows_pixels_are_torchvisions_exactly(
    images: list[bytes], convention: Convention, interpolation: str
) -> None:
    for encoded in images:
        image = Image.open(io.BytesIO(encoded))
        resized = transforms.Resize(72, transforms.InterpolationMode(interpolation))(image)
        resizing = convention.resizing
        np.testing.assert_array_equal(centre(encoded, convention), np.asarray(transforms.CenterCrop(64)(resized)))
        whole = view_pixels(encoded, WholeImage(short_side=72, resizing=resizing))
        np.testing.assert_array_equal(whole, np.asarray(resized))
        five = view_pixels(encoded, TenCrop(short_side=72, crop=64, resizing=resizing))
        np.testing.assert_array_equal(five, np.stack([np.asarray(one) for one in transforms.FiveCrop(64)(resized)]))


def test_the_normalized_crop_is_torchvisions(images: list[bytes]) -> None:
    assert TORCHVISION.mean is not None
    normalization = Normalization(*(np.array(values, np.float32) for values in (TORCHVISION.mean, TORCHVISION.std)))
    for encoded in images:
        pixels = centre(encoded, TORCHVISION)[None]
        result = np.empty_like(pixels)
        normalization.on_cpu(pixels, np.zeros((1, 3), np.float32), result)
        theirs = origins.torchvision_crop(encoded, 72, 64).permute(1, 2, 0)
        np.testing.assert_allclose(result[0], theirs, atol=1e-6)


def test_fbs_pixels_are_torch7s(images: list[bytes]) -> None:
    for encoded in images:
        theirs = denormalized(origins.fb_crop(encoded, 72, 64))
        np.testing.assert_allclose(centre(encoded, FB), theirs, atol=2e-3)


def opencv_bilinear(image: NDArray[np.uint8], height: int, width: int) -> NDArray[np.float64]:
    """OpenCV's INTER_LINEAR as its documentation has it: pixel centres at halves, two neighbours, the border repeated."""
    result = image.astype(np.float64)
    for axis, size in ((0, height), (1, width)):
        length = result.shape[axis]
        place = np.clip((np.arange(size) + 0.5) * length / size - 0.5, 0, length - 1)
        left = np.minimum(np.floor(place).astype(int), max(length - 2, 0))
        share = (place - left).reshape([-1 if a == axis else 1 for a in range(3)])
        right = np.minimum(left + 1, length - 1)
        result = (1 - share) * result.take(left, axis) + share * result.take(right, axis)
    return result


def test_opencvs_pixels_are_the_formulas(images: list[bytes]) -> None:
    for encoded in images:
        image = np.asarray(Image.open(io.BytesIO(encoded)))
        h, w = image.shape[:2]
        scale = 72 / min(h, w)
        for convention, corner, longer in ((PYCLS, math.ceil, int), (CAFFE, math.floor, lambda side: int(side + 0.5))):
            height, width = (72 if side == min(h, w) else longer(side * scale) for side in (h, w))
            y, x = corner((height - 64) / 2), corner((width - 64) / 2)
            expected = opencv_bilinear(image, height, width)[y : y + 64, x : x + 64]
            np.testing.assert_allclose(centre(encoded, convention), expected, atol=0.01)


def test_opencvs_pixels_are_opencvs(images: list[bytes]) -> None:
    for encoded in images:
        np.testing.assert_allclose(centre(encoded, PYCLS), denormalized(origins.pycls_crop(encoded, 72, 64)), atol=0.01)
        theirs = origins.caffe_crop(encoded, 72, 64).flip(0).permute(1, 2, 0).numpy() + origins.CAFFE_MEAN_BGR[::-1]
        np.testing.assert_allclose(centre(encoded, CAFFE), theirs, atol=0.01)


@given(st.integers(1, 3000), st.integers(1, 3000), st.sampled_from([224, 256, 235, 640]))
def test_sizes_and_corners_are_the_origins(height: int, width: int, side: int) -> None:
    """By the expressions of their sources."""
    shapes, sides, crop = np.array([[height, width]]), np.array([side]), 224
    short, long = min(height, width), max(height, width)
    torchvisions = int(side * long / short)
    ratios = int(height / width * side) if width < height else int(width / height * side)
    for rounding, longer in (("floor", torchvisions), ("floor-ratio", ratios)):
        resized = resized_shapes(shapes, sides, rounding)[0]
        assert sorted(resized.tolist()) == sorted([side, longer]), rounding
        for corner, rounded in (("even", round), ("ceil", math.ceil), ("floor", math.floor)):
            start = five_crop_starts(resized[None], crop, corner)[0, 4]
            assert start.tolist() == [rounded((length - crop) / 2) for length in resized.tolist()]


def test_one_pixel_is_lost_where_the_ratio_is_rounded_first() -> None:
    """Not at a short side of 256, a power of two, but at 480: 480 * 145 / 116 is 600, and (145 / 116) * 480 may be less."""
    sizes = [(long, short) for short in range(100, 300) for long in range(short, 500)]
    assert all(int(256 * long / short) == int(long / short * 256) for long, short in sizes)
    lost = [(long, short) for long, short in sizes if int(480 * long / short) != int(long / short * 480)]
    assert lost
    shapes, sides = np.array(lost), np.full(len(lost), 480)
    difference = resized_shapes(shapes, sides, "floor") - resized_shapes(shapes, sides, "floor-ratio")
    assert difference[:, 0].tolist() == [1] * len(lost) and not difference[:, 1].any()


def test_exif_turns_crops_where_the_origin_turns_them() -> None:
    image = photograph(3, 72, 100)
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    turned = encode(image, quality=100, subsampling=0, exif=exif.tobytes())
    straight = np.asarray(Image.open(io.BytesIO(turned)), np.float32)
    crop = centre(turned, PYCLS)
    expected = np.rot90(straight, -1)[18:82, 4:68]  # ceil((100 - 64) / 2)
    np.testing.assert_allclose(crop, expected, atol=1e-3)
    np.testing.assert_array_equal(centre(turned, TORCHVISION), straight[4:68, 18:82])
    whole = WholeImage(short_side=72, resizing=PYCLS.resizing)
    assert view_pixels(turned, whole).shape == (72, 100, 3)


@pytest.mark.parametrize("name", [name for name in CONVENTIONS if name != OURS.name])
def test_batches_hold_the_pixels_whatever_the_threads(images: list[bytes], name: str, tmp_path) -> None:  # type: ignore[no-untyped-def]
    resizing = CONVENTIONS[name].resizing
    split = write_dataset(tmp_path / "data", images, [0] * len(images)).split("train")
    mean = Normalization(np.array([100.0, 120.0, 90.0], np.float32), np.array([50.0, 60.0, 70.0], np.float32))
    blocks, ids = [np.array([2, 0, 5]), np.array([1]), np.array([6, 3, 4])], [2, 0, 5, 1, 6, 3, 4]
    views: list[View] = [CenterCrop(short_side=72, crop=64, resizing=resizing)]
    views += [TenCrop(short_side=72, crop=64, resizing=resizing)]
    for view in views:
        made = []
        for threads in (1, 3):
            with evaluation_batches(split, view, mean, blocks, CPU, LoaderConfig(threads=threads)) as batches:
                batch = list(batches)
            assert [one.ids.tolist() for one in batch] == [block.tolist() for block in blocks]
            made.append(torch.cat([one.images for one in batch]))
        assert torch.equal(made[0], made[1])
        pixels = np.stack([view_pixels(images[i], view) for i in ids]).astype(np.float64)
        np.testing.assert_allclose(made[0], (pixels - mean.mean) / mean.std, atol=1e-5)


def test_an_image_that_does_not_decode_is_named(tmp_path) -> None:  # type: ignore[no-untyped-def]
    cut = encode(photograph(1, 80, 90))[:900]
    dataset = write_dataset(tmp_path / "data", [encode(photograph(2, 80, 90)), cut], [0, 0])
    view = CenterCrop(short_side=72, crop=64, resizing=TORCHVISION.resizing)
    none = Normalization(np.zeros(3, np.float32))
    with (
        pytest.raises(UserError, match=r"does not decode .*verify.py"),
        evaluation_batches(dataset.split("train"), view, none, [np.arange(2)], CPU, LoaderConfig(threads=2)) as batches,
    ):
        list(batches)
