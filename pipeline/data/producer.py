"""The loader's background thread. It walks the stages

    plan (ids, views) -> concurrent reads, ahead -> DALI, ahead -> float32 on the device -> bounded queue -> consumer

so that a batch is ready when it is asked for.
"""

from __future__ import annotations

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
from pipeline.data.augment import Int
from pipeline.data.batch import Batch, LoaderConfig, Plan, Work
from pipeline.data.failures import failures, substitute
from pipeline.data.finishing import Finish
from pipeline.data.graphs import Graph, Inputs
from pipeline.data.headers import is_doubtful

_POLL_SECONDS = 0.1  # how often a blocked producer looks whether it should stop


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
    substitutions: tuple[str, ...] = ()
    tried: bool = False  # image by image: what is left in it decodes

    def wait(self) -> list[bytes]:
        for part in self.parts:
            part.result()
        return self.encoded


class _BatchError(Exception):
    """DALI failed on one of the batches in flight."""


class _DoubtfulImageError(RuntimeError):
    """An image of the next batch looks damaged: it is not for DALI to find out among others."""


class Producer(ABC):
    """A background thread that makes items for a BatchIterator; `_produce` of a subclass makes them, to the end.

    Holds no reference to the BatchIterator, which may thus be collected.
    """

    def __init__(self, ready: int) -> None:
        """ready: finished batches that may wait for the consumer."""
        self.ready: queue.Queue[Item] = queue.Queue(ready)
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self._run, name="loader", daemon=True)

    def close(self) -> None:
        self.stopping.set()
        if self.thread.is_alive() and self.thread is not threading.current_thread():
            self.thread.join()

    def _run(self) -> None:
        try:
            self._produce()
            self._put(Item())
        except BaseException as error:  # whatever happened belongs to the consumer
            self._put(Item(error=error))

    @abstractmethod
    def _produce(self) -> None: ...

    def _put(self, item: Item) -> None:
        """Hand an item to the consumer, waiting for its place unless all is stopping."""
        while not self.stopping.is_set():
            try:
                return self.ready.put(item, timeout=_POLL_SECONDS)
            except queue.Full:
                continue


class DaliProducer(Producer):
    """Reads and decodes ahead, by DALI."""

    def __init__(
        self,
        plan: Plan,
        graph: Graph,
        finish: Finish,
        device: torch.device,
        config: LoaderConfig,
        *,
        substitutes: bool,
        owns_split: bool,
    ) -> None:
        """device: where images are decoded. substitutes: whether a sample that does not decode may be replaced.

        owns_split: whether to close the plan's split at the end.
        """
        super().__init__(config.ready)
        self.plan, self.graph, self.finish, self.device, self.config = plan, graph, finish, device, config
        self.substitutes, self.owns_split = substitutes, owns_split
        self.todo: Iterator[Work] = iter(plan)
        self.reading: deque[_Reading] = deque()
        self.decoding: deque[_Reading] = deque()

    def _run(self) -> None:
        try:
            super()._run()
        finally:
            self.reading.clear()
            self.decoding.clear()
            if self.owns_split:
                self.plan.split.close()

    def _produce(self) -> None:
        with (
            ThreadPoolExecutor(self.config.read_threads, "loader-read") as self.readers,
            ThreadPoolExecutor(self.config.cores, "loader-finish") as self.finishers,
        ):
            try:
                self._produce_mending()
            finally:
                self.readers.shutdown(wait=False, cancel_futures=True)

    def _produce_mending(self) -> None:
        while True:
            try:
                return self._decode()
            except _BatchError as failed:
                cause = failed.__cause__
                assert cause is not None
            self._mend(cause)

    def _decode(self) -> None:
        """Batch after batch, to the end of the plan. Raises _BatchError; the batches in flight are in `decoding`."""
        config = self.config
        pipeline = self.graph.build(self._next_inputs, self.plan.size, self.device, config.cores, config.decode_ahead)
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
            finally:  # this batch is sound, whatever becomes of the next one
                batch, event = self.finish(outputs, done.work, self.finishers)
                self._put(Item(dataclasses.replace(batch, substitutions=done.substitutions), event=event))

    def _call(self, function: Any, *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except RuntimeError as error:  # all that DALI raises
            raise _BatchError from error

    def _next_inputs(self) -> Inputs:
        """Called by DALI when it starts a batch. Raises StopIteration at the end of the plan."""
        while len(self.reading) < self.config.read_ahead + 1 and not self.stopping.is_set():
            work = next(self.todo, None)
            if work is None:
                break
            self.reading.append(self._read(work))
        if not self.reading or self.stopping.is_set():
            raise StopIteration
        batch = self.reading.popleft()
        encoded = batch.wait()
        self.decoding.append(batch)
        if not batch.tried and any(map(is_doubtful, encoded)):
            raise _DoubtfulImageError
        return self.graph.inputs(encoded, batch.work.views)

    def _read(self, work: Work) -> _Reading:
        """Start reading a batch: each of the parallel parts walks neighbouring samples in the order of the disk."""
        ids, split = work.shown.ids, self.plan.split
        encoded = [b""] * len(ids)

        def read(part: Int) -> None:
            for row in part:
                encoded[row] = split.read(int(ids[row]))

        on_disk = np.argsort(ids, kind="stable")
        parts = np.array_split(on_disk, min(self.config.read_threads, len(on_disk)))
        return _Reading(work, [self.readers.submit(read, part) for part in parts], encoded)

    def _mend(self, cause: BaseException) -> None:
        """After a failure: replace what does not decode and put the batches in flight back, or say what it was."""
        mended = isinstance(cause, _DoubtfulImageError)  # it may have been groundless
        for batch in self.decoding:
            if self.stopping.is_set():
                return
            found = failures(self.graph, batch.encoded, batch.work.views, self.device)
            for row, reason in found.items():
                split, sample = self.plan.split, int(batch.work.shown.ids[row])
                sentence = f"{split.describe(sample)} does not decode ({reason})"
                if not self.substitutes:
                    raise UserError(
                        f"{sentence}: check the dataset with data_prep/verify.py, and prepare or copy that shard again "
                        "(training can go on without it: loader.on_decode_error: substitute)"
                    ) from cause
                batch.work = substitute(self.plan, self.graph, batch.work, batch.encoded, row, self.device)
                batch.substitutions += (f"{sentence}, substituted by sample {batch.work.shown.ids[row]}",)
                mended = True
            batch.tried = True
        if not mended:
            raise cause
        self.reading.extendleft(reversed(self.decoding))
        self.decoding.clear()
