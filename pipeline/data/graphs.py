"""DALI graphs turn encoded images and their views into images. The same code serves CPU and GPU, without random state.

Every graph decodes as RGB (greyscale is expanded, EXIF orientation ignored) and resamples with the triangular filter,
widened when shrinking: Pillow's BILINEAR, torchvision's antialias=True. Images for a GPU are also normalized in the graph,
there. On the CPU the result is uint8, and NumPy normalizes: inside DALI that cost four times as much there (0.45 ms an
image against 0.12).

Decoding at a reduced DCT scale was measured and left out: 3.6% of the presentations of real images shrink by two or
more, and for those Pillow's half-scale decode alone took 7.3 ms, where the window's decode and resize here take 7.9; the
images differ by 36 to 46 dB.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from nvidia.dali import Pipeline, fn, types
from nvidia.dali.data_node import DataNode
from nvidia.dali.tensors import TensorCPU, TensorListCPU

from pipeline.data.dataset import Statistics
from pipeline.data.decoders import Rung, device_index
from pipeline.data.views import Int, Views, five_crop_starts
from pipeline.data.whole import DECODING

# Threads of DALI at most where a GPU decodes: for each of them DALI allocates ahead two page-locked buffers of 8 MB, and
# 16 MB on the GPU (2 GB there for the 128 threads of a large host).
GPU_THREADS = 32

Inputs = tuple[Any, ...]  # for each input of the pipeline a list of TensorCPU, or a TensorListCPU
Source = Callable[[], Inputs]
GraphKind = Literal["crop", "five-crops", "whole", "source"]


@dataclass(frozen=True)
class Graph:
    """The operations on each image; `inputs` gives what its pipeline takes, one row per image.

    kind: "crop": decode a window, resample the crop in it: uint8 [crop, crop, 3], mirrored if the view says so.
          "five-crops": decode and resize the whole image: uint8 [5, crop, crop, 3], in `five_crop_starts`' order.
          "whole": decode and resize the whole image: uint8 [H, W, 3], of the view's `resized` shape.
          "source": decode the whole image, which is uint8 [crop, crop, 3] already.
    rung: see `decoders`; gpu and gpu-whole apply to images for a GPU. With gpu-whole the window of a "crop" is cut out of
          the whole image, on the CPU as well, where the pixels then are those of the other rungs to the bit.
    normalization: makes float32 images of the same shapes; None leaves them uint8.
    hw_decoder_load, fancy_upsampling: see LoaderConfig.
    """

    kind: GraphKind
    crop: int  # side of the square, pixels; unused by "whole"
    rung: Rung = "cpu"
    normalization: Normalization | None = None
    hw_decoder_load: float = 0.0
    fancy_upsampling: bool = True

    def inputs(self, encoded: Sequence[bytes], views: Views) -> Inputs:
        """Return tensors that share the memory of `encoded`. DALI reads it until the batch is out.

        Keep them until then: DALI's own threads would release them one by one, and each time wait for the interpreter.
        """
        arrays = [*self._geometry(views), *(() if self.normalization is None else (views.colour,))]
        data = [TensorCPU(np.frombuffer(image, np.uint8)) for image in encoded]
        return data, *(TensorListCPU(np.ascontiguousarray(array)) for array in arrays)

    def _geometry(self, views: Views) -> tuple[NDArray[Any], ...]:
        if self.kind == "source":
            return ()
        if self.kind == "whole":
            return (views.resized.astype(np.float32),)
        if self.kind == "five-crops":
            return views.resized.astype(np.float32), five_crop_starts(views.resized, self.crop).astype(np.int32)
        # DALI mirrors an image if the region's end lies before its start.
        start, end = views.roi_start.copy(), views.roi_end.copy()
        start[views.mirror, 1], end[views.mirror, 1] = views.roi_end[views.mirror, 1], views.roi_start[views.mirror, 1]
        return views.window_start.astype(np.int32), views.window_shape.astype(np.int32), start, end

    def build(self, source: Source, batch: int, device: torch.device, threads: int, queue: int) -> Pipeline:
        """Return a pipeline that draws batches of up to `batch` images from `source` until that raises StopIteration.

        device: where its images are to be. threads: where a GPU decodes, DALI takes GPU_THREADS of them at most. Raises
        RuntimeError if DALI cannot build it, for want of a decoder for instance, and MemoryError.
        """
        gpu = device.type == "cuda"
        pipeline = Pipeline(
            batch_size=batch,
            num_threads=min(threads, GPU_THREADS) if gpu and self.rung != "cpu" else threads,
            device_id=device_index(device) if gpu else None,
            prefetch_queue_depth=queue,
            seed=0,  # unused: no operator here draws random numbers
        )
        with pipeline:
            pipeline.set_outputs(self._operators(source, batch, gpu))
        pipeline.build()
        return pipeline

    def _operators(self, source: Source, batch: int, gpu: bool) -> DataNode:
        i32, f32 = types.INT32, types.FLOAT
        further = {
            "crop": ((i32, 1), (i32, 1), (f32, 1), (f32, 1)),
            "five-crops": ((f32, 1), (i32, 2)),
            "whole": ((f32, 1),),
            "source": (),
        }[self.kind] + (() if self.normalization is None else ((f32, 1),))
        encoded, *views = fn.external_source(
            source,
            num_outputs=1 + len(further),
            dtype=[types.UINT8, *(dtype for dtype, _ in further)],
            ndim=[1, *(ndim for _, ndim in further)],
            no_copy=True,  # a copy would hold the interpreter's lock for 65 us more an image
        )
        images = self._views_of(encoded, views, batch, "mixed" if gpu and self.rung != "cpu" else "cpu")
        if gpu:
            images = images.gpu()  # a no-op where they were decoded there
        if self.normalization is None:
            return images
        return self.normalization.in_graph(images, views[-1].gpu() if gpu else views[-1], "gpu" if gpu else "cpu")

    def _views_of(self, encoded: DataNode, views: Sequence[DataNode], batch: int, decoder: str) -> DataNode:
        """Return the uint8 images, on the device that decodes them."""
        decoding: dict[str, Any] = {"device": decoder, **DECODING}
        if decoder == "mixed":
            decoding["hw_decoder_load"] = self.hw_decoder_load
            decoding["jpeg_fancy_upsampling"] = self.fancy_upsampling  # as libjpeg-turbo: closer to the CPU's pixels
        resampling: dict[str, Any] = {
            "interp_type": types.INTERP_LINEAR, "antialias": True, "subpixel_scale": False, "minibatch_size": batch,
        }  # fmt: skip
        size = [self.crop, self.crop]
        if self.kind == "crop":
            window: dict[str, Any] = {"start": views[0], "shape": views[1], "axis_names": "HW"}
            if self.rung == "gpu-whole":
                windows = fn.slice(fn.decoders.image(encoded, **decoding), **window)
            else:
                windows = fn.decoders.image_slice(encoded, **window, **decoding)
            return fn.resize(windows, size=size, roi_start=views[2], roi_end=views[3], **resampling)
        images = fn.decoders.image(encoded, **decoding)
        if self.kind == "source":
            return images
        images = fn.resize(images, size=views[0], **resampling)
        if self.kind == "whole":
            return images
        return fn.stack(*(fn.slice(images, start=views[1][k], shape=size, axis_names="HW") for k in range(5)))


@dataclass(frozen=True)
class Normalization:
    """Computes (image - mean + colour) / std in float32, with the same operations in the same order wherever it works.

    mean: float32 [S, S, 3], subtracted pixel by pixel, or [3]; 0..255. std: float32 [3], or None for no division.
    """

    mean: NDArray[np.float32]
    std: NDArray[np.float32] | None = None

    @staticmethod
    def of(statistics: Statistics, side: int | None, std: Sequence[float] | None = None) -> Normalization:
        """Use the mean image for images of its size, `side` pixels square, and its channel mean for others (or side None).

        The paper subtracts the per-pixel mean (section 3.4); the channel mean at other sizes is our inference.
        """
        fits = side is not None and statistics.mean_image.shape[:2] == (side, side)
        mean = statistics.mean_image if fits else statistics.mean_colour
        return Normalization(np.asarray(mean, np.float32), None if std is None else np.asarray(std, np.float32))

    def on_cpu(
        self, images: NDArray[np.uint8 | np.float32], colour: NDArray[np.float32], out: NDArray[np.float32]
    ) -> None:
        """Normalize images uint8 or float32 [N, ..., H, W, 3] with colour float32 [N, 3] into `out`, float32 of that shape.

        This works image by image, so that each stays in the processor's cache, with the last two axes merged, because
        NumPy's loops over an axis of 3 are slow.
        """
        *_, height, width, _ = images.shape
        mean = np.broadcast_to(self.mean, (height, width, 3)).reshape(height, width * 3)
        for image, shift, target in zip(images, colour, out, strict=True):
            flat = target.reshape(*target.shape[:-2], width * 3)
            np.subtract(image.reshape(flat.shape), mean, out=flat)
            if shift.any():
                flat += np.tile(shift, width)
            if self.std is not None:
                flat /= np.tile(self.std, width)

    def in_graph(self, images: DataNode, colour: DataNode, device: Literal["cpu", "gpu"]) -> DataNode:
        """Normalize in a DALI graph, on `device`: images uint8 [..., H, W, 3], colour float32 [3], for each image.

        DALI keeps the mean on the device once for each image of a batch: 154 MB for 256 images of 224 pixels.
        """
        result = images - types.Constant(self.mean, device=device) + colour
        return result if self.std is None else result / types.Constant(self.std, device=device)

    def to(self, device: torch.device) -> DeviceNormalization:
        std = None if self.std is None else torch.from_numpy(self.std).to(device)
        return DeviceNormalization(torch.from_numpy(self.mean).to(device), std)


@dataclass(frozen=True)
class DeviceNormalization:
    """A Normalization whose mean and std are on a device, for images that DALI does not handle there."""

    mean: torch.Tensor
    std: torch.Tensor | None

    def __call__(self, images: torch.Tensor, colour: torch.Tensor) -> torch.Tensor:
        """Return float32 of the shape of images, uint8 [N, ..., H, W, 3]; colour: float32 [N, 3]. All are on the device."""
        result = images.to(torch.float32).sub_(self.mean)
        result += colour.reshape(-1, *(1,) * (images.ndim - 2), 3)
        if self.std is not None:
            result /= self.std
        return result


def crop_places(starts: Int, mirror: NDArray[np.bool_], side: int) -> tuple[Int, Int]:
    """Return rows and columns, each int64 [N, side], of the squares at `starts` (int64 [N, 2]), mirrored where `mirror`."""
    places = np.arange(side)
    return starts[:, :1] + places, starts[:, 1:] + np.where(mirror[:, None], places[::-1], places)


def pad_and_crop(images: torch.Tensor, starts: Int, mirror: NDArray[np.bool_], pad: int) -> torch.Tensor:
    """Crop as in section 4.2: put `pad` zeros around each image, take the S x S square at `starts`, and mirror it.

    images float32 [N, S, S, 3] on the CPU, mean already subtracted; starts int64 [N, 2] in 0..2*pad; mirror bool [N].
    """
    side = images.shape[1]
    source, cropped = _padded(images, pad).numpy(), np.empty(images.shape, np.float32)
    for image, (y, x), mirrored, target in zip(source, starts, mirror, cropped, strict=True):
        window = image[y : y + side, x : x + side]
        target[:] = window[:, ::-1] if mirrored else window
    return torch.from_numpy(cropped)


def pad_and_gather(images: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor, pad: int) -> torch.Tensor:
    """Do the same as `pad_and_crop` in one gather, on any device: fast on a GPU, slow on a CPU. See `crop_places`."""
    samples = torch.arange(len(images), device=images.device)
    return _padded(images, pad)[samples[:, None, None], rows[:, :, None], columns[:, None, :]]


def _padded(images: torch.Tensor, pad: int) -> torch.Tensor:
    return torch.nn.functional.pad(images, (0, 0, pad, pad, pad, pad))
