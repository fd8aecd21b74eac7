"""DALI graphs turn encoded images and their views into uint8 images. The same code serves CPU and GPU, without random state.

Every graph decodes as RGB (greyscale is expanded, EXIF orientation ignored) and resamples with the triangular filter,
widened when shrinking: Pillow's BILINEAR, torchvision's antialias=True. The result is uint8, which is sent to the GPU if
the CPU decodes; `Normalization` turns it into float32 on the device. (On the CPU the float arithmetic inside DALI cost
four times as much as in NumPy: 0.45 ms an image against 0.12.)

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

from pipeline.data.augment import Int, Views, five_crop_starts
from pipeline.data.dataset import Statistics
from pipeline.data.decoders import Rung

Inputs = tuple[Any, ...]  # for each input of the pipeline a list of arrays, or an array [N, ...]
Source = Callable[[], Inputs]
GraphKind = Literal["crop", "five-crops", "whole", "source"]


@dataclass(frozen=True)
class Graph:
    """The operations on each image; `inputs` gives the arrays that its pipeline takes, one row per image.

    kind: "crop": decode a window, resample the crop in it: uint8 [crop, crop, 3], mirrored if the view says so.
          "five-crops": decode and resize the whole image: uint8 [5, crop, crop, 3], in `five_crop_starts`' order.
          "whole": decode and resize the whole image: uint8 [H, W, 3], of the view's `resized` shape.
          "source": decode the whole image, which is uint8 [crop, crop, 3] already.
    rung: see `decoders`; gpu and gpu-whole apply to images for a GPU. With gpu-whole the window of a "crop" is cut out of
          the whole image, on the CPU as well, where the pixels then are those of the other rungs to the bit.
    hw_decoder_load, fancy_upsampling: see LoaderConfig.
    """

    kind: GraphKind
    crop: int  # side of the square, pixels; unused by "whole"
    rung: Rung = "cpu"
    hw_decoder_load: float = 1.0
    fancy_upsampling: bool = True

    def inputs(self, encoded: Sequence[bytes], views: Views) -> Inputs:
        data = [np.frombuffer(image, np.uint8) for image in encoded]
        if self.kind == "source":
            return (data,)
        if self.kind == "whole":
            return data, views.resized.astype(np.float32)
        if self.kind == "five-crops":
            starts = five_crop_starts(views.resized, self.crop).astype(np.int32)
            return data, views.resized.astype(np.float32), starts
        # DALI mirrors an image if the region's end lies before its start.
        start, end = views.roi_start.copy(), views.roi_end.copy()
        start[views.mirror, 1], end[views.mirror, 1] = views.roi_end[views.mirror, 1], views.roi_start[views.mirror, 1]
        return data, views.window_start.astype(np.int32), views.window_shape.astype(np.int32), start, end

    def build(self, source: Source, batch: int, device: torch.device, threads: int, queue: int) -> Pipeline:
        """Return a pipeline that draws batches of up to `batch` images from `source` until that raises StopIteration.

        Its images are on `device` if that decodes them, else on the CPU.
        """
        gpu = device.type == "cuda" and self.rung != "cpu"
        pipeline = Pipeline(
            batch_size=batch,
            num_threads=threads,
            device_id=torch.cuda.current_device() if gpu and device.index is None else device.index if gpu else None,
            prefetch_queue_depth=queue,
            seed=0,  # unused: no operator here draws random numbers
        )
        with pipeline:
            pipeline.set_outputs(self._operators(source, "mixed" if gpu else "cpu", batch))
        pipeline.build()
        return pipeline

    def _operators(self, source: Source, decoder: str, batch: int) -> Any:
        i32, f32 = types.INT32, types.FLOAT
        further = {
            "crop": ((i32, 1), (i32, 1), (f32, 1), (f32, 1)),
            "five-crops": ((f32, 1), (i32, 2)),
            "whole": ((f32, 1),),
            "source": (),
        }[self.kind]
        encoded, *views = fn.external_source(
            source,
            num_outputs=1 + len(further),
            dtype=[types.UINT8, *(dtype for dtype, _ in further)],
            ndim=[1, *(ndim for _, ndim in further)],
        )
        decoding: dict[str, Any] = {"device": decoder, "output_type": types.RGB, "adjust_orientation": False}
        if decoder == "mixed":
            decoding["hw_decoder_load"] = self.hw_decoder_load
            decoding["jpeg_fancy_upsampling"] = self.fancy_upsampling  # as libjpeg-turbo: closer to the CPU's pixels
        resampling: dict[str, Any] = {
            "interp_type": types.INTERP_LINEAR, "antialias": True, "subpixel_scale": False, "minibatch_size": batch,
        }  # fmt: skip
        size = [self.crop, self.crop]
        if self.kind == "crop":
            window_start, window_shape, roi_start, roi_end = views
            window: dict[str, Any] = {"start": window_start, "shape": window_shape, "axis_names": "HW"}
            if self.rung == "gpu-whole":
                windows = fn.slice(fn.decoders.image(encoded, **decoding), **window)
            else:
                windows = fn.decoders.image_slice(encoded, **window, **decoding)
            return fn.resize(windows, size=size, roi_start=roi_start, roi_end=roi_end, **resampling)
        images = fn.decoders.image(encoded, **decoding)
        if self.kind == "source":
            return images
        images = fn.resize(images, size=views[0], **resampling)
        if self.kind == "whole":
            return images
        return fn.stack(*(fn.slice(images, start=views[1][k], shape=size, axis_names="HW") for k in range(5)))


@dataclass(frozen=True)
class Normalization:
    """Computes (image - mean + colour) / std in float32.

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

    def on_cpu(self, images: NDArray[np.uint8], colour: NDArray[np.float32], out: NDArray[np.float32]) -> None:
        """Normalize images uint8 [N, ..., H, W, 3] with colour float32 [N, 3] into `out`, float32 of the images' shape.

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

    def on_gpu(self, images: torch.Tensor, colour: torch.Tensor) -> torch.Tensor:
        """Apply the same operations in the same order, on the device of `images` and `colour`."""
        middle = (1,) * (images.ndim - 2)
        result = images.to(torch.float32).sub_(torch.from_numpy(self.mean).to(images.device))
        result += colour.reshape(-1, *middle, 3)
        if self.std is not None:
            result /= torch.from_numpy(self.std).to(images.device)
        return result


def pad_and_crop(images: torch.Tensor, starts: Int, mirror: NDArray[np.bool_], pad: int) -> torch.Tensor:
    """Crop as in section 4.2: put `pad` zeros around each image, take the S x S square at `starts`, and mirror it.

    images float32 [N, S, S, 3], mean already subtracted; starts int64 [N, 2] in 0..2*pad; mirror bool [N].
    """
    n, side = images.shape[0], images.shape[1]
    padded = torch.nn.functional.pad(images, (0, 0, pad, pad, pad, pad))
    if images.device.type == "cpu":  # slices: three times as fast as one gather
        source, cropped = padded.numpy(), np.empty(images.shape, np.float32)
        for image, (y, x), mirrored, target in zip(source, starts, mirror, cropped, strict=True):
            window = image[y : y + side, x : x + side]
            target[:] = window[:, ::-1] if mirrored else window
        return torch.from_numpy(cropped)
    places = np.arange(side)
    rows = torch.from_numpy(starts[:, :1] + places).to(images.device)
    columns = torch.from_numpy(starts[:, 1:] + np.where(mirror[:, None], places[::-1], places)).to(images.device)
    return padded[torch.arange(n, device=images.device)[:, None, None], rows[:, :, None], columns[:, None, :]]
