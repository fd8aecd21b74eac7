"""What a loader decodes, before it does: a plan is made for the batches of a training or an evaluation, and for the probe."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from pipeline.data.augment import AugmentConfig, training_views
from pipeline.data.batch import BatchStream, LoaderConfig
from pipeline.data.dataset import Split, Statistics
from pipeline.data.graphs import Graph, GraphKind, Normalization
from pipeline.data.memory import fits_in_memory
from pipeline.data.mixing import Mixes, MixingConfig, draw_mixes
from pipeline.data.order import Presentations
from pipeline.data.views import Int, TenCrop, View, Views, centre_views, whole_views


@dataclass(frozen=True)
class Plan:
    """The batches of `stream`, made with a graph of `kind` whose images are `crop` pixels square.

    resizes: whether the views resize or cut images, so that a split of `crop` pixels square cannot be kept decoded.
    evaluates: see `config_of`. varies: whether RandAugment works on the images, so that they leave the graph as uint8.
    """

    stream: BatchStream
    kind: GraphKind
    crop: int
    normalization: Normalization
    resizes: bool
    evaluates: bool = False
    varies: bool = False

    def config_of(self, config: LoaderConfig) -> LoaderConfig:
        """Return what holds for these batches: an evaluation must not substitute images.

        Nor may it use the GPU's hardware decoder: nvImageCodec's share of that is a number of images, which the first block
        fixes, and the blocks differ in size.
        """
        return replace(config, on_decode_error="stop", hw_decoder_load=0.0) if self.evaluates else config

    def in_memory(self, config: LoaderConfig) -> bool:
        """Return whether the split is kept decoded, instead of decoding each batch."""
        return not self.resizes and fits_in_memory(self.stream.split, self.crop, self.config_of(config))

    def graph(self, config: LoaderConfig, device: torch.device) -> Graph:
        """Return the graph for batches on `device`."""
        config = self.config_of(config)
        normalization = self.normalization if device.type == "cuda" and not self.varies else None
        rung = config.rung(device)
        return Graph(self.kind, self.crop, rung, normalization, config.hw_share, config.fancy_upsampling)


def training_plan(
    split: Split,
    seed: int,
    augment: AugmentConfig,
    statistics: Statistics,
    size: int,
    batches: Iterable[Presentations] = (),
    normalization: Normalization | None = None,
    mixing: MixingConfig | None = None,
) -> Plan:
    """Plan training `batches` of at most `size` rows; `seed` keys the draws.

    normalization: None subtracts the mean of `statistics` (section 3.4). mixing: the batches then have even numbers of rows.
    """

    def views_of(presentations: Presentations, shapes: Int) -> Views:
        epochs, ids, (heights, widths) = presentations.epochs, presentations.ids, shapes.T
        return training_views(seed, epochs, ids, heights, widths, augment, statistics)

    def mixes_of(presentations: Presentations) -> Mixes:
        assert mixing is not None
        return draw_mixes(seed, presentations, augment.crop, mixing)

    padded = augment.kind == "pad-crop"
    normalized = normalization or Normalization.of(statistics, augment.crop)
    stream = BatchStream(split, size, batches, views_of, mixes_of if mixing is not None and mixing.on else None)
    varies = augment.kind != "none" and augment.rand_augment.operations > 0
    return Plan(stream, "source" if padded else "crop", augment.crop, normalized, resizes=not padded, varies=varies)


def evaluation_plan(
    split: Split, view: View, normalization: Statistics | Normalization, blocks: Sequence[Int] = ()
) -> Plan:
    """Plan evaluation batches: `blocks` of sample ids, int64 [n]. Its graph does not know `view.resizing`: see the loader."""
    if isinstance(normalization, Statistics):
        normalization = Normalization.of(normalization, view.crop)

    def views_of(_: Presentations, shapes: Int) -> Views:
        if view.crop is None:
            return whole_views(shapes, view.short_side)
        return centre_views(shapes, view.short_side, view.crop)

    batches = (Presentations(np.zeros(len(block), np.int64), np.asarray(block, np.int64)) for block in blocks)
    stream = BatchStream(split, max((len(block) for block in blocks), default=1), batches, views_of)
    kind: GraphKind = "whole" if view.crop is None else "five-crops" if isinstance(view, TenCrop) else "crop"
    resizes = kind != "crop" or view.short_side != view.crop
    return Plan(stream, kind, view.crop or 0, normalization, resizes, evaluates=True)
