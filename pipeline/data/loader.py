"""The loader: makes prefetched batches of the dataset's bytes, the order, the views and the DALI graphs.

A batch is a function of (split, seed, iteration, rows) alone: neither the number of threads, nor the other rows, nor the
world size changes a bit of an image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch

from pipeline.data.augment import AugmentConfig, Int, TenCrop, View, Views, centre_views, training_views, whole_views
from pipeline.data.batch import Batch, BatchStream, LoaderConfig
from pipeline.data.dataset import Split, Statistics
from pipeline.data.finishing import Finish
from pipeline.data.graphs import Graph, GraphKind, Normalization
from pipeline.data.memory import MemoryProducer, fits_in_memory
from pipeline.data.order import Order, Presentations
from pipeline.data.producer import BatchIterator, DaliProducer, Producer
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
    config = replace(config, on_decode_error="stop")  # an evaluation must not substitute images
    return BatchIterator(_producer(stream, kind, view.crop or 0, finish, config, resizes=resizes))


def _producer(
    stream: BatchStream, kind: GraphKind, crop: int, finish: Finish, config: LoaderConfig, *, resizes: bool
) -> Producer:
    """resizes: whether the views resize or cut images, so that a split of `crop` pixels square cannot be kept decoded."""
    split = stream.split
    if not resizes and fits_in_memory(split, crop, config):
        return MemoryProducer(stream, crop, finish, config)
    source = staged(split, config.stage_to)
    graph = Graph(kind, crop, config.hw_decoder_load, config.fancy_upsampling)
    decoder, owns_split = config.decoding_device(finish.device), source is not split
    return DaliProducer(replace(stream, split=source), graph, finish, decoder, config, owns_split)
