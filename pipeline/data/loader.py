"""The loader: binds the dataset's bytes, the order, the views and the DALI graphs into prefetched batches.

A batch is a function of (split, seed, iteration) and of its rows alone: neither the number of threads, nor the other
rows, nor the world size changes a bit of an image.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Self

import numpy as np
import torch

from pipeline.data.augment import AugmentConfig, CenterCrop, Int, TenCrop, centre_views, training_views
from pipeline.data.dataset import Split, Statistics
from pipeline.data.graphs import Graph, Normalization
from pipeline.data.order import Order
from pipeline.data.producer import Batch, Finish, LoaderConfig, Producer, Work

__all__ = ["Batch", "BatchIterator", "LoaderConfig", "evaluation_batches", "training_batches"]


def training_batches(
    split: Split,
    order: Order,
    augment: AugmentConfig,
    statistics: Statistics,
    rows: slice,
    start_iteration: int,
    stop_iteration: int,
    device: torch.device,
    config: LoaderConfig,
    *,
    normalization: Normalization | None = None,
) -> BatchIterator:
    """One Batch for each iteration in [start_iteration, stop_iteration): the `rows` of its mini-batch.

    The draws are keyed by `order.seed`. normalization: None subtracts the statistics' mean (section 3.4).
    Raises UserError, here or from the iterator, for data that cannot be read, decoded or used as configured.
    """
    normalization = normalization or Normalization.of(statistics, augment.crop)
    padded = augment.kind == "pad-crop"

    def plan() -> Iterator[Work]:
        for iteration in range(start_iteration, stop_iteration):
            shown = order.minibatch(iteration).rows(rows)
            table = split.samples[shown.ids]
            heights, widths = table["height"].astype(np.int64), table["width"].astype(np.int64)
            views = training_views(order.seed, shown.epochs, shown.ids, heights, widths, augment, statistics)
            yield Work(shown.ids, table["label"].astype(np.int64), views)

    size = len(range(order.batch)[rows])
    graph = Graph("source" if padded else "crop", augment.crop)
    finish = Finish(normalization, device, augment.pad if padded else None)
    return BatchIterator(Producer(split, plan(), size, graph, finish, device, config))


def evaluation_batches(
    split: Split,
    view: CenterCrop | TenCrop,
    normalization: Statistics | Normalization,
    blocks: Sequence[Int],
    device: torch.device,
    config: LoaderConfig,
) -> BatchIterator:
    """One Batch for each block of sample ids (int64 [n], n > 0), of exactly its samples; nothing is padded.

    normalization: the dataset's statistics, or an explicit mean and standard deviation.
    """
    if isinstance(normalization, Statistics):
        normalization = Normalization.of(normalization, view.crop)

    def plan() -> Iterator[Work]:
        for ids in blocks:
            table = split.samples[ids]
            shapes = np.stack([table["height"], table["width"]], axis=1).astype(np.int64)
            yield Work(ids, table["label"].astype(np.int64), centre_views(shapes, view.short_side, view.crop))

    size = max((len(block) for block in blocks), default=1)
    graph = Graph("five-crops" if isinstance(view, TenCrop) else "crop", view.crop)
    return BatchIterator(Producer(split, plan(), size, graph, Finish(normalization, device), device, config))


class BatchIterator(Iterator[Batch]):
    """Iterator over batches; a context manager. `wait_seconds` sums the time the consumer waited for a batch.

    Closing (also by garbage collection and at exit) stops the background thread and gives back threads and memory;
    batches already handed out stay valid.
    """

    def __init__(self, producer: Producer) -> None:
        self.wait_seconds = 0.0
        self._producer = producer
        self._closer = weakref.finalize(self, Producer.close, producer)
        producer.thread.start()

    def __next__(self) -> Batch:
        if not self._closer.alive:
            raise StopIteration
        started = time.perf_counter()
        item = self._producer.ready.get()
        self.wait_seconds += time.perf_counter() - started
        if item.error is not None or item.batch is None:
            self.close()
            if item.error is not None:
                raise item.error
            raise StopIteration
        if item.event is not None:  # order this thread's stream after the producer's, on the GPU itself
            stream = torch.cuda.current_stream(item.batch.images.device)
            stream.wait_event(item.event)
            item.batch.images.record_stream(stream)
            item.batch.labels.record_stream(stream)
        return item.batch

    def close(self) -> None:
        """Stop early. Idempotent."""
        self._closer()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
