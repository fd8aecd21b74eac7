"""One encoded image, as sharding and prediction read it: decoded once in full, so that size, mode and soundness are known.

Shards, and the loader, have JPEG and PNG alone. Other kinds become PNGs with the same pixels (`converted`).
"""

from __future__ import annotations

import io
import warnings
from typing import Any

import numpy as np
from PIL import Image, features

# The suffixes of the kinds that are read, by the names that Pillow gives these kinds. A file's content decides, not its name.
KINDS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png",),
    "WEBP": (".webp",),
    "BMP": (".bmp", ".dib"),
    "GIF": (".gif",),
    "TIFF": (".tif", ".tiff"),
    "AVIF": (".avif",),
    "JPEG2000": (".jp2", ".j2k"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
}
SUFFIXES = tuple(suffix for suffixes in KINDS.values() for suffix in suffixes)
# Other pictures, known by their names so that they are not taken for no pictures: phones, raw cameras, drawings.
UNREAD_SUFFIXES = (
    *(".heic", ".heif", ".hif", ".jxl", ".tga", ".psd", ".svg", ".ico", ".eps", ".exr", ".hdr"),
    *(".dng", ".raw", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf"),
)
# Kinds as people write them, where Pillow does not.
_NAMES = {"WEBP": "WebP", "JPEG2000": "JPEG 2000", "DIB": "BMP"}
_IN_SHARDS = ("JPEG", "MPO", "PNG")  # an MPO is a JPEG with further pictures behind its end
MAX_SIDE = 65535  # the sample table's height and width are uint16
PNG_END = b"IEND\xaeB`\x82"  # the chunk that ends every PNG
# Re-encoding must not be visible: libjpeg's best quality, colour at full resolution (4:4:4).
LOSSLESS_ENOUGH = {"format": "JPEG", "quality": 100, "subsampling": 0}
LOSSLESS = {"format": "PNG"}


class UnreadableImageError(Exception):
    """An image that does not decode; the text is the reason."""


def decode(data: bytes) -> Image.Image:
    """Decode an image in full, its first frame, to the mode that its file has. Raises UnreadableImageError, and MemoryError."""
    if not data:
        raise UnreadableImageError("it has no bytes")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about damaged EXIF blocks, which nothing here reads
            image = Image.open(io.BytesIO(data), formats=_formats())
            image.load()
    except Image.UnidentifiedImageError:
        # Always the same words: they stand in the manifests of datasets that left such a file out.
        raise UnreadableImageError("it is no picture of a kind that is read here") from None
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


def _formats() -> tuple[str, ...]:
    """Pillow's decoders, those of the shards' kinds first. AVIF is missing where Pillow was built without it."""
    return tuple(kind for kind in (*KINDS, "DIB") if kind != "AVIF" or features.check("avif"))


def kind_of(name: str) -> str | None:
    """The kind that a file's name says, as people write it: "WebP"; None where the name is no picture's."""
    kind = next((kind for kind, suffixes in KINDS.items() if name.lower().endswith(suffixes)), None)
    return _NAMES.get(kind, kind) if kind else None


def converted(image: Image.Image, data: bytes) -> tuple[Image.Image, str] | None:
    """A decoded image of another kind than JPEG or PNG, as 8 bits of grey or RGB, and what was done to it, in words.

    None for JPEG and PNG. data: the encoded image. Transparency is dropped, as the loader does with a PNG's. Raises
    UnreadableImageError where the pixels have no 8 bits (TIFF with 32).
    """
    if image.format in _IN_SHARDS:
        return None
    kind = _NAMES.get(str(image.format), image.format)
    done = [f"{kind} re-encoded as PNG"]
    if _has_more_frames(data):
        done.append("its first frame alone")
    if image.has_transparency_data and image.convert("RGBA").getchannel("A").getextrema() != (255, 255):
        done.append("without its transparency")
    if image.mode == "CMYK":
        done.append("CMYK as RGB")
    if image.mode.startswith("I"):
        done.append("16 bits as 8")
    return grey_or_rgb(image), ", ".join(done)


def grey_or_rgb(image: Image.Image) -> Image.Image:
    """A decoded image of any mode as 8 bits of grey or RGB, without transparency.

    Raises UnreadableImageError where the pixels have no 8 bits (32), or are no colours (LAB).
    """
    mode = "L" if image.mode in ("1", "L", "LA") or image.mode.startswith("I") else "RGB"
    try:
        return eight_bit(image).convert(mode)
    except ValueError as error:  # LAB, say
        raise UnreadableImageError(f"its pixels cannot be made RGB ({error})") from None


def eight_bit(image: Image.Image) -> Image.Image:
    """Scale a 16-bit greyscale image to 8 bits as DALI does a PNG; Pillow's conversion would clip it.

    Raises UnreadableImageError for pixels of 32 bits.
    """
    if image.mode != "F" and not image.mode.startswith("I"):
        return image
    pixels = np.asarray(image)
    if image.mode == "F" or pixels.min() < 0 or pixels.max() > 65535:
        raise UnreadableImageError("its pixels have 32 bits: store it with 8 or 16")
    return Image.fromarray((pixels.astype(np.uint32) * 255 // 65535).astype(np.uint8))


def _has_more_frames(data: bytes) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:  # opened anew: looking for a second frame loses the first one's pixels
            return bool(getattr(Image.open(io.BytesIO(data), formats=_formats()), "is_animated", False))
        except Exception:  # a damaged second frame
            return True


def encode(image: Image.Image, options: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, **options)
    return buffer.getvalue()
