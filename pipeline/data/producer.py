"""The loader's background thread, which has batches ready before the consumer asks for them:

requests (ids, views) -> concurrent reads, ahead -> DALI, ahead -> a batch on the device -> bounded queue -> consumer
"""

from __future__ import annotations

import contextlib
import dataclasses
import queue
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pipeline.base.command import UserError
from pipeline.data.batch import Batch, BatchRequest, BatchStream, LoaderConfig
from pipeline.data.dali_errors import DALI_ERRORS, is_of_memory
from pipeline.data.decoders import decoder_name, device_index
from pipeline.data.failures import Judge, header_faults
from pipeline.data.finishing import Finish
from pipeline.data.graphs import Graph, Inputs
from pipeline.data.headers import is_doubtful
from pipeline.data.lending import Lent
from pipeline.data.views import Int

_POLL_SECONDS = 0.1  # how often a blocked producer checks whether it should stop
_LENT = 4  # batches whose memory the GPU may still read


@dataclass(frozen=True)
class Item:
    """What the consumer gets: a batch, an error, or neither at the end."""

    batch: Batch | None = None
    error: BaseException | None = None
    event: torch.cuda.Event | None = None


@dataclass
class _Reading:
    """A batch whose images are being read, then decoded."""

    request: BatchRequest
    parts: list[Future[None]]
    encoded: list[bytes]
    inputs: Inputs = ()  # what DALI reads
    substitutions: tuple[str, ...] = ()
    cleared: bool = False  # its doubtful images were judged


class _BatchError(Exception):
    """DALI failed on one of the batches in flight."""


class Producer(ABC):
    """A background thread that makes the items of a BatchIterator; a subclass's `_produce` makes all of them.

    It holds no reference to the BatchIterator, so that the garbage collector can free the BatchIterator.
    """

    def __init__(self, ready: int, device: torch.device) -> None:
        """ready: number of finished batches that may wait for the consumer. device: where they are."""
        self.gpu = device_index(device) if device.type == "cuda" else None
        self.ready: queue.Queue[Item] = queue.Queue(ready)
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self._run, name="loader", daemon=True)

    def close(self) -> None:
        self.stopping.set()
        if self.thread.is_alive() and self.thread is not threading.current_thread():
            self.thread.join()

    def _run(self) -> None:
        try:
            if self.gpu is not None:
                torch.cuda.set_device(self.gpu)  # a thread starts with GPU 0
            self._produce()
            self._put(Item())
        except BaseException as error:  # the consumer raises it
            self._put(Item(error=error))

    @abstractmethod
    def _produce(self) -> None: ...

    def _put(self, item: Item) -> None:
        """Hand an item to the consumer; wait for a free place in the queue unless the thread is stopping."""
        while not self.stopping.is_set():
            try:
                return self.ready.put(item, timeout=_POLL_SECONDS)
            except queue.Full:
                continue


class DaliProducer(Producer):
    """Reads and decodes ahead, with DALI."""

    def __init__(
        self,
        stream: BatchStream,
        graph: Graph,
        finish: Finish,
        config: LoaderConfig,
        owns_split: bool = False,
    ) -> None:
        """owns_split: whether to close the stream's split at the end."""
        super().__init__(config.queues.ready, finish.device)
        self.stream, self.graph, self.finish, self.config = stream, graph, finish, config
        self.queues = config.queues
        self.judge = Judge(stream, graph, finish.device, decoder_name(finish.device))
        self.owns_split = owns_split
        self.todo: Iterator[BatchRequest] = iter(stream)
        self.reading: deque[_Reading] = deque()
        self.decoding: deque[_Reading] = deque()
        self.lent = Lent(_LENT)

    def _run(self) -> None:
        try:
            super()._run()
        finally:
            self.reading.clear()
            self.decoding.clear()
            if self.owns_split:
                self.stream.split.close()

    def _produce(self) -> None:
        with (
            ThreadPoolExecutor(self.queues.read_threads, "loader-read") as self.readers,
            ThreadPoolExecutor(self.queues.threads, "loader-finish") as self.finishers,
        ):
            try:
                self._produce_mending()
            finally:
                self.readers.shutdown(wait=False, cancel_futures=True)
                with contextlib.suppress(RuntimeError):  # of a GPU that failed: it reads no more
                    self.lent.wait()

    def _produce_mending(self) -> None:
        while True:
            try:
                return self._decode()
            except _BatchError as failed:
                assert failed.__cause__ is not None
                # Its traceback would keep the failed pipeline alive, with all its memory, while images are judged.
                cause = failed.__cause__.with_traceback(None)
            self._mend(cause)

    def _decode(self) -> None:
        """Decode batches to the end of the stream. Raises _BatchError; the batches in flight are then in `decoding`."""
        device, threads, ahead = self.finish.device, self.queues.threads, self.queues.decode_ahead
        pipeline = self._call(self.graph.build, self._next_inputs, self.stream.size, device, threads, ahead)
        self._call(pipeline.schedule_run)  # starts `decode_ahead` batches
        while not self.stopping.is_set():
            try:
                (outputs,) = self._call(pipeline.share_outputs, self.finish.stream)
            except StopIteration:
                return
            # DALI's default execution model counts references to outputs: they stay valid after their release.
            pipeline.release_outputs()
            done = self.decoding.popleft()
            try:
                self._call(pipeline.schedule_run)
            finally:  # this batch is sound, even if the next one fails
                batch, event = self.finish(outputs, done.request, self.finishers)
                if event is not None:
                    self.lent.lend(event, (outputs, done))
                self._put(Item(dataclasses.replace(batch, substitutions=done.substitutions), event=event))

    def _call(self, function: Any, *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except DALI_ERRORS as error:
            raise _BatchError from error

    def _next_inputs(self) -> Inputs:
        """Return the inputs of the next batch, when DALI starts it. Raises StopIteration at the end of the stream."""
        while len(self.reading) < self.queues.read_ahead + 1 and not self.stopping.is_set():
            request = next(self.todo, None)
            if request is None:
                break
            self.reading.append(self._read(request))
        if not self.reading or self.stopping.is_set():
            raise StopIteration
        batch = self.reading.popleft()
        for part in batch.parts:
            part.result()
        if not batch.cleared:
            self._clear(batch)
        batch.inputs = self.graph.inputs(batch.encoded, batch.request.views)
        self.decoding.append(batch)
        return batch.inputs

    def _clear(self, batch: _Reading) -> None:
        """Replace the images that DALI must not decode, or not together with others; see `headers`."""
        images, ids = batch.encoded, batch.request.presentations.ids
        faulty = header_faults(self.stream.split, ids, images, range(len(images)))
        if faulty:
            self._replace(batch, faulty)
        doubtful = [row for row, image in enumerate(images) if row not in faulty and is_doubtful(image)]
        if doubtful:
            self._replace(batch, self.judge.damaged(batch.request, images, doubtful))
        batch.cleared = True

    def _read(self, request: BatchRequest) -> _Reading:
        """Start to read a batch in parallel parts; each part reads neighbouring samples in their order on the disk."""
        ids, split = request.presentations.ids, self.stream.split
        encoded = [b""] * len(ids)

        def read(part: Int) -> None:
            for row in part:
                encoded[row] = split.read(int(ids[row]))

        on_disk = np.argsort(ids, kind="stable")
        parts = np.array_split(on_disk, min(self.queues.read_threads, len(on_disk)))
        return _Reading(request, [self.readers.submit(read, part) for part in parts], encoded)

    def _mend(self, cause: BaseException) -> None:
        """Replace the damaged images on which DALI failed and put the batches in flight back; or raise the reason."""
        if is_of_memory(cause):
            raise self.judge.out_of_memory(cause) from cause
        for batch in self.decoding:  # DALI tells of failures in order, so it is the first; a GPU may tell late
            if self.stopping.is_set():
                return
            damaged = self.judge.damaged(batch.request, batch.encoded, range(len(batch.encoded)))
            if damaged:
                self._replace(batch, damaged, cause)
                break
        else:
            if self.graph.rung == "cpu":
                raise cause
            raise self.judge.gpu_failed("", cause) from cause
        self.reading.extendleft(reversed(self.decoding))
        self.decoding.clear()

    def _replace(self, batch: _Reading, damaged: dict[int, str], cause: BaseException | None = None) -> None:
        """Substitute the `damaged` rows, with their reasons. Raises UserError if they must not be substituted."""
        split = self.stream.split
        for row, reason in damaged.items():
            sample = int(batch.request.presentations.ids[row])
            sentence = f"{split.describe(sample)} does not decode ({reason})"
            if self.config.on_decode_error == "stop":
                raise UserError(
                    f"{sentence}: check the dataset with data_prep/verify.py; copy that shard again if it differs from its "
                    "checksum, else remove the dataset and prepare it again, which names such images "
                    "(to train without it, set loader.on_decode_error: substitute)"
                ) from cause
            batch.request = self.judge.substitute(batch.request, batch.encoded, row)
            substitute_id = batch.request.presentations.ids[row]
            batch.substitutions += (f"{sentence}, substituted by sample {substitute_id}",)
