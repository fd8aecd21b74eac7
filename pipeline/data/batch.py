"""Types at the loader's boundary: LoaderConfig and BatchStream go in, Batch comes out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from typing import Literal

import numpy as np
import torch

from pipeline.base.command import UserError, check_at_least
from pipeline.base.cores import available_cores
from pipeline.data.dataset import Split
from pipeline.data.decoders import Rung, decoder_version
from pipeline.data.mixing import Mixes
from pipeline.data.order import Presentations
from pipeline.data.views import Int, Views


@dataclass(frozen=True, kw_only=True)
class Queues:
    """What decides how fast batches are made, and no bit of them; LoaderConfig describes the values."""

    threads: int
    read_threads: int = 16
    read_ahead: int = 2
    decode_ahead: int = 2
    ready: int = 2


@dataclass(frozen=True, kw_only=True)
class LoaderConfig:
    """How batches are made. decode_on, hw_decoder_load and fancy_upsampling may change a pixel's last grey levels, on a GPU;
    on_decode_error decides where an image is damaged; no other key changes what a batch holds.

    Args:
        threads: threads that decode; left out, as `python -m pipeline.tune` found for this machine, else one per core of
            this rank's share.
        read_threads: reads in flight at once; left out, as tuned, else 16.
        read_ahead: batches being read before DALI asks for them; left out, as tuned, else 2.
        decode_ahead: batches that DALI works on at once; left out, as tuned, else 2.
        ready: finished batches waiting for the consumer; left out, as tuned, else 2.
        stage_to: folder on a disk of this machine to which the shards are copied before the first batch; left out, they are
            read where they are. Processes of one machine share the copies.
        in_memory_mb: a split whose images need no resizing (CIFAR) is decoded once and kept in memory (of the GPU, if the
            batches go there), if it takes at most this many MB; 0: never. Every process keeps its own copy.
        on_decode_error: stop at a training image that does not decode, or substitute the next sample for it.
            Evaluation always stops.
        decode_on: gpu decodes on the GPU that gets the batches, of each image the part that its crop needs; gpu-whole
            decodes whole images there, for GPUs whose decoder fails on parts; cpu decodes on the CPU and sends uint8
            images across the bus; auto is, for batches on a GPU, the first of these that works there.
        hw_decoder_load: share of a training batch's images that goes to the GPU's hardware JPEG decoder, as far as that
            takes them; 0..1. Only with 0 does an image's decoder depend on the image alone, always; between 0 and 1 it
            depends on the batch too, and so on the number of ranks, and the decoders may differ in a pixel's last grey level.
            With 1 that is rare: an image on which the hardware fails sends its whole batch to the other decoder. Left
            out, that of the run's last attempt, else 0. Evaluation always uses 0.
        fancy_upsampling: whether the GPU interpolates chroma as libjpeg-turbo does on the CPU.
    """

    threads: int | None = None
    read_threads: int | None = None
    read_ahead: int | None = None
    decode_ahead: int | None = None
    ready: int | None = None
    stage_to: str | None = None
    in_memory_mb: int = 1000
    on_decode_error: Literal["stop", "substitute"] = "stop"
    decode_on: Literal["auto", "gpu", "gpu-whole", "cpu"] = "auto"
    hw_decoder_load: float | None = None
    fancy_upsampling: bool = True

    def __post_init__(self) -> None:
        check_at_least(1, self, "threads", "read_threads", "read_ahead", "decode_ahead", "ready", prefix="loader.")
        check_at_least(0, self, "in_memory_mb", prefix="loader.")
        if not 0 <= self.hw_share <= 1:
            raise UserError(f"loader: hw_decoder_load is {self.hw_decoder_load}, it must lie in [0, 1]")

    @property
    def queues(self) -> Queues:
        """The values given, and for others the built-in ones."""
        given = {key.name: getattr(self, key.name) for key in fields(Queues)}
        return Queues(**{"threads": available_cores()} | {key: value for key, value in given.items() if value})

    @property
    def hw_share(self) -> float:
        """`hw_decoder_load`, or the built-in value."""
        return self.hw_decoder_load or 0.0

    def rung(self, device: torch.device) -> Rung:
        """Return how images are decoded for batches on `device`. Raises UserError if the configured way is impossible."""
        if device.type == "cuda":
            return "gpu" if self.decode_on == "auto" else self.decode_on
        if self.decode_on in ("gpu", "gpu-whole"):
            raise UserError(
                f"loader: decode_on is {self.decode_on}, but the batches go to the CPU: set decode_on to auto"
            )
        return "cpu"

    def decoding_facts(self, device: torch.device) -> dict[str, str | float | None]:
        """Return what decides the pixels of training batches on `device`, for the run's record.

        decode_on: a rung of `decoders`. hw_decoder_load: None on the CPU. nvimgcodec: the decoder's version.
        """
        rung = self.rung(device)
        load = None if rung == "cpu" else self.hw_share
        return {"decode_on": rung, "hw_decoder_load": load, "nvimgcodec": decoder_version()}

    def decoding_warning(self, device: torch.device) -> str | None:
        """Return a sentence if the pixels of training batches on `device` depend on more than the image and its view."""
        if not self.hw_share or self.rung(device) == "cpu":
            return None
        case = "" if self.hw_share < 1 else ", where the hardware decoder fails on an image (it is rare),"
        return (
            f"loader.hw_decoder_load is {self.hw_decoder_load:g}: which decoder an image gets{case} depends on the batch and "
            "on the number of ranks, and so may a pixel's last grey level (0 avoids that)"
        )


@dataclass(frozen=True)
class BatchRequest:
    """A batch to make: its presentations, their labels int64 [N] and their views, and how its pairs of rows are mixed."""

    presentations: Presentations
    labels: Int
    views: Views
    mixes: Mixes | None = None


@dataclass(frozen=True)
class BatchStream:
    """The batches to make of a split, each of at most `size` rows; iteration yields their requests.

    views_of(presentations, shapes) gives crop, flip and colour of each row; shapes: int64 [N, 2], height and width of the
    decoded images. mixes_of(presentations): how their pairs are mixed; None where no images are mixed.
    """

    split: Split
    size: int
    batches: Iterable[Presentations]
    views_of: Callable[[Presentations, Int], Views]
    mixes_of: Callable[[Presentations], Mixes] | None = None

    def __iter__(self) -> Iterator[BatchRequest]:
        return map(self.request, self.batches)

    def request(self, presentations: Presentations) -> BatchRequest:
        rows = self.split.samples[presentations.ids]
        shapes = np.stack([rows["height"], rows["width"]], axis=1).astype(np.int64)
        mixes = self.mixes_of(presentations) if self.mixes_of else None
        return BatchRequest(presentations, rows["label"].astype(np.int64), self.views_of(presentations, shapes), mixes)


@dataclass(frozen=True)
class Batch:
    """Images and labels on the device, with the sample ids on the host.

    images: [N, H, W, 3] (ten crops: [N, 5, H, W, 3]), float32 or bfloat16, mean subtracted. labels: int64 [N], -1 if
    unlabelled. ids: int64 [N]. mixed: where images are mixed, the labels of the rows that they are mixed with, int64 [N], and
    the weights of their own labels, float32 [N]. substitutions: a sentence for each sample that did not decode and was
    replaced by another, whose id is in `ids`.
    """

    images: torch.Tensor
    labels: torch.Tensor
    ids: Int
    mixed: tuple[torch.Tensor, torch.Tensor] | None = None
    substitutions: tuple[str, ...] = ()
