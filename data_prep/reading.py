"""Reads the images of a shard from files and tars, ahead of their use."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from data_prep.sources import WHOLE_FILE
from data_prep.tars import open_for_ranges
from pipeline.base.command import UserError
from pipeline.base.regular import open_regular

READ_AHEAD = 8  # images being read while one is decoded, which hides the latency of shared storage
MAX_BYTES = 2**30  # of an encoded image: Pillow decodes 179 million pixels at most


class SourceImage(NamedTuple):
    """One image of a source: the bytes [offset, offset + size) of `path`, or all bytes if offset is WHOLE_FILE."""

    path: str
    offset: int
    size: int  # bytes
    stamp: int  # modification time of the file, ns
    label: int
    key: str
    name: str  # in messages


def read_all(images: Iterable[SourceImage]) -> Generator[tuple[SourceImage, bytes | OSError], None, None]:
    """Yield every image with its bytes or the error, in order, reading at most READ_AHEAD images ahead.

    Tars stay open until the generator is closed.
    """
    tars: dict[str, int] = {}
    waiting: deque[tuple[SourceImage, Future[bytes | OSError]]] = deque()
    with ExitStack() as opened, ThreadPoolExecutor(READ_AHEAD) as pool:
        for image in images:
            if image.offset != WHOLE_FILE and image.path not in tars:
                try:
                    tars[image.path], _ = opened.enter_context(open_for_ranges(Path(image.path)))
                except OSError as error:
                    raise UserError(
                        f"{image.path} cannot be opened any more ({error.strerror}): check the source"
                    ) from None
            waiting.append((image, pool.submit(_read, image, tars.get(image.path))))
            if len(waiting) > READ_AHEAD:
                done, future = waiting.popleft()
                yield done, future.result()
        for done, future in waiting:
            yield done, future.result()


def _read(image: SourceImage, tar: int | None) -> bytes | OSError:
    """Return the encoded image, or the error of reading it. tar: the descriptor; None reads the whole file."""
    if image.size > MAX_BYTES:
        return OSError(f"it has {image.size:,} bytes, more than any image that Pillow decodes")
    try:
        data = _read_file(image) if tar is None else os.pread(tar, image.size, image.offset)
    except OSError as error:
        return error
    if tar is not None and len(data) != image.size:
        return OSError(f"the tar ends after {len(data)} of its {image.size} bytes")
    return data


def _read_file(image: SourceImage) -> bytes:
    """Read a file. Raises OSError if it is no regular file, which might never end, or has changed since it was listed."""
    with open_regular(Path(image.path)) as file:
        data = file.read(image.size + 1)
    if len(data) != image.size:
        raise OSError("its size has changed since it was listed")
    return data
