"""What a second process does in test_staging.py; it imports little, so that it starts quickly."""

from __future__ import annotations

from multiprocessing.queues import Queue
from pathlib import Path

from pipeline.data.dataset import Dataset
from pipeline.data.staging import staged


def inodes(folder: Path) -> dict[str, int]:
    """Identify the files of the shards: a file that was copied again has another inode."""
    return {path.name: path.stat().st_ino for path in folder.rglob("*.tar")}


def stage_and_read(dataset: Path, folder: str, sample: int, results: Queue[tuple[dict[str, int], bytes]]) -> None:
    split = staged(Dataset(dataset).split("train"), folder)
    results.put((inodes(split.folder), split.read(sample)))
