"""Checks the headers of encoded images before DALI gets them.

DALI (2.4, the CPU's decoder) may crash the process where the header of one image of a batch cannot be read, or says a size in
which the image's window does not lie: it gives up while its threads still read the other images' headers. (It does so in
batches of more than 4 (threads + 1) images; what fails later, in the decoding itself, it reports in order.) So each header is
read first, by nvImageCodec's parser, which is DALI's own: the two cannot disagree. Its size must be the sample table's, from
which the windows are planned; an image where that is otherwise is damaged, and DALI never sees it.

A GPU's decoder may take a JPEG whose end is missing; such images are doubtful, and the CPU judges them everywhere
(`data/failures.py`).
"""

from __future__ import annotations

import struct

import numpy as np
from nvidia.nvimgcodec import CodeStream  # comes with DALI, which decodes with it

_PNG = b"\x89PNG\r\n\x1a\n"
_OTHERS = (b"BM", b"II*\0", b"MM\0*", b"RIFF", b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51")  # BMP, TIFF, WebP, JPEG 2000
_PNM = (b"P1", b"P2", b"P3", b"P4", b"P5", b"P6")
_TYPES = (np.dtype(np.uint8), np.dtype(np.uint16))
_START_OF_SCAN = 0xDA  # T.81, Table B.1: the header's last marker, after the frame's size
_END_OF_IMAGE = b"\xff\xd9"  # never part of coded data, where 0 follows 0xFF
_ALONE = frozenset((0x01, *range(0xD0, 0xD9)))  # markers without a segment
_NO_FRAME = (0xC4, 0xC8, 0xCC)  # of the markers C0 to CF, which else begin a frame (T.81, B.2.2)


def header_fault(encoded: bytes, height: int, width: int) -> str | None:
    """Return why DALI must not get an encoded image that the sample table calls `height` x `width` pixels; None if it may."""
    try:
        header = CodeStream(encoded)
        claimed = header.height % 2**32, header.width % 2**32  # unsigned, which the binding forgets
        if header.dtype not in _TYPES:
            return f"its header says {header.dtype} values"
    except (RuntimeError, TypeError):  # TypeError: of values that NumPy has no type for
        return "its header cannot be read"
    if claimed != (height, width):
        return f"its header says {claimed[0]} x {claimed[1]} pixels, the sample table {height} x {width}"
    return None


def is_doubtful(encoded: bytes) -> bool:
    """Return whether the header of an encoded image looks damaged, or the end of a JPEG or PNG is missing.

    There may be false positives, but no false negatives. Other damage is left to the decoders.
    """
    if encoded.startswith(b"\xff\xd8"):
        return not _jpeg_reaches_its_end(encoded)
    if encoded.startswith(_PNG):
        return not _png_reaches_its_end(encoded)
    return not encoded.startswith(_OTHERS + _PNM)


def _jpeg_reaches_its_end(encoded: bytes) -> bool:
    place, size = 2, len(encoded)
    while place + 4 <= size:
        if encoded[place] != 0xFF:
            return False
        marker = encoded[place + 1]
        if marker == 0xFF:  # fill byte
            place += 1
        elif marker in _ALONE:
            place += 2
        else:
            place += 2 + int.from_bytes(encoded[place + 2 : place + 4], "big")
            if marker == _START_OF_SCAN:
                return encoded.rfind(_END_OF_IMAGE, place) >= 0
    return False


def _png_reaches_its_end(encoded: bytes) -> bool:
    place, size = len(_PNG), len(encoded)
    while place + 12 <= size:
        length, kind = struct.unpack_from(">I4s", encoded, place)
        place += 12 + length
        if kind == b"IEND":
            return place <= size
    return False


def kind_of(encoded: bytes) -> str:
    """Return what decoders tell apart: a JPEG's coding, components and sampling factors, or another format's first bytes."""
    if (place := _jpeg_frame(encoded)) is None:
        return encoded[:4].hex()
    factors = encoded[place + 11 : place + 11 + 3 * encoded[place + 9] : 3]
    return f"JPEG {encoded[place + 1]:02X} {factors.hex(' ')}"


def _jpeg_frame(encoded: bytes) -> int | None:
    """Return where a JPEG's frame header begins, None where there is none."""
    place, size = 2, len(encoded)
    while encoded.startswith(b"\xff\xd8") and place + 10 <= size:
        marker = encoded[place + 1]
        if 0xC0 <= marker <= 0xCF and marker not in _NO_FRAME:
            return place
        alone = marker == 0xFF or marker in _ALONE
        place += (1 if marker == 0xFF else 2) if alone else 2 + int.from_bytes(encoded[place + 2 : place + 4], "big")
    return None
