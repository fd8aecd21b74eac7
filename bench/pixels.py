"""Measures how closely each of the loader's graphs agrees with Pillow (resize whole, then crop) on real images."""

from __future__ import annotations

import argparse
import statistics as averages
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from bench import pillow_reference as reference  # noqa: E402
from bench.loader import shard_samples  # noqa: E402
from pipeline.base.command import run  # noqa: E402
from pipeline.base.tables import print_json, print_table  # noqa: E402
from pipeline.data.augment import AugmentConfig, training_views  # noqa: E402
from pipeline.data.dataset import Dataset, Split  # noqa: E402
from pipeline.data.graphs import Normalization  # noqa: E402
from pipeline.data.loader import LoaderConfig, evaluation_batches, training_batches  # noqa: E402
from pipeline.data.order import Order  # noqa: E402
from pipeline.data.views import CenterCrop, TenCrop, WholeImage, five_crop_starts, resized_shapes, shape_blocks  # noqa: E402

RAW = Normalization(np.zeros(3, np.float32))  # leaves the pixels as they are
CPU = torch.device("cpu")
BATCH = 64
Pair = tuple[int, np.ndarray, np.ndarray]  # sample id, the graph's image, Pillow's


def shapes_of(split: Split) -> np.ndarray:
    return np.stack([split.samples["height"], split.samples["width"]], axis=1).astype(np.int64)


def training(split: Split, dataset: Dataset, config: LoaderConfig) -> Iterator[Pair]:
    augment, statistics, shapes = AugmentConfig(colour=0), dataset.statistics, shapes_of(split)
    order = Order(len(split), min(BATCH, len(split)), seed=0)
    stop = -(-3 * len(split) // order.batch)
    rows = slice(0, order.batch)
    with training_batches(
        split, order, augment, statistics, rows, 0, stop, CPU, config, normalization=RAW
    ) as batches:  # fmt: skip
        for iteration, batch in enumerate(batches):
            rows_of, sizes = order.minibatch(iteration), shapes[batch.ids]
            views = training_views(0, rows_of.epochs, rows_of.ids, sizes[:, 0], sizes[:, 1], augment, statistics)
            for row, sample in enumerate(batch.ids):
                image = reference.crop(
                    reference.resized(split.read(sample), views.resized[row]), views.crop_start[row], augment.crop
                )
                pixels = np.asarray(image, np.float32)
                yield int(sample), batch.images[row].numpy(), pixels[:, ::-1] if views.mirror[row] else pixels


def evaluation(
    split: Split, view: CenterCrop | TenCrop | WholeImage, config: LoaderConfig
) -> Iterator[Pair]:  # fmt: skip
    shapes = shapes_of(split)
    blocks = shape_blocks(shapes, [view.short_side], BATCH)
    resized = resized_shapes(shapes, np.full(len(split), view.short_side))
    with evaluation_batches(split, view, RAW, blocks, CPU, config) as batches:
        for batch in batches:
            for images, sample in zip(batch.images.numpy(), batch.ids, strict=True):
                whole = reference.resized(split.read(sample), resized[sample])
                if isinstance(view, WholeImage):
                    yield int(sample), images, np.asarray(whole, np.float32)
                    continue
                starts = five_crop_starts(resized[sample][None], view.crop)[0]
                crops = [np.asarray(reference.crop(whole, start, view.crop), np.float32) for start in starts]
                if isinstance(view, TenCrop):
                    yield from ((int(sample), image, crop) for image, crop in zip(images, crops, strict=True))
                else:
                    yield int(sample), images, crops[4]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example:\n  python bench/pixels.py\n  python bench/pixels.py --images",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("dataset", nargs="?", type=Path, help="dataset folder (default: the 140 sample images)")
    parser.add_argument("--images", action="store_true", help="also print every image's worst PSNR over the graphs")
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON object on the last line")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="bench-pixels-") as folder:
        dataset = Dataset(options.dataset or shard_samples(Path(folder), copies=1))
        report(dataset, options)


def report(dataset: Dataset, options: argparse.Namespace) -> None:
    split, config = dataset.split("train"), LoaderConfig()
    graphs = {
        "training, 3 epochs": training(split, dataset, config),
        "centre crop at 256": evaluation(split, CenterCrop(), config),
        "ten crops at 256": evaluation(split, TenCrop(), config),
        **{f"whole image at {side}": evaluation(split, WholeImage(short_side=side), config) for side in (224, 640)},
    }
    rows, figures, worst = [], {}, dict.fromkeys(range(len(split)), float("inf"))
    for name, pairs in graphs.items():
        crops = [
            (reference.psnr(image, expected), sample, float(np.abs(image - expected)[1:-1, 1:-1].max()))
            for sample, image, expected in pairs
        ]
        for quality, sample, _ in crops:
            worst[sample] = min(worst[sample], quality)
        low, at, _ = min(crops)
        median, levels = averages.median(quality for quality, _, _ in crops), max(levels for _, _, levels in crops)
        rows.append(
            (name, len(crops), f"{low:.1f}", f"{median:.1f}", f"{levels:.0f}", split.samples[at]["key"].decode())
        )
        figures[name] = {"psnr_min": low, "psnr_median": median, "grey_levels_max": levels}
    if options.images:
        ordered = sorted(worst.items(), key=lambda item: item[1])
        keys = [(split.samples[sample]["key"].decode(), f"{quality:.1f}") for sample, quality in ordered]
        print_table("worst PSNR of each image", ("image", "dB"), keys)
    columns = ("graph", "crops", "PSNR, worst", "median", "grey levels off, inside", "worst image")
    print_table("agreement with Pillow, dB", columns, rows)
    if options.json:
        print_json(figures)


if __name__ == "__main__":
    run(main)
