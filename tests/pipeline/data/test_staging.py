from __future__ import annotations

import multiprocessing
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.base.command import UserError
from pipeline.base.files import TEMPORARY_SUFFIX
from pipeline.data import staging
from pipeline.data.dataset import Dataset
from pipeline.data.loader import LoaderConfig, evaluation_batches
from pipeline.data.staging import staged
from pipeline.data.views import CenterCrop
from tests.helpers import open_files
from tests.images import encode, photograph
from tests.patience import limit
from tests.pipeline.data.small_datasets import statistics_of_size
from tests.pipeline.data.staging_process import inodes, stage_and_read


@pytest.fixture
def dataset(make_dataset: Callable[..., Dataset]) -> Dataset:
    return make_dataset([encode(photograph(number, 80, 100)) for number in range(20)], shard_size=6)


def test_copies_are_read_instead_of_the_dataset(dataset: Dataset, tmp_path: Path) -> None:
    split = dataset.split("train")
    expected = [split.read(sample) for sample in range(20)]
    copy = staged(split, str(tmp_path / "fast"))
    shutil.rmtree(dataset.folder / "train")
    assert [copy.read(sample) for sample in range(20)] == expected
    np.testing.assert_array_equal(copy.samples, split.samples)
    assert not list((tmp_path / "fast").rglob(f"*{TEMPORARY_SUFFIX}"))


def test_sound_copies_are_kept_and_damaged_ones_made_again(dataset: Dataset, tmp_path: Path) -> None:
    split = dataset.split("train")
    folder = staged(split, str(tmp_path)).folder
    before = inodes(folder)
    assert inodes(staged(split, str(tmp_path)).folder) == before
    names = sorted(before)
    for name in names:  # a removed file's inode number is not given to another while a link holds it
        os.link(folder / "train" / name, tmp_path / f"kept-{name}")
    os.truncate(folder / "train" / names[0], 1000)
    with open(folder / "train" / names[1], "r+b") as shard:  # same size, other bytes, later time
        shard.write(b"x")
    (folder / "train" / names[2]).unlink()
    (folder / "train" / f"{names[3]}.1{TEMPORARY_SUFFIX}").write_bytes(b"left by a copy that was killed")
    copy = staged(split, str(tmp_path))
    after = inodes(folder)
    assert [name for name in names if after[name] != before[name]] == names[:3]
    assert [copy.read(sample) for sample in range(20)] == [split.read(sample) for sample in range(20)]
    assert not list(folder.rglob(f"*{TEMPORARY_SUFFIX}"))


def test_a_shard_that_is_not_the_manifests_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    split = dataset.split("train")
    shard = dataset.folder / split.info.shards[1].file
    data = bytearray(shard.read_bytes())
    data[1000] ^= 1
    shard.write_bytes(data)
    with pytest.raises(UserError, match=r"test-train-000001.tar does not match the SHA-256 in the manifest"):
        staged(split, str(tmp_path / "fast"))
    assert not list((tmp_path / "fast").rglob("test-train-000001.tar"))


def test_a_damaged_note_of_a_copy_makes_another_copy(dataset: Dataset, tmp_path: Path) -> None:
    folder = str(tmp_path / "fast")
    staged(dataset.split("train"), folder).close()
    note = next((tmp_path / "fast").rglob("*" + staging._CHECKED))
    sound = note.read_bytes()
    note.write_bytes(b"\xff\xfe")
    staged(dataset.split("train"), folder).close()
    assert note.read_bytes().split()[0] == sound.split()[0]


def test_a_disk_that_is_too_small_is_refused(dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(staging.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UserError, match=r"0.0 GB free, but the shards to stage need"):
        staged(dataset.split("train"), str(tmp_path / "fast"))


def test_the_processes_of_a_machine_share_one_copy(dataset: Dataset, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    folder = str(tmp_path / "fast")
    processes = [context.Process(target=stage_and_read, args=(dataset.folder, folder, 19, results)) for _ in range(2)]
    for process in processes:
        process.start()
    found = [results.get(timeout=limit(120)) for _ in processes]
    for process in processes:
        process.join()
    assert found[0] == found[1]
    assert found[0][1] == dataset.split("train").read(19)


def test_the_loader_reads_staged_shards_and_closes_them(dataset: Dataset, tmp_path: Path) -> None:
    split, cpu = dataset.split("train"), torch.device("cpu")
    view, blocks, statistics = CenterCrop(short_side=72, crop=64), [np.arange(20)], statistics_of_size(64)
    with evaluation_batches(split, view, statistics, blocks, cpu, LoaderConfig(threads=2)) as batches:
        expected = next(batches).images
    config = LoaderConfig(threads=2, stage_to=str(tmp_path / "fast"))
    with evaluation_batches(split, view, statistics, blocks, cpu, config) as batches:
        assert torch.equal(next(batches).images, expected)
    assert not [file for file in open_files(tmp_path / "fast") if file.endswith(".tar")]
