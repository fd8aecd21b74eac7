"""A faulty dataset folder gets an error of one sentence; a sound one gives the bytes that its tars hold."""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest

from pipeline.base.command import UserError
from pipeline.data.dataset import Dataset


@pytest.fixture
def copy(digits: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(digits, tmp_path / "copy"))


def test_samples_are_what_the_tars_hold(digits: Path) -> None:
    """Reference: Python's tarfile."""
    split = Dataset(digits).split("train")
    sample = 0
    for shard in split.info.shards:
        with tarfile.open(digits / shard.file) as tar:
            members = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
        for _ in range(shard.samples):
            key = split.samples[sample]["key"].decode()
            assert split.read(sample) == members[f"{key}.jpg"]
            assert split.labels[sample] == int(members[f"{key}.cls"])
            sample += 1
    assert sample == len(split) == 1442


def test_another_format_version(copy: Path) -> None:
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps(manifest | {"version": 2}))
    with pytest.raises(UserError, match=r"format version 2, this code reads version 1: .* again") as refused:
        Dataset(copy)
    assert str(copy) in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("damage", [b"", b"{}", b"[1]", b"\xff\xfe", b'{"format": "other", "version": 1}'])
def test_a_file_that_is_no_manifest(copy: Path, damage: bytes) -> None:
    (copy / "manifest.json").write_bytes(damage)
    with pytest.raises(UserError, match=r"is not a dataset's manifest"):
        Dataset(copy)


def test_parts_that_are_missing(copy: Path) -> None:
    dataset = Dataset(copy)
    with pytest.raises(UserError, match=r"no split 'test' \(it has: train, val\)"):
        dataset.split("test")
    (copy / dataset.manifest.splits["val"].table).unlink()
    with pytest.raises(UserError, match="sample table"):
        dataset.split("val")
    shard = dataset.manifest.splits["train"].shards[0].file
    (copy / shard).unlink()
    with pytest.raises(UserError, match=r"shard .* cannot be opened"):
        dataset.split("train").read(0)


@pytest.mark.parametrize("damage", ["cut off", "changed", "nothing", "a bare array"])
def test_damaged_statistics(copy: Path, damage: str) -> None:
    path = copy / "statistics.npz"
    whole = path.read_bytes()
    middle = len(whole) // 2
    changed = whole[:middle] + b"spoilt" + whole[middle + 6 :]
    path.write_bytes({"cut off": whole[:-100], "changed": changed}.get(damage, b""))
    if damage == "a bare array":
        with open(path, "wb") as file:
            np.save(file, np.zeros(3))
    with pytest.raises(UserError, match=r"the statistics .* cannot be read .* prepare the dataset again"):
        _ = Dataset(copy).statistics


def test_a_shard_that_was_cut_off_names_the_sample(copy: Path) -> None:
    split = Dataset(copy).split("train")
    shard = copy / split.info.shards[0].file
    last = split.info.shards[0].samples - 1
    with open(shard, "r+b") as file:
        file.truncate(int(split.samples[last]["offset"]) + 5)
    with pytest.raises(UserError, match=split.samples[last]["key"].decode()) as refused:
        split.read(last)
    assert str(shard) in str(refused.value)
