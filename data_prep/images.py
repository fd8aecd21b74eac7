"""Prepares one image for a shard: decodes it once in full, so that size, mode and soundness are known.

The image keeps its bytes, unless a decoder on the path cannot read them (see `prepare_image`).
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
# Re-encoding must not be visible: libjpeg's best quality, colour at full resolution (4:4:4).
LOSSLESS_ENOUGH = {"format": "JPEG", "quality": 100, "subsampling": 0}
SHRUNK = {"format": "JPEG", "quality": 95}


class UnreadableImageError(Exception):
    """An image that does not decode; the text is the reason."""


@dataclass(frozen=True, kw_only=True)
class ImageRules:
    """Requirements on images, and changes to them.

    max_short_side: larger images are shrunk until their shorter side has this many pixels; None shrinks none.
    exact_side: every image must be this many pixels wide and high; None accepts all sizes.
    """

    max_short_side: int | None = None
    exact_side: int | None = None


@dataclass(frozen=True, kw_only=True)
class PreparedImage:
    """An encoded image for the shard, with the `extension` of its component ("jpg" or "png").

    pixels: the decoded image, EXIF orientation ignored. change: why the image was re-encoded; None if it was not, or only
    to shrink it.
    """

    data: bytes
    extension: str
    pixels: Image.Image
    change: str | None = None
    shrunk: bool = False


def decode(data: bytes) -> Image.Image:
    """Decode an image in full, to mode L, RGB, CMYK or a PNG's own. Raises UnreadableImageError."""
    if not data:
        raise UnreadableImageError("it has no bytes")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about damaged EXIF blocks, which nothing here reads
            image = Image.open(io.BytesIO(data), formats=("JPEG", "PNG"))
            image.load()
    except Image.UnidentifiedImageError:
        raise UnreadableImageError("it is neither JPEG nor PNG") from None
    # Pillow's decoders raise many types on damaged files (OSError, SyntaxError, ValueError, struct.error, ...).
    except Exception as error:
        raise UnreadableImageError(str(error) or type(error).__name__) from None
    if image.format == "PNG" and PNG_END not in data:  # Pillow decodes such a PNG, DALI does not
        raise UnreadableImageError("the PNG is cut off before its end")
    if max(image.size) > MAX_SIDE:
        raise UnreadableImageError(f"it is larger than {MAX_SIDE:,} pixels")
    return image


def eight_bit(image: Image.Image) -> Image.Image:
    """Scale a 16-bit greyscale PNG to 8 bits as DALI does; Pillow's conversion would clip it."""
    if image.mode.startswith("I"):
        return Image.fromarray((np.asarray(image).astype(np.uint32) * 255 // 65535).astype(np.uint8))
    return image


def prepare_image(data: bytes, name: str, rules: ImageRules) -> PreparedImage:
    """Check one encoded image with the file name `name`, and prepare it for the shard. Raises UnreadableImageError.

    CMYK and YCCK JPEGs, and PNGs with a JPEG's file name, are re-encoded as RGB JPEGs: GPU decoders, and the loader, which
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
    short_side = rules.max_short_side or MAX_SIDE
    if shrunk := min(image.size) > short_side:
        image = shrink(image, short_side)
    if shrunk or change:
        data = encode(image, {"format": "PNG"} if keep_png else LOSSLESS_ENOUGH if change else SHRUNK)
        if not keep_png:
            image = decode(data)  # as readers of the shard will get it
    return PreparedImage(data=data, extension="png" if keep_png else "jpg", pixels=image, change=change, shrunk=shrunk)


def shrink(image: Image.Image, short_side: int) -> Image.Image:
    """Resize `image`, as greyscale or RGB, to a shorter side of `short_side` pixels (Lanczos, antialiased)."""
    if image.mode not in ("L", "RGB"):
        image = image.convert("RGB")
    scale = short_side / min(image.size)
    size = (round(image.width * scale), round(image.height * scale))
    return image.resize(size, Image.Resampling.LANCZOS)


def encode(image: Image.Image, options: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, **options)
    return buffer.getvalue()
