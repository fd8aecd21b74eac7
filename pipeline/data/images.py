"""One encoded image, as sharding and prediction read it: decoded once in full, so that size, mode and soundness are known."""

from __future__ import annotations

import io
import warnings
from typing import Any

from PIL import Image

MAX_SIDE = 65535  # the sample table's height and width are uint16
PNG_END = b"IEND\xaeB`\x82"  # the chunk that ends every PNG
# Re-encoding must not be visible: libjpeg's best quality, colour at full resolution (4:4:4).
LOSSLESS_ENOUGH = {"format": "JPEG", "quality": 100, "subsampling": 0}


class UnreadableImageError(Exception):
    """An image that does not decode; the text is the reason."""


def decode(data: bytes) -> Image.Image:
    """Decode an image in full, to mode L, RGB, CMYK or a PNG's own. Raises UnreadableImageError, and MemoryError."""
    if not data:
        raise UnreadableImageError("it has no bytes")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about damaged EXIF blocks, which nothing here reads
            image = Image.open(io.BytesIO(data), formats=("JPEG", "PNG"))
            image.load()
    except Image.UnidentifiedImageError:
        raise UnreadableImageError("it is neither JPEG nor PNG") from None
    except MemoryError:  # says nothing about the image
        raise
    # Pillow's decoders raise many types on damaged files (OSError, SyntaxError, ValueError, struct.error, ...).
    except Exception as error:
        raise UnreadableImageError(str(error) or type(error).__name__) from None
    if image.format == "PNG" and PNG_END not in data:  # Pillow decodes such a PNG, DALI does not
        raise UnreadableImageError("the PNG is cut off before its end")
    if max(image.size) > MAX_SIDE:
        raise UnreadableImageError(f"it is larger than {MAX_SIDE:,} pixels")
    return image


def encode(image: Image.Image, options: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, **options)
    return buffer.getvalue()
