"""Headers of sound and damaged images: Pillow makes the sound images and decides which others are damaged."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.data.dataset import Dataset
from pipeline.data.failures import failures
from pipeline.data.graphs import Graph
from pipeline.data.headers import header_fault, is_doubtful
from pipeline.data.views import centre_views
from tests.images import encode, photograph

CPU = torch.device("cpu")
KINDS = ["JPEG", "PNG", "BMP", "TIFF", "WEBP", "PPM", "JPEG2000"]


def opens(data: bytes) -> bool:
    try:
        Image.open(io.BytesIO(data))
    except (OSError, SyntaxError):
        return False
    return True


@pytest.mark.parametrize("kind", KINDS)
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


def test_sound_headers_say_pillows_size(varied_jpegs: Dataset, real_imagenet: Dataset) -> None:
    split = real_imagenet.split("train")
    sound = [split.read(sample) for sample in range(len(split))]
    sound += [encode(photograph(1, 40, 30).convert(mode), kind) for mode in ("RGB", "L") for kind in KINDS]
    sound += [varied_jpegs.split("train").read(sample) for sample in range(8)]
    for data in sound:
        width, height = Image.open(io.BytesIO(data)).size
        assert header_fault(data, height, width) is None
        assert header_fault(data, height + 1, width) == (
            f"its header says {height} x {width} pixels, the sample table {height + 1} x {width}"
        )


@pytest.mark.parametrize("kind", KINDS)
def test_headers_that_cannot_be_read(kind: str) -> None:
    assert header_fault(encode(photograph(1, 40, 30), kind)[:8], 40, 30) == "its header cannot be read"


HEIGHT, WIDTH = 48, 56


def headers_changed() -> list[tuple[str, bytes]]:
    """A JPEG and a PNG with each byte of their headers changed in several ways, and with parts removed, doubled and moved."""
    jpeg, png = (encode(photograph(5, HEIGHT, WIDTH), kind) for kind in ("JPEG", "PNG"))
    frame, scan = jpeg.index(b"\xff\xc0"), jpeg.index(b"\xff\xda")
    segment, small = jpeg[frame : frame + 19], struct.pack(">HH", 8, 8)
    smaller = segment[:5] + small + segment[9:]
    changed = [
        ("another frame behind", jpeg[:frame] + segment + smaller + jpeg[frame + 19 :]),
        ("another frame in front", jpeg[:frame] + smaller + jpeg[frame:]),
        ("the frame behind the scan", jpeg[:frame] + jpeg[frame + 19 : scan + 14] + segment + jpeg[scan + 14 :]),
        ("a second header", png[:33] + png[8:16] + small + png[20:]),
        ("another image behind", jpeg + png),
    ]
    for name, data, end in (("JPEG", jpeg, scan + 14), ("PNG", png, 60)):
        for place in range(end):
            for value in (0, 0xFF, data[place] ^ 1, data[place] ^ 0x80):
                changed.append((f"{name} byte {place} = {value}", data[:place] + bytes([value]) + data[place + 1 :]))
    return changed


def test_what_has_a_sound_header_fails_in_the_decoding_alone() -> None:
    """What DALI refuses before that may crash the process in a large batch, so `header_fault` must have refused it."""
    views = centre_views(np.array([[HEIGHT, WIDTH]]), 40, 32)
    changed = headers_changed()
    trusted = [one for one in changed if header_fault(one[1], HEIGHT, WIDTH) is None]
    assert len(trusted) < len(changed)
    reasons = failures(
        Graph("crop", 32), [data for _, data in trusted], views.rows(np.zeros(len(trusted), np.int64)), CPU,
        range(len(trusted)),
    )  # fmt: skip
    early = {trusted[row][0]: reason for row, reason in reasons.items() if not reason.startswith("Failed to decode")}
    assert reasons and not early
