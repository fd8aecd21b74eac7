"""The loaders that bench/loader.py compares with ours, each written as its documentation recommends.

All read the same shards and give float32 [N, 224, 224, 3] torch tensors and labels, with the same augmentation: shorter
side uniform in 256..480, random crop, flip, PCA colour, per-pixel mean subtracted.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset
from numpy.typing import NDArray
from nvidia.dali import fn, pipeline_def, types
from nvidia.dali.plugin.base_iterator import LastBatchPolicy
from nvidia.dali.plugin.pytorch import DALIGenericIterator
from PIL import Image
from torch.utils.data import DataLoader, RandomSampler
from torchvision.transforms import InterpolationMode, functional

from pipeline.data.augment import AugmentConfig
from pipeline.data.dataset import Split, Statistics

Batches = Iterable[tuple[torch.Tensor, torch.Tensor]]


class PillowAugmentation:
    """Applies torchvision's functions to Pillow images (resize, crop, flip), then colour and mean in NumPy."""

    def __init__(self, config: AugmentConfig, statistics: Statistics) -> None:
        self.config, self.mean = config, statistics.mean_image
        self.directions = statistics.eigenvectors * statistics.eigenvalues * 255
        self.random: np.random.Generator | None = None

    def __call__(self, image: Image.Image) -> torch.Tensor:
        random = self.random = self.random or np.random.default_rng(torch.initial_seed())  # differs among workers
        low, high = self.config.short_side
        side = self.config.crop
        image = functional.resize(image, int(random.integers(low, high + 1)), InterpolationMode.BILINEAR)
        width, height = image.size
        top, left = int(random.integers(height - side + 1)), int(random.integers(width - side + 1))
        image = functional.crop(image, top, left, side, side)
        if random.random() < 0.5:
            image = functional.hflip(image)
        shift = (self.directions @ random.normal(0, self.config.colour, 3)).astype(np.float32)
        pixels: NDArray[np.float32] = np.asarray(image) - (self.mean - shift)
        return torch.from_numpy(pixels)


class MapStyle(torch.utils.data.Dataset[tuple[torch.Tensor, int]]):
    """The samples of a split by index, like torchvision.datasets.ImageFolder, but read from the same shards."""

    def __init__(self, split: Split, augmentation: PillowAugmentation) -> None:
        self.split, self.augmentation = split, augmentation

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image = Image.open(io.BytesIO(self.split.read(index))).convert("RGB")
        return self.augmentation(image), int(self.split.samples[index]["label"])


def torchvision_loader(
    split: Split, statistics: Statistics, config: AugmentConfig, batch: int, workers: int
) -> Batches:
    dataset = MapStyle(split, PillowAugmentation(config, statistics))
    # With replacement, so that no end of an epoch empties the queues: DataLoader restarts in each epoch.
    sampler = RandomSampler(dataset, replacement=True, num_samples=2**40)
    return DataLoader(dataset, batch, sampler=sampler, num_workers=workers)


def webdataset_loader(split: Split, statistics: Statistics, config: AugmentConfig, batch: int, workers: int) -> Batches:
    dataset = (
        webdataset.WebDataset(_shards(split), resampled=True, shardshuffle=False)
        .shuffle(256)
        .decode("pilrgb")
        .to_tuple("jpg", "cls")
        .map_tuple(PillowAugmentation(config, statistics), lambda label: label)
        .batched(batch)
    )
    return iter(webdataset.WebLoader(dataset, batch_size=None, num_workers=workers))


def dali_loader(split: Split, statistics: Statistics, config: AugmentConfig, batch: int, threads: int) -> Batches:
    """Read, decode, resize and crop with DALI's own reader and random operators, two batches ahead."""
    pipeline = _decode_resize_crop(split, statistics, config, batch_size=batch, num_threads=threads)
    pipeline.build()
    iterator = DALIGenericIterator(
        pipeline, ["images", "labels"], reader_name="reader", last_batch_policy=LastBatchPolicy.DROP, auto_reset=True
    )
    return _dali_batches(iterator)


def _dali_batches(iterator: DALIGenericIterator) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    while True:
        for (outputs,) in iterator:
            yield outputs["images"], outputs["labels"]


@pipeline_def(device_id=None, prefetch_queue_depth=2)
def _decode_resize_crop(split: Split, statistics: Statistics, config: AugmentConfig) -> tuple[object, object]:
    shards = _shards(split)
    read: Any = fn.readers.webdataset(  # DALI's annotation says None
        paths=shards,
        index_paths=[str(Path(shard).with_suffix(".idx")) for shard in shards],
        ext=["jpg", "cls"],
        random_shuffle=True,
        initial_fill=256,
        name="reader",
    )
    encoded, labels = read
    low, high = config.short_side
    images = fn.decoders.image(encoded, output_type=types.RGB, adjust_orientation=False)
    shorter = fn.random.uniform(range=(low - 0.5, high + 0.5))
    images = fn.resize(images, resize_shorter=fn.cast(fn.cast(shorter + 0.5, dtype=types.INT32), dtype=types.FLOAT))
    coefficients = fn.random.normal(stddev=config.colour, shape=(3,))
    shift = fn.reductions.sum(
        types.Constant((statistics.eigenvectors * statistics.eigenvalues * 255).astype(np.float32))
        * fn.reshape(coefficients, shape=[1, 3]),
        axes=[1],
    )
    # Crop, flip, conversion and colour in DALI's fused operator, which takes no mean image: that is subtracted after it.
    images = fn.crop_mirror_normalize(
        images,
        crop=(config.crop, config.crop),
        crop_pos_x=fn.random.uniform(range=(0, 1)),
        crop_pos_y=fn.random.uniform(range=(0, 1)),
        mirror=fn.random.coin_flip(),
        mean=-shift,
        dtype=types.FLOAT,
        output_layout="HWC",
    )
    return images - types.Constant(statistics.mean_image), fn.pad(labels, shape=[4])


def _shards(split: Split) -> list[str]:
    return [str(split.folder / shard.file) for shard in split.info.shards]
