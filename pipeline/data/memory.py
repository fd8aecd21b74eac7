"""Small splits (CIFAR) decoded once and kept in memory, on the device where batches are wanted.

The batches are those of the DALI path to the bit: order, views and arithmetic are the same, decoding alone happens once.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch

from pipeline.data.augment import Int, Views, centre_views
from pipeline.data.batch import Batch, LoaderConfig, Plan, Work
from pipeline.data.dataset import Split
from pipeline.data.finishing import Finish
from pipeline.data.graphs import Graph
from pipeline.data.order import Presentations
from pipeline.data.producer import DaliProducer, Item, Producer

_DECODED_AT_ONCE = 512  # images
_KEPT: WeakKeyDictionary[Split, dict[torch.device, torch.Tensor]] = WeakKeyDictionary()
_KEEPING = threading.Lock()


def fits_in_memory(split: Split, side: int, config: LoaderConfig) -> bool:
    """Whether `split` is to be kept decoded: images of `side` pixels square, within `config.in_memory_mb`."""
    if config.on_decode_error == "substitute" or len(split) * side * side * 3 > config.in_memory_mb * 1e6:
        return False
    return bool((split.samples["height"] == side).all() and (split.samples["width"] == side).all())


def decoded(split: Split, side: int, device: torch.device, config: LoaderConfig) -> torch.Tensor:
    """uint8 [N, side, side, 3] on `device`: the whole split, decoded at the first call and kept as long as `split` is.

    Raises UserError for an image that does not decode.
    """
    with _KEEPING:
        kept = _KEPT.setdefault(split, {})
        if device not in kept:
            kept[device] = _decode(split, side, config).to(device)
        return kept[device]


class MemoryProducer(Producer):
    """Makes batches from a decoded split. Its images are `side` pixels square: as they are, or padded, cropped, mirrored."""

    def __init__(self, plan: Plan, side: int, finish: Finish, config: LoaderConfig) -> None:
        super().__init__(config.ready)
        self.plan, self.side, self.finish, self.config = plan, side, finish, config

    def _produce(self) -> None:
        pixels = decoded(self.plan.split, self.side, self.finish.device, self.config)
        for work in self.plan:
            if self.stopping.is_set():
                return
            batch, event = self.finish.from_memory(pixels, work)
            self._put(Item(batch, event=event))


def _decode(split: Split, side: int, config: LoaderConfig) -> torch.Tensor:
    pixels = torch.empty((len(split), side, side, 3), dtype=torch.uint8)
    blocks = np.array_split(np.arange(len(split)), -(-len(split) // _DECODED_AT_ONCE))
    batches = (Presentations(np.zeros(len(block), np.int64), block) for block in blocks)

    def look(shown: Presentations, shapes: Int) -> Views:
        return centre_views(shapes, side, side)

    plan = Plan(split, _DECODED_AT_ONCE, batches, look)
    keep: Any = _Keep(pixels)
    producer = DaliProducer(
        plan, Graph("source", side), keep, torch.device("cpu"), config, substitutes=False, owns_split=False
    )
    producer.thread.start()
    try:
        while (item := producer.ready.get()).batch is not None:
            pass
    finally:
        producer.close()
    if item.error is not None:
        raise item.error
    return pixels


@dataclass(frozen=True)
class _Keep:
    """Finishes a batch of decoded images by keeping them."""

    pixels: torch.Tensor
    stream: None = None

    def __call__(self, images: Any, work: Work, workers: ThreadPoolExecutor) -> tuple[Batch, None]:
        ids = work.shown.ids
        self.pixels[torch.from_numpy(ids)] = torch.from_numpy(np.asarray(images.as_tensor()))
        return Batch(torch.empty(0), torch.empty(0), ids), None
