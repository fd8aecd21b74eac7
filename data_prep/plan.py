"""What is to be made: the settings of a preparation, and each split's samples in their order, cut into shards."""

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
from data_prep.reading import SourceImage
from data_prep.shard import TAR_BLOCK, ShardTask
from data_prep.sources import WHOLE_FILE, Listing, labels_among
from pipeline.base.command import UserError

TRAIN = "train"
RECORD_SIZE = tarfile.RECORDSIZE


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a preparation is told. `workers` does not reach the dataset, `skip_corrupt` by the images it left out."""

    name: str = "imagenet"
    seed: int = 0
    samples_per_shard: int = 1000
    statistics: StatisticsPlan = field(default_factory=StatisticsPlan)
    rules: ImageRules = field(default_factory=ImageRules)
    skip_corrupt: bool = False
    workers: int = 1

    def check(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_-]+", self.name):
            raise UserError(f"--name '{self.name}' would not make good file names: use letters, digits, '-' and '_'")
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
class SplitPlan:
    """One split, put in order: row i of `keys` and `labels` is sample i, listed in row `order[i]` of the listing."""

    name: str
    listing: Listing
    order: NDArray[np.int64]
    keys: NDArray[np.bytes_]
    labels: NDArray[np.int16]

    def __len__(self) -> int:
        return len(self.order)

    def images(self, start: int, stop: int) -> tuple[SourceImage, ...]:
        """Samples [start, stop), ready to be read."""
        result = []
        for sample in range(start, min(stop, len(self))):
            row = self.listing.rows[self.order[sample]]
            container, name = self.listing.containers[row["container"]], os.fsdecode(row["name"])
            inside = f"{container}/{name}"
            offset = int(row["offset"])
            result.append(
                SourceImage(
                    path=inside if offset == WHOLE_FILE else container,
                    offset=offset,
                    size=int(row["size"]),
                    stamp=int(row["stamp"]),
                    label=int(self.labels[sample]),
                    key=self.keys[sample].decode(),
                    name=inside,
                )
            )
        return tuple(result)


def plan_split(name: str, listing: Listing, classes: tuple[str, ...], seed: int) -> SplitPlan:
    """Order a split: the training images by a seeded permutation, all others by their files' stems.

    Both start from an order by names, so that nothing depends on how the source was listed.
    """
    labels, names = labels_among(listing, classes, name), listing.rows["name"]
    sorted_rows = by_class_and_name(labels, names)
    class_names = [classes[label] if label >= 0 else None for label in labels[sorted_rows].tolist()]
    sorted_keys = unique_keys(
        [sample_key(one, class_name) for one, class_name in zip(names[sorted_rows].tolist(), class_names, strict=True)]
    )
    keys = np.empty_like(sorted_keys)
    keys[sorted_rows] = sorted_keys
    order = sorted_rows[permutation(len(listing), seed)] if name == TRAIN else by_stem(labels, names)
    return SplitPlan(name=name, listing=listing, order=order, keys=keys[order], labels=labels[order])


def shard_file(settings: Settings, split: str, index: int) -> str:
    return f"{split}/{settings.name}-{split}-{index:06d}.tar"


def shard_count(plan: SplitPlan, settings: Settings) -> int:
    return -(-len(plan) // settings.samples_per_shard)


def averaged_images(plan: SplitPlan, settings: Settings) -> int:
    """How many of the split's images, from its start, are in the statistics."""
    if plan.name != TRAIN:
        return 0
    return len(plan) if settings.statistics.images is None else min(settings.statistics.images, len(plan))


def shard_tasks(plan: SplitPlan, settings: Settings) -> Iterator[ShardTask]:
    """The split's shards. The statistics are taken over the first images of the training split, all by default."""
    averaged = averaged_images(plan, settings)
    for index in range(shard_count(plan, settings)):
        start = index * settings.samples_per_shard
        images = plan.images(start, start + settings.samples_per_shard)
        in_shard = max(0, min(averaged - start, len(images)))
        yield ShardTask(
            split=plan.name,
            index=index,
            file=shard_file(settings, plan.name, index),
            images=images,
            statistics=settings.statistics if in_shard else None,
            averaged=in_shard,
            rules=settings.rules,
            skip_corrupt=settings.skip_corrupt,
        )


def bytes_needed(plans: list[SplitPlan], settings: Settings) -> int:
    """The disk that the dataset takes while it is made, where no image changes size."""
    total = 0
    for plan in plans:
        sizes = plan.listing.rows["size"]
        total += int((-(-sizes // TAR_BLOCK) * TAR_BLOCK).sum()) + 3 * TAR_BLOCK * len(plan)  # two headers, the label
        total += len(plan) * 4 * plan.keys.dtype.itemsize  # the index, the sample table and its pieces
        total += shard_count(plan, settings) * RECORD_SIZE  # a tar is filled up to 10,240 bytes
        averaged_shards = -(-averaged_images(plan, settings) // settings.samples_per_shard)
        total += averaged_shards * settings.statistics.size**2 * 3 * 8  # pixel sums
    return total


def preparation(plans: list[SplitPlan], settings: Settings) -> dict[str, Any]:
    """What the manifest keeps of a preparation, so that the same one is recognised: settings and a hash of the images.

    The hash is over every sample's key, label and size in bytes: it does not depend on where the images lay.
    """
    listed = hashlib.sha256()
    for plan in plans:
        listed.update(f"{plan.name} {len(plan)} {plan.keys.dtype.itemsize}\n".encode())
        for column in (plan.keys, plan.labels, plan.listing.rows["size"][plan.order]):
            listed.update(np.ascontiguousarray(column).tobytes())
    kept = asdict(settings)
    del kept["workers"], kept["skip_corrupt"]
    return {**kept, "images_sha256": listed.hexdigest()}
