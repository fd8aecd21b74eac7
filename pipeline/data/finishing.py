"""The last stage of the loader: turns DALI's uint8 images into a Batch on its device."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.data.augment import Views
from pipeline.data.batch import Batch, BatchRequest
from pipeline.data.graphs import Normalization, pad_and_crop

_CHUNK = 8  # images that one thread finishes at a time

Finished = tuple[Batch, torch.cuda.Event | None]  # the event, on a GPU, is when the batch is complete


class Finish:
    """Normalizes, colours, and for CIFAR (`pad` given) pads and crops. Works on `stream` if batches go to a GPU."""

    def __init__(
        self, normalization: Normalization, device: torch.device, dtype: torch.dtype, pad: int | None = None
    ) -> None:
        assert dtype == torch.float32 or (device.type == "cuda" and dtype == torch.bfloat16)
        self.normalization, self.device, self.dtype, self.pad = normalization, device, dtype, pad
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, images: Any, request: BatchRequest, workers: ThreadPoolExecutor) -> Finished:
        """Make a batch of `images`, DALI's TensorList."""
        if self.stream is None:
            return self._on_cpu(np.asarray(images.as_tensor()), request, workers), None
        with torch.cuda.stream(self.stream):
            return self._on_gpu(self._on_device(images), request, self.stream)

    def from_memory(self, pixels: torch.Tensor, request: BatchRequest) -> Finished:
        """Make a batch as a call does, from a whole decoded split on the device: uint8 [samples, S, S, 3]."""
        ids = request.presentations.ids
        if self.stream is None:
            return self._on_cpu(pixels.numpy()[ids], request, None), None
        with torch.cuda.stream(self.stream):
            return self._on_gpu(pixels[self._send(ids)], request, self.stream)

    def _on_cpu(self, source: NDArray[np.uint8], request: BatchRequest, workers: ThreadPoolExecutor | None) -> Batch:
        """The float arithmetic also makes the copy out of DALI's memory."""
        result = np.empty(source.shape, np.float32)

        def convert(rows: slice) -> None:
            self.normalization.on_cpu(source[rows], request.views.colour[rows], result[rows])

        _in_parallel(convert, len(source), workers)
        pixels = self._crop(torch.from_numpy(result), request.views)
        return Batch(pixels, torch.from_numpy(request.labels), request.presentations.ids)

    def _on_gpu(self, source: torch.Tensor, request: BatchRequest, stream: torch.cuda.Stream) -> Finished:
        pixels = self.normalization.on_gpu(source, self._send(request.views.colour))
        pixels = self._crop(pixels, request.views).to(self.dtype)
        batch = Batch(pixels, self._send(request.labels), request.presentations.ids)
        event = torch.cuda.Event()
        event.record(stream)
        return batch, event

    def _on_device(self, images: Any) -> torch.Tensor:
        """Return uint8 images on the GPU, whether DALI decoded them there or on the CPU."""
        tensor = images.as_tensor()
        return torch.from_dlpack(tensor) if "GPU" in type(tensor).__name__ else self._send(np.asarray(tensor))

    def _send(self, array: np.ndarray[Any, Any]) -> torch.Tensor:
        """Copy to the device through page-locked memory, so that the copy overlaps with the CPU's and the GPU's work."""
        return torch.from_numpy(array).pin_memory().to(self.device, non_blocking=True)

    def _crop(self, images: torch.Tensor, views: Views) -> torch.Tensor:
        return images if self.pad is None else pad_and_crop(images, views.crop_start, views.mirror, self.pad)


def _in_parallel(task: Callable[[slice], None], rows: int, workers: ThreadPoolExecutor | None) -> None:
    if workers is None:
        return task(slice(0, rows))
    parts = [slice(start, min(start + _CHUNK, rows)) for start in range(0, rows, _CHUNK)]
    for _ in workers.map(task, parts):
        pass
