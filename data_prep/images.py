"""One image on its way into a shard: decoded once in full, so that size, mode and soundness are known.

Bytes go through untouched, except where a decoder on the path could not read them (see `prepare_image`).
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass

from PIL import Image

MAX_SIDE = 65535  # the sample table's height and width are uint16


class UnreadableImageError(Exception):
    """An image that does not decode; the text says why."""


@dataclass(frozen=True, kw_only=True)
class PreparedImage:
    """`data`: the encoded image for the shard, `extension` its component's ("jpg" or "png"); `pixels`: decoded.

    height, width: of the decoded array, EXIF orientation ignored. note: what was changed and why, None if untouched.
    """

    data: bytes
    extension: str
    height: int
    width: int
    pixels: Image.Image
    note: str | None = None


def decode(data: bytes) -> Image.Image:
    """Decode an image in full. Raises UnreadableImageError."""
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
    if max(image.size) > MAX_SIDE:
        raise UnreadableImageError(f"it is larger than {MAX_SIDE:,} pixels")
    return image


def prepare_image(data: bytes) -> PreparedImage:
    """Examine one encoded image and make what goes into the shard. Raises UnreadableImageError."""
    image = decode(data)
    extension = "png" if image.format == "PNG" else "jpg"
    return PreparedImage(data=data, extension=extension, height=image.height, width=image.width, pixels=image)
