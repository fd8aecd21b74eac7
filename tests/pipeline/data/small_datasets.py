"""Small real dataset folders, written straight from the format with webdataset.TarWriter."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import webdataset
from numpy.typing import NDArray
from PIL import Image

from pipeline.data.dataset import STATISTICS, ClassInfo, Dataset, Manifest, ShardInfo, SplitInfo, Statistics
from pipeline.data.sample_table import sample_dtype


def write_dataset(
    folder: Path,
    images: Sequence[bytes],
    labels: Sequence[int] | None = None,
    shard_size: int = 16,
    statistics: Statistics | None = None,
) -> Dataset:
    """A dataset folder with one split "train" of the given encoded images, and without an index."""
    labels = list(range(len(images))) if labels is None else labels
    (folder / "train").mkdir(parents=True)
    keys = [f"image{number:04d}" for number in range(len(images))]
    table = np.zeros(len(images), sample_dtype(max(map(len, keys))))
    shards = []
    for start in range(0, len(images), shard_size):
        members = range(start, min(start + shard_size, len(images)))
        path = folder / f"train/test-train-{start // shard_size:06d}.tar"
        with webdataset.TarWriter(str(path), encoder=False, mtime=0) as writer:
            for number in members:
                writer.write({"__key__": keys[number], "jpg": images[number], "cls": str(labels[number]).encode()})
        with tarfile.open(path) as tar:
            offsets = {member.name: member.offset_data for member in tar}
        for number in members:
            try:
                width, height = Image.open(io.BytesIO(images[number])).size
            except OSError:
                width = height = 64
            place = offsets[f"{keys[number]}.jpg"]
            table[number] = (
                start // shard_size, place, len(images[number]), labels[number], height, width, keys[number]
            )  # fmt: skip
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        name, size = str(path.relative_to(folder)), path.stat().st_size
        shards.append(ShardInfo(file=name, samples=len(members), bytes=size, sha256=digest, index_sha256=""))
    digest = save_table(folder / "train.samples.npy", table)
    split = SplitInfo(samples=len(images), table="train.samples.npy", table_sha256=digest, shards=tuple(shards))
    classes = tuple(ClassInfo(wnid=f"n{number:08d}") for number in range(max(labels) + 1))
    described = None
    if statistics is not None:
        np.savez(folder / STATISTICS, **dataclasses.asdict(statistics))
        described = {"sha256": hashlib.sha256((folder / STATISTICS).read_bytes()).hexdigest()}
    manifest = Manifest(seed=0, classes=classes, splits={"train": split}, statistics=described)
    (folder / "manifest.json").write_text(manifest.to_json())
    return Dataset(folder)


def save_table(path: Path, table: NDArray[Any]) -> str:
    """Write a sample table; its hash, for the manifest."""
    np.save(path, table)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def replace_table(folder: Path, split: str, table: NDArray[Any]) -> None:
    """Give a split of a dataset folder another sample table, which the manifest describes."""
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["splits"][split]["table_sha256"] = save_table(folder / manifest["splits"][split]["table"], table)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def statistics_of_size(side: int) -> Statistics:
    """A smooth mean image and AlexNet's published eigenvalues with a proper rotation for eigenvectors."""
    ramp = np.linspace(90, 140, side, dtype=np.float32)
    mean = np.stack([ramp[:, None] + 0 * ramp, ramp[None, :] + 0 * ramp[:, None], 230 - ramp[:, None] + 0 * ramp], -1)
    rotation, _ = np.linalg.qr(np.array([[-0.57, 0.72, 0.4], [-0.58, 0.0, -0.81], [-0.58, -0.69, 0.42]]))
    return Statistics(
        mean_image=mean.astype(np.float32), eigenvalues=np.array([0.2175, 0.0188, 0.0045]), eigenvectors=rotation
    )
