"""The loader: makes prefetched batches of the dataset's bytes, the order, the views and the DALI graphs.

A batch is a function of (split, seed, iteration, rows) alone: neither the number of threads, nor the other rows, nor the
world size changes a bit of an image.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Self

import numpy as np
import torch

from pipeline.data.augment import AugmentConfig, Int, TenCrop, View, Views, centre_views, training_views, whole_views
from pipeline.data.batch import Batch, BatchStream, LoaderConfig
from pipeline.data.dataset import Split, Statistics
from pipeline.data.finishing import Finish
from pipeline.data.graphs import Graph, GraphKind, Normalization
from pipeline.data.memory import MemoryProducer, fits_in_memory
from pipeline.data.order import Order, Presentations
from pipeline.data.producer import DaliProducer, Producer
from pipeline.data.staging import staged

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
    dtype: torch.dtype = torch.float32,
) -> BatchIterator:
    """Return one Batch for each iteration in [start_iteration, stop_iteration): the `rows` of its mini-batch.

    Its images have the size of the iteration's stage (`augment.stages`). `order.seed` keys the draws.
    normalization: None subtracts the mean of `statistics` (section 3.4).
    dtype: float32, or on a GPU bfloat16 (the float32 result, rounded).
    Raises UserError, here or from the iterator, for data that cannot be read, decoded or used as configured.
    """

    def producer(iterations: range, augment: AugmentConfig) -> Producer:
        def views_of(presentations: Presentations, shapes: Int) -> Views:
            epochs, ids, (heights, widths) = presentations.epochs, presentations.ids, shapes.T
            return training_views(order.seed, epochs, ids, heights, widths, augment, statistics)

        padded = augment.kind == "pad-crop"
        batches = (order.minibatch(iteration).rows(rows) for iteration in iterations)
        stream = BatchStream(split, len(range(order.batch)[rows]), batches, views_of)
        normalized = normalization or Normalization.of(statistics, augment.crop)
        finish = Finish(normalized, device, dtype, augment.pad if padded else None)
        return _producer(stream, "source" if padded else "crop", augment.crop, finish, config, resizes=not padded)

    # A DALI graph makes crops of one size, so each stage has a graph of its own.
    first, *later = (partial(producer, *span) for span in augment.spans(start_iteration, stop_iteration))
    return BatchIterator(first(), later)


def evaluation_batches(
    split: Split,
    view: View,
    normalization: Statistics | Normalization,
    blocks: Sequence[Int],
    device: torch.device,
    config: LoaderConfig,
    *,
    dtype: torch.dtype = torch.float32,
) -> BatchIterator:
    """Return one Batch for each block of sample ids (int64 [n], n > 0), with exactly its samples; nothing is padded.

    normalization: the dataset's statistics, or an explicit mean and standard deviation. WholeImage needs blocks of
    images that are resized to equal shapes (`augment.shape_blocks`). dtype and errors: see `training_batches`.
    """
    if isinstance(normalization, Statistics):
        normalization = Normalization.of(normalization, view.crop)

    def views_of(_: Presentations, shapes: Int) -> Views:
        if view.crop is not None:
            return centre_views(shapes, view.short_side, view.crop)
        views = whole_views(shapes, view.short_side)
        assert (views.resized == views.resized[0]).all(), "use shape_blocks for whole images"
        return views

    batches = (Presentations(np.zeros(len(block), np.int64), np.asarray(block, np.int64)) for block in blocks)
    stream = BatchStream(split, max((len(block) for block in blocks), default=1), batches, views_of)
    finish = Finish(normalization, device, dtype)
    kind: GraphKind = "whole" if view.crop is None else "five-crops" if isinstance(view, TenCrop) else "crop"
    resizes = kind != "crop" or view.short_side != view.crop
    # An evaluation must not substitute images. Its blocks differ in size, and nvImageCodec's hardware share is a number of
    # images that the first block fixes: only without it does an image's decoder depend on the image alone.
    config = replace(config, on_decode_error="stop", hw_decoder_load=0.0)
    return BatchIterator(_producer(stream, kind, view.crop or 0, finish, config, resizes=resizes))


def _producer(
    stream: BatchStream, kind: GraphKind, crop: int, finish: Finish, config: LoaderConfig, *, resizes: bool
) -> Producer:
    """resizes: whether the views resize or cut images, so that a split of `crop` pixels square cannot be kept decoded."""
    split = stream.split
    if not resizes and fits_in_memory(split, crop, config):
        return MemoryProducer(stream, crop, finish, config)
    source = staged(split, config.stage_to)
    normalization = finish.normalization if finish.device.type == "cuda" else None
    graph = Graph(
        kind, crop, config.rung(finish.device), normalization, config.hw_decoder_load, config.fancy_upsampling
    )
    return DaliProducer(replace(stream, split=source), graph, finish, config, owns_split=source is not split)


class BatchIterator(Iterator[Batch]):
    """Iterates over the batches of `producer`, then of those that `later` makes when they are needed; a context manager.

    wait_seconds: how long the consumer has waited for batches in total. substituted: samples replaced so far because they
    did not decode (`on_decode_error: substitute`); each Batch names its own.

    Closing (also by garbage collection and at exit) stops the background thread and frees threads and memory; batches
    already handed out stay valid.
    """

    def __init__(self, producer: Producer, later: Iterable[Callable[[], Producer]] = ()) -> None:
        self.wait_seconds = 0.0
        self.substituted = 0
        self._later = iter(later)
        self._start(producer)

    def _start(self, producer: Producer) -> None:
        self._producer = producer
        self._closer = weakref.finalize(self, Producer.close, producer)
        producer.thread.start()

    def __next__(self) -> Batch:
        if not self._closer.alive:
            raise StopIteration
        started = time.perf_counter()
        item = self._producer.ready.get()
        self.wait_seconds += time.perf_counter() - started
        if item.error is not None:
            self.close()
            raise item.error
        if item.batch is None:
            self._closer()
            if (make := next(self._later, None)) is None:
                raise StopIteration
            self._start(make())
            return next(self)
        self.substituted += len(item.batch.substitutions)
        if item.event is not None:  # order this thread's stream after the producer's, on the GPU itself
            stream = torch.cuda.current_stream(item.batch.images.device)
            stream.wait_event(item.event)
            item.batch.images.record_stream(stream)
            item.batch.labels.record_stream(stream)
        return item.batch

    def close(self) -> None:
        """Stop early. A second call does nothing."""
        self._later = iter(())
        self._closer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
