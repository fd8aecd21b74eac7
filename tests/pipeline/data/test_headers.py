"""Headers of sound and damaged images: Pillow makes the sound images and decides which others are damaged."""

from __future__ import annotations

import io

import pytest
from PIL import Image

from pipeline.data.dataset import Dataset
from pipeline.data.headers import is_doubtful, size_of
from tests.images import encode, photograph


def opens(data: bytes) -> bool:
    try:
        Image.open(io.BytesIO(data))
    except (OSError, SyntaxError):
        return False
    return True


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "TIFF", "WEBP", "PPM", "JPEG2000"])
def test_sound_images_are_not_doubted(kind: str) -> None:
    for mode in ("RGB", "L"):
        assert not is_doubtful(encode(photograph(1, 40, 30).convert(mode), kind))


def test_sound_jpegs_of_every_sort_are_not_doubted(varied_jpegs: Dataset, real_imagenet: Dataset) -> None:
    for split in (varied_jpegs.split("train"), real_imagenet.split("train")):
        assert not any(is_doubtful(split.read(sample)) for sample in range(len(split)))
    exif = Image.Exif()
    exif[270] = "x" * 20_000
    image = photograph(2, 40, 30)
    for options in (
        {"progressive": True},
        {"exif": exif},
        {"comment": b"\xff\xc0 in a comment"},
        {"restart_marker_rows": 1},
    ):
        assert not is_doubtful(encode(image, quality=90, **options))


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_images_cut_in_their_header_are_doubted(kind: str) -> None:
    whole = encode(photograph(3, 40, 30), kind)
    for length in range(len(whole)):
        if not opens(whole[:length]):
            assert is_doubtful(whole[:length]), length


def test_jpegs_without_their_end_are_doubted() -> None:
    """Also where an embedded thumbnail has an end of its own, and not where something follows the end."""
    exif = Image.Exif()
    exif[270] = encode(photograph(4, 8, 8))
    for options in ({"quality": 90}, {"progressive": True}, {"exif": exif}):
        whole = encode(photograph(3, 40, 30), **options)
        assert not is_doubtful(whole + bytes(100))
        for length in range(len(whole) // 2, len(whole)):
            assert is_doubtful(whole[:length]), length


@pytest.mark.parametrize("data", [b"", bytes(500), b"no image at all", b"\xff\xd8" + bytes(300)])
def test_what_is_no_image_is_doubted(data: bytes) -> None:
    assert not opens(data) and is_doubtful(data)


def test_the_claimed_size_is_pillows(varied_jpegs: Dataset, real_imagenet: Dataset) -> None:
    split = real_imagenet.split("train")
    sound = [split.read(sample) for sample in range(len(split))]
    sound += [encode(photograph(1, 40, 30).convert(mode), "PNG") for mode in ("RGB", "L")]
    sound += [varied_jpegs.split("train").read(sample) for sample in range(8)]
    for data in sound:
        width, height = Image.open(io.BytesIO(data)).size
        assert size_of(data) == (height, width)
    assert size_of(encode(photograph(1, 40, 30), "BMP")) is None and size_of(b"\xff\xd8 nothing") is None
