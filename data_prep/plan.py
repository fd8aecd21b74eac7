"""Plans a preparation: its settings, and each split's samples in their order, cut into shards."""

from __future__ import annotations

import hashlib
import os
import re
import tarfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_prep.image_statistics import StatisticsPlan
from data_prep.images import ImageRules
from data_prep.order import by_class_and_name, by_stem, permutation, sample_key, unique_keys
from data_prep.reading import MAX_BYTES, SourceImage
from data_prep.shard import ShardTask
from data_prep.sources import WHOLE_FILE, ImageRow, Listing, labels_among
from data_prep.tars import BLOCK
from pipeline.base.command import UserError

TRAIN = "train"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of a preparation. `workers` does not affect the dataset; `skip_corrupt` does only by the images left out."""

    name: str = "imagenet"
    seed: int = 0
    samples_per_shard: int = 1000
    statistics: StatisticsPlan = field(default_factory=StatisticsPlan)
    rules: ImageRules = field(default_factory=ImageRules)
    skip_corrupt: bool = False
    workers: int = 1

    def check(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_-]+", self.name):
            raise UserError(f"--name '{self.name}' does not suit file names: use letters, digits, '-' and '_'")
        if self.samples_per_shard < 1 or self.workers < 1 or self.seed < 0:
            raise UserError("--samples-per-shard and --workers must be at least 1, --seed at least 0")
        if self.rules.max_short_side is not None and self.rules.max_short_side < 1:
            raise UserError("--max-short-side must be at least 1")
        plan = self.statistics
        if plan.images is not None and plan.images < 1:
            raise UserError("--statistics-images must be at least 1, or 'all'")
        if plan.size < 1 or (plan.short_side is not None and plan.short_side < plan.size):
            raise UserError(
                f"--statistics-short-side {plan.short_side} is smaller than the crop of --statistics-size {plan.size}: "
                "the crop must lie inside the resized image"
            )


@dataclass(frozen=True, kw_only=True)
class SplitOrder:
    """One split in order: row i of `keys` and `labels` is sample i, which is row `order[i]` of the listing."""

    name: str
    listing: Listing
    order: NDArray[np.int64]
    keys: NDArray[np.bytes_]
    labels: NDArray[np.int16]

    def __len__(self) -> int:
        return len(self.order)

    def image(self, sample: int) -> SourceImage:
        """Return a sample, ready to be read."""
        row = ImageRow(*self.listing.rows[self.order[sample]].item())
        container = self.listing.containers[row.container]
        name = f"{container}/{os.fsdecode(row.name)}"
        path = name if row.offset == WHOLE_FILE else container
        label, key = int(self.labels[sample]), self.keys[sample].decode()
        return SourceImage(path, row.offset, row.size, row.stamp, label, key, name)


def order_split(name: str, listing: Listing, classes: tuple[str, ...], seed: int) -> SplitOrder:
    """Order a split: the training images by a seeded permutation, all others by their file stems.

    Both start from an order by name, so that the result does not depend on how the source was listed.
    """
    labels, names = labels_among(listing, classes, name), listing.rows["name"]
    sorted_rows = by_class_and_name(labels, names)
    class_names = [classes[label] if label >= 0 else None for label in labels[sorted_rows].tolist()]
    pairs = zip(names[sorted_rows].tolist(), class_names, strict=True)
    sorted_keys = unique_keys([sample_key(file_name, class_name) for file_name, class_name in pairs])
    keys = np.empty_like(sorted_keys)
    keys[sorted_rows] = sorted_keys
    order = sorted_rows[permutation(len(listing), seed)] if name == TRAIN else by_stem(labels, names)
    return SplitOrder(name=name, listing=listing, order=order, keys=keys[order], labels=labels[order])


def shard_files(order: SplitOrder, settings: Settings) -> list[str]:
    """Return the split's tars, relative to the dataset folder."""
    count = -(-len(order) // settings.samples_per_shard)
    return [f"{order.name}/{settings.name}-{order.name}-{index:06d}.tar" for index in range(count)]


def averaged_images(order: SplitOrder, settings: Settings) -> int:
    """Return how many of the split's images, from its start, are in the statistics."""
    if order.name != TRAIN:
        return 0
    return len(order) if settings.statistics.images is None else min(settings.statistics.images, len(order))


def shard_tasks(order: SplitOrder, settings: Settings) -> Iterator[ShardTask]:
    """Yield the split's shards. The statistics cover the first images of the training split, by default all."""
    averaged = averaged_images(order, settings)
    for index, file in enumerate(shard_files(order, settings)):
        start = index * settings.samples_per_shard
        images = tuple(map(order.image, range(start, min(start + settings.samples_per_shard, len(order)))))
        in_shard = max(0, min(averaged - start, len(images)))
        yield ShardTask(
            split=order.name,
            index=index,
            file=file,
            images=images,
            statistics=settings.statistics if in_shard else None,
            averaged=in_shard,
            rules=settings.rules,
            skip_corrupt=settings.skip_corrupt,
        )


def bytes_needed(orders: list[SplitOrder], settings: Settings) -> int:
    """Return the disk space that the dataset takes while it is made, if no image changes size."""
    total = 0
    for order in orders:
        sizes = order.listing.rows["size"]
        sizes = sizes[sizes <= MAX_BYTES]
        total += int((-(-sizes // BLOCK) * BLOCK).sum()) + 3 * BLOCK * len(order)  # two headers, the label
        total += len(order) * 4 * order.keys.dtype.itemsize  # the index, the sample table and its pieces
        total += len(shard_files(order, settings)) * tarfile.RECORDSIZE  # a tar is filled up to 10,240 bytes
        averaged_shards = -(-averaged_images(order, settings) // settings.samples_per_shard)
        total += averaged_shards * settings.statistics.size**2 * 3 * 8  # pixel sums
    return total


def preparation(orders: list[SplitOrder], settings: Settings) -> dict[str, Any]:
    """Return the manifest's entry by which the same preparation is recognised: settings and a hash of the images.

    The hash covers every sample's key, label and size in bytes. It does not depend on where the images were.
    """
    listed = hashlib.sha256()
    for order in orders:
        listed.update(f"{order.name} {len(order)} {order.keys.dtype.itemsize}\n".encode())
        for column in (order.keys, order.labels, order.listing.rows["size"][order.order]):
            listed.update(np.ascontiguousarray(column).tobytes())
    kept = asdict(settings)
    del kept["workers"], kept["skip_corrupt"]
    held_out = {order.name: order.listing.held_out for order in orders if order.listing.held_out}
    return {**kept, **({"held_out": held_out} if held_out else {}), "images_sha256": listed.hexdigest()}
