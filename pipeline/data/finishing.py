"""The last stage of the loader: DALI's uint8 images become a Batch on its device."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.data.augment import Views
from pipeline.data.batch import Batch, Work
from pipeline.data.graphs import Normalization, pad_and_crop

_CHUNK = 8  # images that one thread finishes at a time


class Finish:
    """Normalizes, colours, and for CIFAR (`pad` given) pads and crops. Works on `stream` where batches go to a GPU."""

    def __init__(
        self, normalization: Normalization, device: torch.device, dtype: torch.dtype, pad: int | None = None
    ) -> None:
        assert dtype == torch.float32 or (device.type == "cuda" and dtype == torch.bfloat16)
        self.normalization, self.device, self.dtype, self.pad = normalization, device, dtype, pad
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, images: Any, work: Work, workers: ThreadPoolExecutor) -> tuple[Batch, torch.cuda.Event | None]:
        """images: DALI's TensorList. The event, on a GPU, is when the batch is complete."""
        if self.stream is None:
            return self._on_cpu(np.asarray(images.as_tensor()), work, workers), None
        with torch.cuda.stream(self.stream):
            return self._on_gpu(self._on_device(images), work, self.stream)

    def from_memory(self, pixels: torch.Tensor, work: Work) -> tuple[Batch, torch.cuda.Event | None]:
        """As a call, from a whole decoded split on the device: uint8 [samples, S, S, 3]."""
        if self.stream is None:
            return self._on_cpu(pixels.numpy()[work.shown.ids], work, None), None
        with torch.cuda.stream(self.stream):
            return self._on_gpu(pixels[self._send(work.shown.ids)], work, self.stream)

    def _on_cpu(self, source: NDArray[np.uint8], work: Work, workers: ThreadPoolExecutor | None) -> Batch:
        """The float arithmetic also makes the copy out of DALI's memory."""
        result = np.empty(source.shape, np.float32)

        def convert(rows: slice) -> None:
            self.normalization.on_cpu(source[rows], work.views.colour[rows], result[rows])

        _in_parallel(convert, len(source), workers)
        pixels = self._crop(torch.from_numpy(result), work.views)
        return Batch(pixels, torch.from_numpy(work.labels), work.shown.ids)

    def _on_gpu(self, source: torch.Tensor, work: Work, stream: torch.cuda.Stream) -> tuple[Batch, torch.cuda.Event]:
        pixels = self.normalization.on_gpu(source, self._send(work.views.colour))
        pixels = self._crop(pixels, work.views).to(self.dtype)
        batch = Batch(pixels, self._send(work.labels), work.shown.ids)
        event = torch.cuda.Event()
        event.record(stream)
        return batch, event

    def _on_device(self, images: Any) -> torch.Tensor:
        """uint8 on the GPU: as DALI decoded it there, or sent from the CPU."""
        tensor = images.as_tensor()
        return torch.from_dlpack(tensor) if "GPU" in type(tensor).__name__ else self._send(np.asarray(tensor))

    def _send(self, array: np.ndarray[Any, Any]) -> torch.Tensor:
        """Through page-locked memory, so that the copy overlaps with the CPU's and the GPU's work."""
        return torch.from_numpy(array).pin_memory().to(self.device, non_blocking=True)

    def _crop(self, images: torch.Tensor, views: Views) -> torch.Tensor:
        return images if self.pad is None else pad_and_crop(images, views.crop_start, views.mirror, self.pad)


def _in_parallel(task: Callable[[slice], None], rows: int, workers: ThreadPoolExecutor | None) -> None:
    if workers is None:
        return task(slice(0, rows))
    parts = [slice(start, min(start + _CHUNK, rows)) for start in range(0, rows, _CHUNK)]
    for _ in workers.map(task, parts):
        pass
