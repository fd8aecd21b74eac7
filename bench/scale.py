"""Measures what 1.28 million samples cost the loader: start-up, memory, and reaching any iteration.

It writes datasets of both sizes with sample tables and shard counts of real size (the shards are hard links to a few
files, so that they fit on any disk), and runs the training loader on each in a process of its own.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import io
import itertools
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from pipeline.base.command import run  # noqa: E402
from pipeline.base.progress import Progress  # noqa: E402
from pipeline.base.tables import print_json, print_table  # noqa: E402
from pipeline.data.dataset import STATISTICS, ClassInfo, Dataset, Manifest, ShardInfo, SplitInfo  # noqa: E402
from pipeline.data.sample_table import sample_dtype  # noqa: E402

SMALL, LARGE = 10_000, 1_281_167  # ILSVRC 2012's training set
SHARD = 1000
DISTINCT_SHARDS = 4
LAST_ITERATION = 599_999  # of the paper's 60e4
BATCH = 256


def write_shard(path: Path, seed: int) -> list[tuple[int, int, str]]:
    """Write a shard of tiny JPEG images; return (offset, size, key) of each."""
    import webdataset

    random = np.random.default_rng(seed)
    with webdataset.TarWriter(str(path), encoder=False, mtime=0) as writer:
        for number in range(SHARD):
            buffer = io.BytesIO()
            coarse = Image.fromarray(random.integers(0, 256, (4, 5, 3), np.uint8))
            coarse.resize((40, 32), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
            writer.write({"__key__": f"n{seed:08d}_{number:011d}", "jpg": buffer.getvalue(), "cls": b"0"})
    with tarfile.open(path) as tar:
        images = [member for member in tar if member.name.endswith(".jpg")]
    return [(member.offset_data, member.size, member.name.removesuffix(".jpg")) for member in images]


def write_dataset(folder: Path, samples: int) -> None:
    (folder / "train").mkdir(parents=True)
    written = [folder / f"written{number}.tar" for number in range(DISTINCT_SHARDS)]
    places, keys = [], []
    for seed, path in enumerate(written):
        members = write_shard(path, seed)
        places.append([(offset, size) for offset, size, _ in members])
        keys.append([key.encode() for *_, key in members])
    ids = np.arange(samples)
    shards, inside = np.divmod(ids, SHARD)
    table = np.zeros(samples, sample_dtype(len("n01440764_10026_12345")))
    table["shard"], table["label"], table["height"], table["width"] = shards, ids % 1000, 32, 40
    table["offset"], table["size"] = np.array(places)[shards % DISTINCT_SHARDS, inside].T
    table["key"] = np.array(keys)[shards % DISTINCT_SHARDS, inside]
    infos = []
    for number in range(-(-samples // SHARD)):
        name = f"train/imagenet-train-{number:06d}.tar"
        os.link(written[number % DISTINCT_SHARDS], folder / name)
        size = (folder / name).stat().st_size
        held = min(SHARD, samples - number * SHARD)
        infos.append(ShardInfo(file=name, samples=held, bytes=size, sha256="0" * 64, index_sha256="0" * 64))
    np.save(folder / "train.samples.npy", table)
    digest = hashlib.sha256((folder / "train.samples.npy").read_bytes()).hexdigest()
    split = SplitInfo(samples=samples, table="train.samples.npy", table_sha256=digest, shards=tuple(infos))
    classes = tuple(ClassInfo(wnid=f"n{number:08d}") for number in range(1000))
    np.savez(
        folder / STATISTICS,
        mean_image=np.full((224, 224, 3), 120, np.float32),
        eigenvalues=np.array([0.2175, 0.0188, 0.0045]),
        eigenvectors=np.eye(3),
    )
    statistics = {"size": 224, "sha256": hashlib.sha256((folder / STATISTICS).read_bytes()).hexdigest()}
    manifest = Manifest(seed=0, classes=classes, splits={"train": split}, statistics=statistics)
    (folder / "manifest.json").write_text(manifest.to_json())


@dataclasses.dataclass(frozen=True)
class Figures:
    """Seconds, and memory in MB; `before`: after the libraries are imported.

    resident: as ps shows it. private: without the pages of mapped files (libraries, the sample table), which the
    processes of a machine share and the kernel can take back.
    """

    dataset: float
    order: float
    first_batch: float
    start_up: float
    resident_before: float
    resident: float
    private_before: float
    private: float


def measure(folder: Path, iteration: int, iterations: int) -> Figures:
    """Open the dataset and take `iterations` batches from `iteration` on; runs in a process of its own."""
    import torch

    from pipeline.data.augment import AugmentConfig
    from pipeline.data.loader import LoaderConfig, training_batches
    from pipeline.data.order import Order

    before = memory()
    marks = [time.perf_counter()]
    dataset = Dataset(folder)
    split, statistics = dataset.split("train"), dataset.statistics
    marks.append(time.perf_counter())
    order = Order(len(split), BATCH, seed=0)
    order.minibatch(iteration)
    marks.append(time.perf_counter())
    rows, stop = slice(0, BATCH), iteration + iterations
    config = AugmentConfig()
    with training_batches(
        split, order, config, statistics, rows, iteration, stop, torch.device("cpu"), LoaderConfig(threads=2)
    ) as batches:
        next(batches)
        marks.append(time.perf_counter())
        for batch in batches:
            del batch
        after = memory()
    opening, ordering, first = (end - start for start, end in itertools.pairwise(marks))
    return Figures(
        dataset=opening,
        order=ordering,
        first_batch=first,
        start_up=marks[-1] - marks[0],
        resident_before=before[0],
        resident=after[0],
        private_before=before[1],
        private=after[1],
    )


def memory() -> tuple[float, float]:
    """Return the resident and the private memory of this process in MB."""
    lines = dict(line.split(":") for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines())
    resident, private = (int(lines[name].split()[0]) * 1024 / 1e6 for name in ("VmRSS", "RssAnon"))
    return resident, private


def in_own_process(folder: Path, iteration: int, iterations: int) -> Figures:
    command = [sys.executable, __file__, "--measure", folder, "--iteration", iteration, "--iterations", iterations]
    output = subprocess.run(
        [str(part) for part in command],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        errors="replace",
    ).stdout
    return Figures(**json.loads(output.splitlines()[-1]))


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example:\n  python bench/scale.py",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=40, help="batches of 256 taken in each process (default 40)")
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON object on the last line")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--iteration", type=int, default=0, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    if options.measure:
        return print_json(dataclasses.asdict(measure(options.measure, options.iteration, options.iterations)))
    cases = {
        "10k, from 0": (SMALL, 0),
        "1.28M, from 0": (LARGE, 0),
        "1.28M, from 599,999": (LARGE, LAST_ITERATION),
    }
    runs: dict[str, list[Figures]] = {name: [] for name in cases}
    with tempfile.TemporaryDirectory(prefix="bench-scale-") as name:
        folders = {samples: Path(name) / str(samples) for samples in (SMALL, LARGE)}
        for samples, folder in folders.items():
            write_dataset(folder, samples)
        with Progress(options.rounds * len(cases), "processes", "runs") as progress:
            for _ in range(options.rounds):
                for case, (samples, iteration) in cases.items():
                    runs[case].append(in_own_process(folders[samples], iteration, options.iterations))
                    progress.advance()
    fields = [field.name for field in dataclasses.fields(Figures)]
    # The least of the rounds is what the work takes when nothing else runs.
    least = {
        case: {field: min(getattr(figures, field) for figures in rounds) for field in fields}
        for case, rounds in runs.items()
    }
    small, large, late = least.values()
    ratios = {
        "resident memory 1.28M/10k": large["resident"] / small["resident"],
        "private memory beyond the libraries 1.28M/10k": (large["private"] - large["private_before"])
        / (small["private"] - small["private_before"]),
        "resident memory beyond the libraries 1.28M/10k": (large["resident"] - large["resident_before"])
        / (small["resident"] - small["resident_before"]),
        "start-up at iteration 599,999/at 0": late["start_up"] / large["start_up"],
    }
    rows = [(case, *(f"{values[field]:,.3f}" for field in fields)) for case, values in least.items()]
    print_table("training loader, batch 256; seconds and MB", ("samples", *fields), rows)
    print_table("ratios", ("", "ratio"), [(name, f"{ratio:.2f}") for name, ratio in ratios.items()])
    if options.json:
        print_json({"ratios": {name: round(ratio, 3) for name, ratio in ratios.items()}, "cases": least})


if __name__ == "__main__":
    run(main)
