"""Decodes small splits (CIFAR) once and keeps them in memory, on the device that gets the batches.

The batches equal those of the DALI path bit by bit: order, views and arithmetic are the same.
"""

from __future__ import annotations

import threading
from weakref import WeakKeyDictionary

import numpy as np
import torch

from pipeline.data.batch import BatchStream, LoaderConfig
from pipeline.data.dataset import Split
from pipeline.data.finishing import Finish
from pipeline.data.graphs import Graph, Normalization
from pipeline.data.order import Presentations
from pipeline.data.producer import DaliProducer, Item, Producer
from pipeline.data.views import centre_views

_DECODED_AT_ONCE = 512  # images
_KEPT: WeakKeyDictionary[Split, dict[torch.device, torch.Tensor]] = WeakKeyDictionary()
_KEEPING = threading.Lock()


def fits_in_memory(split: Split, side: int, config: LoaderConfig) -> bool:
    """Return whether to keep `split` decoded: if its images are `side` pixels square and take `config.in_memory_mb` at most."""
    if config.on_decode_error == "substitute" or len(split) * side * side * 3 > config.in_memory_mb * 1e6:
        return False
    return bool((split.samples["height"] == side).all() and (split.samples["width"] == side).all())


def decoded(split: Split, side: int, device: torch.device, config: LoaderConfig) -> torch.Tensor:
    """Return the whole split, uint8 [N, side, side, 3] on `device`, decoded by the first call and kept as long as `split`.

    Raises UserError for an image that does not decode.
    """
    with _KEEPING:
        kept = _KEPT.setdefault(split, {})
        if device not in kept:
            kept[device] = _decode(split, side, config).to(device)
        return kept[device]


class MemoryProducer(Producer):
    """Makes batches from a decoded split whose images are `side` pixels square, with or without pad, crop and mirror."""

    def __init__(self, stream: BatchStream, side: int, finish: Finish, config: LoaderConfig) -> None:
        super().__init__(config.queues.ready, finish.device)
        self.stream, self.side, self.finish, self.config = stream, side, finish, config

    def _produce(self) -> None:
        pixels = decoded(self.stream.split, self.side, self.finish.device, self.config)
        for request in self.stream:
            if self.stopping.is_set():
                return
            batch, event = self.finish.from_memory(pixels, request)
            self._put(Item(batch, event=event))


def _decode(split: Split, side: int, config: LoaderConfig) -> torch.Tensor:
    blocks = np.array_split(np.arange(len(split)), -(-len(split) // _DECODED_AT_ONCE))
    batches = (Presentations(np.zeros(len(block), np.int64), block) for block in blocks)
    stream = BatchStream(split, _DECODED_AT_ONCE, batches, lambda _, shapes: centre_views(shapes, side, side))
    cpu, unchanged = torch.device("cpu"), Normalization(np.zeros(3, np.float32))
    producer = DaliProducer(stream, Graph("source", side), Finish(unchanged, cpu, torch.float32), config)
    pixels = torch.empty((len(split), side, side, 3), dtype=torch.uint8)
    producer.thread.start()
    try:
        while (item := producer.ready.get()).batch is not None:
            pixels[torch.from_numpy(item.batch.ids)] = item.batch.images.to(torch.uint8)
    finally:
        producer.close()
    if item.error is not None:
        raise item.error
    return pixels
