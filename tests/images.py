"""Images that tests make, and the real ones that they may find."""

from __future__ import annotations

import io
import tarfile

import numpy as np
import pytest
from PIL import Image

from tests.helpers import ROOT

# The 140 real ImageNet images: a checkout has them or it has not.
REAL_IMAGES = ROOT.parent / "shared/data/imagenet-samples.tar"
NO_REAL_IMAGES = "the real ImageNet images are not at ../shared/data/imagenet-samples.tar"
# Of 75 x 56 pixels, turned by EXIF, of 4:2:2 chroma, grey and wide.
UNUSUAL = ("tusker.JPEG", "can_opener.JPEG", "minivan.JPEG", "airship.JPEG")


def smooth(generator: np.random.Generator, height: int, width: int, mode: str = "RGB") -> Image.Image:
    """Random content without edges, which JPEG hardly changes; `mode` RGB, L or CMYK."""
    channels = {"RGB": 3, "L": 1, "CMYK": 4}[mode]
    coarse = generator.integers(0, 256, (4, 5, channels), dtype=np.uint8)
    image = Image.fromarray(coarse, mode="CMYK") if mode == "CMYK" else Image.fromarray(coarse.squeeze())
    return image.resize((width, height), Image.Resampling.BICUBIC)


def photograph(seed: int, height: int, width: int) -> Image.Image:
    """A smooth random image with some detail, as photographs have: noise alone would not survive JPEG."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (max(height // 16, 2), max(width // 16, 2), 3), np.uint8))
    fine = random.integers(-12, 13, (height, width, 3))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.int16)
    return Image.fromarray(np.clip(smooth + fine, 0, 255).astype(np.uint8))


def encode(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    """The file of an image. `options` are Pillow's; a JPEG without any has quality 90."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **({"quality": 90} if kind == "JPEG" and not options else options))
    return buffer.getvalue()


def real_images(every: int = 1) -> list[tuple[str, bytes]]:
    """The real ImageNet images, as (CLASS/STEM.JPEG, bytes) in the order of their names: one of `every` and all UNUSUAL.

    Skips the test where they are missing.
    """
    if not REAL_IMAGES.is_file():
        pytest.skip(NO_REAL_IMAGES)
    with tarfile.open(REAL_IMAGES) as tar:
        files = sorted((member.name, tar.extractfile(member)) for member in tar if member.isfile())
        images = [(name, file.read()) for name, file in files if file is not None]
    return [image for number, image in enumerate(images) if number % every == 0 or image[0].endswith(UNUSUAL)]
