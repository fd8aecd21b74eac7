"""One image on its way into a shard: decoded once in full, so that size, mode and soundness are known.

Bytes go through untouched, except where a decoder on the path cannot read them (see `prepare_image`).
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

MAX_SIDE = 65535  # the sample table's height and width are uint16
PNG_END = b"IEND\xaeB`\x82"  # the chunk that ends every PNG
# Re-encoding must not be seen: libjpeg's best quality, colour at full resolution (4:4:4).
LOSSLESS_ENOUGH = {"format": "JPEG", "quality": 100, "subsampling": 0}
SHRUNK = {"format": "JPEG", "quality": 95}


class UnreadableImageError(Exception):
    """An image that does not decode; the text says why."""


@dataclass(frozen=True, kw_only=True)
class ImageRules:
    """What images must be and what is done to them.

    max_short_side: a larger image is shrunk until its shorter side is this many pixels; None leaves all as they are.
    exact_side: every image must be this many pixels wide and high; None accepts all sizes.
    """

    max_short_side: int | None = None
    exact_side: int | None = None


@dataclass(frozen=True, kw_only=True)
class PreparedImage:
    """`data`: the encoded image for the shard, `extension` its component's ("jpg" or "png"); `pixels`: decoded.

    height, width: of the decoded array, EXIF orientation ignored. change: why it was re-encoded, None if it was not
    or only because it was shrunk.
    """

    data: bytes
    extension: str
    pixels: Image.Image
    change: str | None = None
    shrunk: bool = False

    @property
    def height(self) -> int:
        return self.pixels.height

    @property
    def width(self) -> int:
        return self.pixels.width


def decode(data: bytes) -> Image.Image:
    """Decode an image in full, to mode L, RGB, CMYK or a PNG's own. Raises UnreadableImageError."""
    if not data:
        raise UnreadableImageError("it has no bytes")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # damaged EXIF blocks: nothing here reads them
            image = Image.open(io.BytesIO(data), formats=("JPEG", "PNG"))
            image.load()
    # Pillow's decoders raise many kinds on damaged files (OSError, SyntaxError, ValueError, struct.error, ...).
    except Exception as error:
        reason = str(error) or type(error).__name__
        if isinstance(error, Image.UnidentifiedImageError):
            reason = "it is neither JPEG nor PNG"
        raise UnreadableImageError(reason) from None
    if image.format == "PNG" and PNG_END not in data:  # Pillow shows it, DALI does not
        raise UnreadableImageError("the PNG is cut off before its end")
    if max(image.size) > MAX_SIDE:
        raise UnreadableImageError(f"it is larger than {MAX_SIDE:,} pixels")
    return image


def eight_bit(image: Image.Image) -> Image.Image:
    """Greyscale PNGs of 16 bits scaled to 8 as DALI does; Pillow's conversion would clip them."""
    if image.mode.startswith("I"):
        return Image.fromarray((np.asarray(image).astype(np.uint32) * 255 // 65535).astype(np.uint8))
    return image


def prepare_image(data: bytes, name: str, rules: ImageRules) -> PreparedImage:
    """Examine one encoded image, called `name`, and make what goes into the shard. Raises UnreadableImageError.

    CMYK and YCCK JPEGs, and PNGs that are called JPEG, are re-encoded as RGB JPEGs: GPU decoders and the loader, which
    goes by the name, could not read them. All others keep their bytes, unless they are shrunk.
    """
    image = decode(data)
    if rules.exact_side and image.size != (rules.exact_side, rules.exact_side):
        needed = f"{rules.exact_side} x {rules.exact_side}"
        raise UnreadableImageError(f"it is {image.width} x {image.height} pixels where {needed} are needed")
    is_png, called_png = image.format == "PNG", name.lower().endswith(".png")
    change = None
    if image.mode == "CMYK":
        change = "CMYK JPEG re-encoded as RGB"
    elif is_png and not called_png:
        change = "PNG called JPEG re-encoded as JPEG"
    keep_png = is_png and called_png
    image = eight_bit(image)
    if change:
        image = image.convert("RGB")
    shrunk = rules.max_short_side is not None and min(image.size) > rules.max_short_side
    if shrunk:
        assert rules.max_short_side is not None
        image = shrink(image, rules.max_short_side)
    if shrunk or change:
        data = encode(image, {"format": "PNG"} if keep_png else LOSSLESS_ENOUGH if change else SHRUNK)
        if not keep_png:
            image = decode(data)  # what readers of the shard will see
    return PreparedImage(data=data, extension="png" if keep_png else "jpg", pixels=image, change=change, shrunk=shrunk)


def shrink(image: Image.Image, short_side: int) -> Image.Image:
    """`image`, greyscale or RGB, resized until its shorter side is `short_side` pixels (Lanczos, antialiased)."""
    if image.mode not in ("L", "RGB"):
        image = image.convert("RGB")
    scale = short_side / min(image.size)
    size = (round(image.width * scale), round(image.height * scale))
    return image.resize(size, Image.Resampling.LANCZOS)


def encode(image: Image.Image, options: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, **options)
    return buffer.getvalue()
