"""Asks the loader's decoder whether it takes an image: DALI's on the CPU, on the whole image, as `graphs` has it decode.

Pillow and DALI differ on damaged files: where bytes stand between a JPEG's segments, say, libjpeg reads on and nvImageCodec
does not. Sharding, verify.py and the loader must agree, so an image is sound if both decode it. Imports no torch.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
from nvidia.dali import Pipeline, fn, types

from pipeline.data.dali_errors import DALI_ERRORS, is_of_memory
from pipeline.data.images import UnreadableImageError

DECODING: dict[str, Any] = {"output_type": types.RGB, "adjust_orientation": False}  # EXIF orientation is ignored
# Always the same words: they stand in the manifest of a dataset that leaves the image out.
REFUSED = "Pillow decodes it, but not DALI, with which training decodes"


def check_with_loaders_decoder(encoded: bytes, height: int, width: int) -> None:
    """Raise UnreadableImageError unless DALI decodes the image, to `height` x `width` pixels, which are Pillow's.

    Raises MemoryError if memory is exhausted. What the decoder's libraries print is kept from standard error.
    """
    decoder = _decoder()
    try:
        with _without_what_libraries_print():
            size = decoder.size_of(encoded)
    except DALI_ERRORS as error:
        _decoder.cache_clear()  # after an error a pipeline is unusable
        if is_of_memory(error):
            raise MemoryError("decoding an image") from None
        raise UnreadableImageError(REFUSED) from None
    if size != (height, width):
        raise UnreadableImageError(f"Pillow decodes {height} x {width} pixels of it, and DALI {size[0]} x {size[1]}")


class _Decoder:
    """Decodes one image after the other, in one thread. Its thread-unsafe pipeline serves one process: make it there."""

    def __init__(self) -> None:
        self._encoded = b""
        self._pipeline = Pipeline(batch_size=1, num_threads=1, device_id=None, prefetch_queue_depth=1)
        with self._pipeline:
            encoded = fn.external_source(
                lambda: [np.frombuffer(self._encoded, np.uint8)], dtype=types.UINT8, ndim=1, batch=True
            )
            self._pipeline.set_outputs(fn.decoders.image(encoded, device="cpu", **DECODING))
        self._pipeline.build()

    def size_of(self, encoded: bytes) -> tuple[int, int]:
        """Decode an image; its height and width. Raises one of DALI_ERRORS; then this decoder is of no more use."""
        self._encoded = encoded
        (images,) = self._pipeline.run()
        height, width, _ = images.at(0).shape
        return height, width


@cache
def _decoder() -> _Decoder:
    return _Decoder()


@contextmanager
def _without_what_libraries_print() -> Iterator[None]:
    """Discard standard error: libjpeg, libpng and nvImageCodec write a line there for each fault that they see."""
    try:
        kept = os.dup(2)
    except OSError:  # it is closed
        yield
        return
    nothing = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nothing, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)
