"""Asks the loader's decoder about one image: DALI's on the CPU, as `graphs` has it decode. Imports no torch.

Pillow and DALI differ on damaged files: where bytes stand between a JPEG's segments, say, libjpeg reads on and nvImageCodec
does not. Sharding, verify.py and the loader must agree, so sharding takes what both decoders take.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
from nvidia.dali import Pipeline, fn, types
from nvidia.dali.data_node import DataNode

from pipeline.data.dali_errors import DALI_ERRORS, is_of_memory
from pipeline.data.images import UnreadableImageError

DECODING: dict[str, Any] = {"output_type": types.RGB, "adjust_orientation": False}  # EXIF orientation is ignored
# Always the same words: they stand in the manifest of a dataset that leaves the image out.
REFUSED = "DALI, with which training decodes, does not take it"

_PNG = b"\x89PNG"
_Graph = Callable[[DataNode], DataNode]


def check_loader_takes(encoded: bytes, height: int, width: int) -> None:
    """Raise UnreadableImageError unless DALI takes an image that Pillow decodes, and with the same height and width.

    A PNG is decoded for this. Of a JPEG only the segments are read: all 485 of 3,702 damaged JPEGs that Pillow decodes and
    DALI does not fail there already, and decoding every JPEG twice cost 1.8 times the CPU time of sharding. Raises
    MemoryError.
    """
    size = decoded_size(encoded) if encoded.startswith(_PNG) else _ask(_shape, encoded)[:2]
    if tuple(size) != (height, width):
        raise UnreadableImageError(f"Pillow reads {height} x {width} pixels in it, and DALI {size[0]} x {size[1]}")


def decoded_size(encoded: bytes) -> tuple[int, int]:
    """Have DALI decode a whole image; its height and width. Raises UnreadableImageError, and MemoryError."""
    height, width, _ = _ask(_pixels, encoded).shape
    return height, width


def _shape(encoded: DataNode) -> DataNode:
    return fn.peek_image_shape(encoded, adjust_orientation=False)


def _pixels(encoded: DataNode) -> DataNode:
    return fn.decoders.image(encoded, device="cpu", **DECODING)


def _ask(graph: _Graph, encoded: bytes) -> Any:
    """What DALI makes of an image, valid until the next call. What its libraries print is kept from standard error."""
    try:
        with _without_what_libraries_print():
            return _asker(graph)(encoded)
    except DALI_ERRORS as error:
        _asker.cache_clear()  # after an error a pipeline is unusable
        if is_of_memory(error):
            raise MemoryError("decoding an image") from None
        raise UnreadableImageError(REFUSED) from None


class _Asker:
    """Passes one image after the other through a graph, in one thread. A pipeline serves the process that made it."""

    def __init__(self, graph: _Graph) -> None:
        self._encoded = b""
        self._pipeline = Pipeline(batch_size=1, num_threads=1, device_id=None, prefetch_queue_depth=1)
        with self._pipeline:
            self._pipeline.set_outputs(
                graph(fn.external_source(self._next, dtype=types.UINT8, ndim=1, batch=True, no_copy=True))
            )
        self._pipeline.build()

    def _next(self) -> list[Any]:
        return [np.frombuffer(self._encoded, np.uint8)]

    def __call__(self, encoded: bytes) -> Any:
        self._encoded = encoded
        (outputs,) = self._pipeline.run()
        return outputs.at(0)


@cache
def _asker(graph: _Graph) -> _Asker:
    return _Asker(graph)


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
