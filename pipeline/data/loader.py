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

import torch

from pipeline.data.augment import AugmentConfig
from pipeline.data.batch import Batch, LoaderConfig
from pipeline.data.dataset import Split, Statistics
from pipeline.data.finishing import Finish
from pipeline.data.graphs import Normalization
from pipeline.data.memory import MemoryProducer
from pipeline.data.mixing import MixingConfig, check_rows
from pipeline.data.order import Order
from pipeline.data.origin_loader import OriginProducer
from pipeline.data.plans import Plan, evaluation_plan, training_plan
from pipeline.data.producer import DaliProducer, Producer
from pipeline.data.staging import staged
from pipeline.data.views import Int, View

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
    mixing: MixingConfig | None = None,
    dtype: torch.dtype = torch.float32,
) -> BatchIterator:
    """Return one Batch for each iteration in [start_iteration, stop_iteration): the `rows` of its mini-batch.

    Its images have the size of the iteration's stage (`augment.stages`). `order.seed` keys the draws.
    normalization: None subtracts the mean of `statistics` (section 3.4). mixing: where it mixes, `rows` must hold whole pairs.
    dtype: float32, or on a GPU bfloat16 (the float32 result, rounded).
    Raises UserError, here or from the iterator, for data that cannot be read, decoded or used as configured.
    """
    if mixing is not None:
        check_rows(mixing, order.batch, rows)

    def producer(iterations: range, augment: AugmentConfig) -> Producer:
        batches = (order.minibatch(iteration).rows(rows) for iteration in iterations)
        size = len(range(order.batch)[rows])
        plan = training_plan(split, order.seed, augment, statistics, size, batches, normalization, mixing)
        finish = Finish(plan.normalization, device, dtype, augment.pad if augment.kind == "pad-crop" else None)
        return _producer(plan, finish, config)

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

    A view with `resizing` shows the images as another origin's code does; its images are float32, whatever the dtype.

    normalization: the dataset's statistics, or an explicit mean and standard deviation. WholeImage needs blocks of
    images that are resized to equal shapes (`views.shape_blocks`). dtype and errors: see `training_batches`.
    """
    plan = evaluation_plan(split, view, normalization, blocks)
    if view.resizing is not None:
        return BatchIterator(OriginProducer(plan.stream, view, plan.normalization, device, plan.config_of(config)))
    return BatchIterator(_producer(plan, Finish(plan.normalization, device, dtype), config))


def _producer(plan: Plan, finish: Finish, config: LoaderConfig) -> Producer:
    config, stream = plan.config_of(config), plan.stream
    if plan.in_memory(config):
        return MemoryProducer(stream, plan.crop, finish, config)
    source = staged(stream.split, config.stage_to)
    graph = plan.graph(config, finish.device)
    return DaliProducer(replace(stream, split=source), graph, finish, config, owns_split=source is not stream.split)


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
            for labels in (item.batch.labels, *(item.batch.mixed or ())):
                labels.record_stream(stream)
        return item.batch

    def close(self) -> None:
        """Stop early. A second call does nothing."""
        self._later = iter(())
        self._closer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
