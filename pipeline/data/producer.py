"""The loader's background thread. It walks the stages

    plan (ids, views) -> concurrent reads, ahead -> DALI, ahead -> float32 on the device -> bounded queue -> consumer

so that a batch is ready when it is asked for.
"""

from __future__ import annotations

import os
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pipeline.command import UserError
from pipeline.data.augment import Int, Views
from pipeline.data.dataset import Split
from pipeline.data.graphs import Graph, Inputs, Normalization, pad_and_crop

_POLL_SECONDS = 0.1  # how often a blocked producer looks whether it should stop


@dataclass(frozen=True, kw_only=True)
class LoaderConfig:
    """How batches are made; nothing here changes their content.

    threads: threads that decode; None is one per core that this process may use.
    read_threads: reads in flight at once. read_ahead: batches being read before DALI asks for them.
    decode_ahead: batches that DALI works on at once. ready: finished batches waiting for the consumer.
    """

    threads: int | None = None
    read_threads: int = 16
    read_ahead: int = 2
    decode_ahead: int = 2
    ready: int = 2

    def __post_init__(self) -> None:
        counts = (self.threads or 1, self.read_threads, self.read_ahead, self.decode_ahead, self.ready)
        if min(counts) < 1 or self.threads == 0:
            raise UserError("loader: threads, read_threads, read_ahead, decode_ahead and ready must be at least 1")

    @property
    def cores(self) -> int:
        return self.threads or len(os.sched_getaffinity(0))


@dataclass(frozen=True)
class Batch:
    """images: float32 [N, H, W, 3] on the device (ten crops: [N, 5, H, W, 3]), mean subtracted.

    labels: int64 [N] on the device, -1 where unlabelled. ids: int64 [N], sample ids, on the host.
    """

    images: torch.Tensor
    labels: torch.Tensor
    ids: Int


@dataclass(frozen=True)
class Work:
    """A batch to be made."""

    ids: Int
    labels: Int
    views: Views


@dataclass(frozen=True)
class Item:
    """What travels to the consumer: a batch, an error, or neither at the end."""

    batch: Batch | None = None
    error: BaseException | None = None
    event: torch.cuda.Event | None = None


@dataclass
class _Reading:
    """A batch whose images are being read."""

    work: Work
    parts: list[Future[None]]
    encoded: list[bytes]

    def wait(self) -> list[bytes]:
        for part in self.parts:
            part.result()
        return self.encoded


class Producer:
    """The background thread and what it owns. Holds no reference to the BatchIterator, which may thus be collected."""

    def __init__(
        self,
        split: Split,
        plan: Iterator[Work],
        size: int,
        graph: Graph,
        finish: Finish,
        device: torch.device,
        config: LoaderConfig,
    ) -> None:
        self.split, self.plan, self.size, self.graph = split, plan, size, graph
        self.finish, self.device, self.config = finish, device, config
        self.ready: queue.Queue[Item] = queue.Queue(config.ready)
        self.stopping = threading.Event()
        self.reading: deque[_Reading] = deque()
        self.decoding: deque[_Reading] = deque()
        self.thread = threading.Thread(target=self._run, name="loader", daemon=True)

    def close(self) -> None:
        self.stopping.set()
        if self.thread.is_alive() and self.thread is not threading.current_thread():
            self.thread.join()

    def _run(self) -> None:
        try:
            with (
                ThreadPoolExecutor(self.config.read_threads, "loader-read") as self.readers,
                ThreadPoolExecutor(self.config.cores, "loader-finish") as self.finishers,
            ):
                try:
                    self._produce()
                finally:
                    self.readers.shutdown(wait=False, cancel_futures=True)
            self._put(Item())
        except BaseException as error:  # whatever happened belongs to the consumer
            self._put(Item(error=error))
        finally:
            self.reading.clear()
            self.decoding.clear()

    def _produce(self) -> None:
        config = self.config
        pipeline = self.graph.build(self._next_inputs, self.size, self.device, config.cores, config.decode_ahead)
        stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        try:
            pipeline.schedule_run()  # starts `decode_ahead` batches
            while not self.stopping.is_set():
                try:
                    (images,) = pipeline.share_outputs(stream)
                except StopIteration:
                    return
                # DALI's default execution model counts references to outputs: `images` stays valid after its release.
                pipeline.release_outputs()
                work = self.decoding.popleft().work
                pipeline.schedule_run()
                batch, event = self.finish(images, work, self.finishers, stream)
                self._put(Item(batch, event=event))
        except RuntimeError as error:
            raise self._explain(error) from error
        finally:
            del pipeline

    def _next_inputs(self) -> Inputs:
        """Called by DALI when it starts a batch. Raises StopIteration at the end of the plan."""
        while len(self.reading) < self.config.read_ahead + 1 and not self.stopping.is_set():
            work = next(self.plan, None)
            if work is None:
                break
            self.reading.append(self._read(work))
        if not self.reading or self.stopping.is_set():
            raise StopIteration
        batch = self.reading.popleft()
        encoded = batch.wait()
        self.decoding.append(batch)
        return self.graph.inputs(encoded, batch.work.views)

    def _read(self, work: Work) -> _Reading:
        """Start reading a batch: each of the parallel parts walks neighbouring samples in the order of the disk."""
        encoded = [b""] * len(work.ids)

        def read(part: Int) -> None:
            for row in part:
                encoded[row] = self.split.read(int(work.ids[row]))

        on_disk = np.argsort(work.ids, kind="stable")
        parts = np.array_split(on_disk, min(self.config.read_threads, len(on_disk)))
        return _Reading(work, [self.readers.submit(read, part) for part in parts], encoded)

    def _put(self, item: Item) -> None:
        while not self.stopping.is_set():
            try:
                return self.ready.put(item, timeout=_POLL_SECONDS)
            except queue.Full:
                continue

    def _explain(self, error: RuntimeError) -> Exception:
        """Name the sample that made DALI fail: the first in flight that does not pass through the same graph alone."""
        for batch in self.decoding:
            for row, sample in enumerate(batch.work.ids):
                if self.stopping.is_set():
                    return error
                inputs = self.graph.inputs([batch.encoded[row]], batch.work.views.rows(slice(row, row + 1)))
                if (reason := self._failure(inputs)) is not None:
                    return UserError(
                        f"{self.split.describe(int(sample))} does not decode ({reason}): "
                        "check the dataset with data_prep/verify.py and prepare or copy that shard again"
                    )
        return error

    def _failure(self, inputs: Inputs) -> str | None:
        """Why DALI fails on one image, None where it does not."""
        given = iter([inputs])
        pipeline = self.graph.build(lambda: next(given), 1, self.device, 1, 1)
        try:
            pipeline.schedule_run()
            pipeline.share_outputs()
            return None
        except RuntimeError as error:
            return _reason(str(error))


class Finish:
    """DALI's uint8 images -> a Batch: float32, mean subtracted, coloured, and padded and cropped for CIFAR."""

    def __init__(self, normalization: Normalization, device: torch.device, pad: int | None = None) -> None:
        self.normalization, self.device, self.pad = normalization, device, pad

    def __call__(
        self, images: Any, work: Work, workers: ThreadPoolExecutor, stream: torch.cuda.Stream | None
    ) -> tuple[Batch, torch.cuda.Event | None]:
        if stream is None:
            result = self._on_cpu(images, work.views, workers)
            return Batch(self._crop(result, work.views), torch.from_numpy(work.labels), work.ids), None
        with torch.cuda.stream(stream):
            colour = torch.from_numpy(work.views.colour).to(self.device)
            result = self.normalization.on_gpu(torch.from_dlpack(images.as_tensor()), colour)
            batch = Batch(self._crop(result, work.views), torch.from_numpy(work.labels).to(self.device), work.ids)
            event = torch.cuda.Event()
            event.record(stream)
        return batch, event

    def _on_cpu(self, images: Any, views: Views, workers: ThreadPoolExecutor) -> torch.Tensor:
        """The float arithmetic also makes the copy out of DALI's memory, which DALI will use again."""
        source = np.asarray(images.as_tensor())
        result = np.empty(source.shape, np.float32)

        def convert(rows: slice) -> None:
            self.normalization.on_cpu(source[rows], views.colour[rows], result[rows])

        _in_parallel(convert, len(source), workers)
        return torch.from_numpy(result)

    def _crop(self, images: torch.Tensor, views: Views) -> torch.Tensor:
        return images if self.pad is None else pad_and_crop(images, views.crop_start, views.mirror, self.pad)


def _in_parallel(task: Callable[[slice], None], rows: int, workers: ThreadPoolExecutor, chunk: int = 8) -> None:
    parts: Iterable[slice] = (slice(start, min(start + chunk, rows)) for start in range(0, rows, chunk))
    for _ in workers.map(task, parts):
        pass


def _reason(message: str) -> str:
    """The informative lines of a DALI error: not where in its own graph and C++ sources the operator stands."""
    lines = [line.strip() for line in message.splitlines()]
    kept = [line for line in lines if line and not line.startswith(("Critical error", "Current pipeline", "which was"))]
    return " ".join(kept)[:300] or "no reason given"
