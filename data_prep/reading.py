"""Reads the images of a shard from files and tars, ahead of their use."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from data_prep.sources import WHOLE_FILE

READ_AHEAD = 8  # images being read while one is decoded, which hides the latency of shared storage


class SourceImage(NamedTuple):
    """One image of a source: the bytes [offset, offset + size) of `path`, or all bytes if offset is WHOLE_FILE."""

    path: str
    offset: int
    size: int  # bytes
    stamp: int  # modification time of the file, ns
    label: int
    key: str
    name: str  # in messages


class ImageReader:
    """Reads images; keeps tars open until it is closed."""

    def __init__(self) -> None:
        self.tars: dict[str, int] = {}

    def __enter__(self) -> ImageReader:
        return self

    def __exit__(self, *_: object) -> None:
        for tar in self.tars.values():
            os.close(tar)
        self.tars.clear()

    def open_tar(self, path: str) -> None:
        if path not in self.tars:
            self.tars[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def read(self, image: SourceImage) -> bytes | OSError:
        """Return the encoded image, or the error of reading it. Thread-safe once its tar is open."""
        try:
            if image.offset == WHOLE_FILE:
                return Path(image.path).read_bytes()
            data = os.pread(self.tars[image.path], image.size, image.offset)
        except OSError as error:
            return error
        if len(data) != image.size:
            return OSError(f"the tar ends after {len(data)} of its {image.size} bytes")
        return data

    def read_all(self, images: Iterable[SourceImage]) -> Iterator[tuple[SourceImage, bytes | OSError]]:
        """Yield every image with its bytes or the error, in order, reading at most READ_AHEAD images ahead."""
        waiting: deque[tuple[SourceImage, Future[bytes | OSError]]] = deque()
        with ThreadPoolExecutor(READ_AHEAD) as pool:
            for image in images:
                if image.offset != WHOLE_FILE:
                    self.open_tar(image.path)
                waiting.append((image, pool.submit(self.read, image)))
                if len(waiting) > READ_AHEAD:
                    done, future = waiting.popleft()
                    yield done, future.result()
            for done, future in waiting:
                yield done, future.result()
