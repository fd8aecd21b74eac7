"""Prepares one image for a shard: decodes it in full, so that size, mode and soundness are known.

The image keeps its bytes, unless a decoder on the path cannot read them (see `prepare_image`). Pillow decodes it, and
DALI, which decodes in training, is asked whether it takes what goes into the shard.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from PIL import Image

from pipeline.data.images import (
    KINDS,
    LOSSLESS,
    LOSSLESS_ENOUGH,
    MAX_SIDE,
    UnreadableImageError,
    converted,
    decode,
    eight_bit,
    encode,
)

SHRUNK = {"format": "JPEG", "quality": 95}


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


def prepare_image(data: bytes, name: str, rules: ImageRules) -> PreparedImage:
    """Check one encoded image with the file name `name`, and prepare it for the shard. Raises UnreadableImageError.

    CMYK and YCCK JPEGs, and PNGs with a JPEG's file name, are re-encoded as RGB JPEGs: GPU decoders, and the loader, which
    goes by the name, could not read them. Other JPEGs and PNGs keep their bytes, unless they are shrunk. All other kinds
    (WebP, TIFF, GIF ...) become PNGs.
    """
    # Here, because only workers import DALI, before they are forked (WORKER_MODULES).
    from pipeline.data.whole import check_loader_takes

    image = decode(data)
    if rules.exact_side and image.size != (rules.exact_side, rules.exact_side):
        needed = f"{rules.exact_side} x {rules.exact_side}"
        raise UnreadableImageError(f"it is {image.width} x {image.height} pixels where {needed} are needed")
    is_png, called_jpeg = image.format == "PNG", name.lower().endswith(KINDS["JPEG"])
    change, other = None, converted(image, data)
    if other:
        image, change = other
    elif image.mode == "CMYK":
        change = "CMYK JPEG re-encoded as RGB"
    elif is_png and called_jpeg:
        change = "PNG called JPEG re-encoded as JPEG"
    as_png = bool(other) or (is_png and not called_jpeg)
    image = eight_bit(image)
    if change and not other:
        image = image.convert("RGB")
    short_side = rules.max_short_side or MAX_SIDE
    if shrunk := min(image.size) > short_side:
        image = shrink(image, short_side)
    if shrunk or change:
        data = _encoded(image, LOSSLESS if as_png else LOSSLESS_ENOUGH if change else SHRUNK)
        if not as_png:
            image = decode(data)  # as readers of the shard will get it
    check_loader_takes(data, image.height, image.width)
    return PreparedImage(data=data, extension="png" if as_png else "jpg", pixels=image, change=change, shrunk=shrunk)


def _encoded(image: Image.Image, how: dict[str, Any]) -> bytes:
    try:
        return encode(image, how)
    except OSError as error:  # a JPEG has 65,500 pixels a side at most
        raise UnreadableImageError(f"it cannot be encoded again ({error})") from None


def shrink(image: Image.Image, short_side: int) -> Image.Image:
    """Resize `image`, as greyscale or RGB, to a shorter side of `short_side` pixels (Lanczos, antialiased)."""
    if image.mode not in ("L", "RGB"):
        image = image.convert("RGB")
    scale = short_side / min(image.size)
    size = (round(image.width * scale), round(image.height * scale))
    return image.resize(size, Image.Resampling.LANCZOS)
