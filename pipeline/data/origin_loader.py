"""Makes the evaluation batches of nets of another origin: the origin's own pixels, on threads of the CPU."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch

from pipeline.base.command import UserError
from pipeline.data.batch import Batch, BatchRequest, BatchStream, LoaderConfig
from pipeline.data.graphs import Normalization
from pipeline.data.images import UnreadableImageError
from pipeline.data.origin_pixels import Pixels, view_pixels
from pipeline.data.producer import Item, Producer
from pipeline.data.views import View

_AHEAD = 2  # batches whose images are being made while the consumer computes


class OriginProducer(Producer):
    """Reads the samples of `stream` and shows them as `view`, whose `resizing` is set. Raises UserError as the loader does."""

    def __init__(
        self, stream: BatchStream, view: View, normalization: Normalization, device: torch.device, config: LoaderConfig
    ) -> None:
        super().__init__(config.queues.ready, device)
        self.stream, self.view, self.normalization, self.device = stream, view, normalization, device
        self.threads = config.queues.threads

    def _produce(self) -> None:
        with ThreadPoolExecutor(self.threads, "loader-origin") as workers:
            try:
                for request, images in self._ahead(workers):
                    if self.stopping.is_set():
                        return
                    self._put(Item(self._batch(request, [image.result() for image in images])))
            finally:
                workers.shutdown(wait=False, cancel_futures=True)

    def _ahead(self, workers: ThreadPoolExecutor) -> Iterator[tuple[BatchRequest, list[Future[Pixels]]]]:
        """Each batch with its images, of which those of the next batches are being made too."""
        started: deque[tuple[BatchRequest, list[Future[Pixels]]]] = deque()
        for request in self.stream:
            ids = request.presentations.ids.tolist()
            started.append((request, [workers.submit(self._image, sample) for sample in ids]))
            if len(started) > _AHEAD:
                yield started.popleft()
        yield from started

    def _image(self, sample: int) -> Pixels:
        """One image as the view shows it, normalized, float32."""
        try:
            pixels = view_pixels(self.stream.split.read(sample), self.view)
        except UnreadableImageError as error:
            raise UserError(
                f"{self.stream.split.describe(sample)} does not decode ({error}): check the dataset with data_prep/verify.py"
            ) from None
        normalized = np.empty((1, *pixels.shape), np.float32)
        self.normalization.on_cpu(pixels[None], np.zeros((1, 3), np.float32), normalized)
        return normalized[0]

    def _batch(self, request: BatchRequest, images: list[Pixels]) -> Batch:
        # The copy to a GPU is complete when `to` returns, because its source is not page-locked.
        pixels, labels = torch.from_numpy(np.stack(images)), torch.from_numpy(request.labels)
        return Batch(pixels.to(self.device), labels.to(self.device), request.presentations.ids)
