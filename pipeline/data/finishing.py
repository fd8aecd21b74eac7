"""The last stage of the loader: turns DALI's images into a Batch on its device."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from nvidia.dali import types
from nvidia.dali.plugin.pytorch.torch_utils import feed_ndarray

from pipeline.data.batch import Batch, BatchRequest
from pipeline.data.erasing import erase
from pipeline.data.graphs import DeviceNormalization, Normalization, crop_places, pad_and_crop, pad_and_gather
from pipeline.data.mixing import mix, mix_in_place, swapped
from pipeline.data.views import Views

_CHUNK = 8  # images that one thread finishes at a time
_ALIGNED = 16  # bytes, for every dtype

Finished = tuple[Batch, torch.cuda.Event | None]  # the event, on a GPU, is when the batch is complete


class Finish:
    """Makes batches on `device`. On a CPU it varies and normalizes; on a GPU, where DALI normalizes, it works on `stream`.

    Images that RandAugment varies come from DALI as uint8 on a GPU too, and are normalized here.

    pad: pad and crop, as for CIFAR.
    """

    def __init__(
        self, normalization: Normalization, device: torch.device, dtype: torch.dtype, pad: int | None = None
    ) -> None:
        assert dtype == torch.float32 or (device.type == "cuda" and dtype == torch.bfloat16)
        self.normalization, self.device, self.dtype, self.pad = normalization, device, dtype, pad
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    @cached_property
    def _on_device(self) -> DeviceNormalization:
        return self.normalization.to(self.device)

    @cached_property
    def _fill(self) -> list[float]:
        """Return the mean colour in whole grey levels, as timm fills: RandAugment brings it in from outside an image."""
        mean = self.normalization.mean.reshape(-1, 3).mean(axis=0, dtype=np.float64)
        return np.clip(np.rint(mean), 0, 255).astype(int).tolist()

    def _varied_on_device(self, pixels: torch.Tensor, shift: torch.Tensor, views: Views) -> torch.Tensor:
        """Apply RandAugment to `pixels` (uint8 [N, H, W, 3], on the device) and normalize; shift: the views' colour there."""
        if views.operations.size:
            pixels = _operations().vary_tensors(pixels, views.operations, views.magnitudes, self._fill)
        return self._on_device(pixels, shift)

    def __call__(self, images: Any, request: BatchRequest, workers: ThreadPoolExecutor) -> Finished:
        """Make a batch of `images`, DALI's TensorList: uint8 on the CPU, on the GPU normalized float32, or uint8 to be varied.

        The batch has memory of its own. On a GPU it is copied there: `images` must stay alive until the event.
        """
        if self.stream is None:
            return self._on_cpu(np.asarray(images.as_tensor()), request, workers), None
        with torch.cuda.stream(self.stream):
            normalized = self._copied(images.as_tensor(), self.stream)
            if normalized.dtype == torch.uint8:
                (shift,) = self._send(request.views.colour)
                normalized = self._varied_on_device(normalized, shift, request.views)
            sent = self._send(request.labels, *self._places(request.views, normalized), *_mixing(request))
            return self._completed(normalized, sent, request, self.stream)

    def from_memory(self, pixels: torch.Tensor, request: BatchRequest) -> Finished:
        """Make a batch as a call does, from a whole decoded split on the device: uint8 [samples, S, S, 3]."""
        ids, colour = request.presentations.ids, request.views.colour
        if self.stream is None:
            return self._on_cpu(pixels.numpy()[ids], request, None), None
        with torch.cuda.stream(self.stream):
            places = self._places(request.views, pixels)
            samples, shift, *sent = self._send(ids, colour, request.labels, *places, *_mixing(request))
            normalized = self._varied_on_device(pixels[samples], shift, request.views)
            return self._completed(normalized, sent, request, self.stream)

    def _on_cpu(self, source: NDArray[np.uint8], request: BatchRequest, workers: ThreadPoolExecutor | None) -> Batch:
        """The float arithmetic also makes the copy out of DALI's memory."""
        result, views = np.empty(source.shape, np.float32), request.views

        def convert(rows: slice) -> None:
            images = source[rows]
            if views.operations.size:
                images = _operations().vary_arrays(images, views.operations[rows], views.magnitudes[rows], self._fill)
            self.normalization.on_cpu(images, views.colour[rows], result[rows])

        _in_parallel(convert, len(source), workers)
        pixels = torch.from_numpy(result)
        if self.pad is not None:
            pixels = pad_and_crop(pixels, views.crop_start, views.mirror, self.pad)
        erase(pixels, views.erased)
        pixels, mixed = _mixed(pixels, [torch.from_numpy(array) for array in _mixing(request)], mix_in_place)
        return Batch(pixels, torch.from_numpy(request.labels), request.presentations.ids, mixed)

    def _copied(self, images: Any, stream: torch.cuda.Stream) -> torch.Tensor:
        """Copy DALI's tensor, float32 or uint8, in the order of `stream`; the host does not wait.

        Not by DLPack: of each tensor that DALI gives away like that, a thread of DALI later has the whole device finish
        (cudaDeviceSynchronize), which breaks the recording of a CUDA graph and then ends the process.
        """
        dtype = torch.uint8 if images.dtype == types.UINT8 else torch.float32
        copy = torch.empty(images.shape(), dtype=dtype, device=self.device)
        return feed_ndarray(images, copy, cuda_stream=stream)

    def _places(self, views: Views, images: torch.Tensor) -> tuple[NDArray[np.int64], ...]:
        return () if self.pad is None else crop_places(views.crop_start, views.mirror, images.shape[1])

    def _completed(
        self,
        normalized: torch.Tensor,
        sent: list[torch.Tensor],
        request: BatchRequest,
        stream: torch.cuda.Stream,
    ) -> Finished:
        """sent: what `_send` made of the labels, `_places` and `_mixing`."""
        labels, *rest = sent
        if self.pad is not None:
            rows, columns, *rest = rest
            normalized = pad_and_gather(normalized, rows, columns, self.pad)
        erase(normalized, request.views.erased)
        normalized, mixed = _mixed(normalized, rest, mix)
        # DALI cannot make bfloat16 (it has no such type). Pixels are mixed in float32 and rounded once.
        batch = Batch(normalized.to(self.dtype), labels, request.presentations.ids, mixed)
        event = torch.cuda.Event()
        event.record(stream)
        return batch, event

    def _send(self, *arrays: NDArray[Any]) -> list[torch.Tensor]:
        """Copy to the device in one piece, through page-locked memory, so that no thread waits for the copy."""
        places, size = [], 0
        for array in arrays:
            places.append(size)
            size += -(-array.nbytes // _ALIGNED) * _ALIGNED
        packed = torch.empty(size, dtype=torch.uint8, pin_memory=self.device.type == "cuda")
        for array, place in zip(arrays, places, strict=True):
            part = packed[place : place + array.nbytes].numpy()
            part.view(array.dtype).reshape(array.shape)[...] = array
        sent = packed.to(self.device, non_blocking=True)
        return [
            sent[place : place + array.nbytes].view(_dtype_of(array)).reshape(array.shape)
            for array, place in zip(arrays, places, strict=True)
        ]


def _mixing(request: BatchRequest) -> tuple[NDArray[Any], ...]:
    """What `_mixed` takes, as arrays: boxes and shares of the pairs, partners' labels and weights of the rows. () unmixed."""
    if (mixes := request.mixes) is None:
        return ()
    return mixes.box, mixes.share, swapped(request.labels), mixes.weight.repeat(2)


def _mixed(
    images: torch.Tensor,
    mixing: list[torch.Tensor],
    how: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor],
) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor] | None]:
    """Mix the pairs of `images` by `how`, where there is something in `mixing`; returns `images` and `mixed` of a Batch."""
    if not mixing:
        return images, None
    box, share, partners, weights = mixing
    return how(images, box, share), (partners, weights)


def _operations() -> ModuleType:
    """Return pipeline.data.operations, imported where it is needed: torchvision takes seconds."""
    from pipeline.data import operations

    return operations


def _dtype_of(array: NDArray[Any]) -> torch.dtype:
    return torch.from_numpy(np.empty(0, array.dtype)).dtype


def _in_parallel(task: Callable[[slice], None], rows: int, workers: ThreadPoolExecutor | None) -> None:
    if workers is None:
        return task(slice(0, rows))
    parts = [slice(start, min(start + _CHUNK, rows)) for start in range(0, rows, _CHUNK)]
    for _ in workers.map(task, parts):
        pass
