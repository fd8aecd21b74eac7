"""More shards than a process may have open files."""

from __future__ import annotations

import gc
import resource
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.data.dataset import Dataset
from pipeline.data.loader import LoaderConfig, evaluation_batches
from pipeline.data.shards import OpenShards
from pipeline.data.views import CenterCrop
from tests.helpers import open_files
from tests.images import encode, photograph
from tests.patience import limit
from tests.pipeline.data.small_datasets import statistics_of_size
from tests.ranks import CONTEXT, start_server

SHARDS = 90


def contents(folder: Path) -> list[tuple[str, int]]:
    """Files that repeat their own number; (name, bytes) of each."""
    for number in range(SHARDS):
        (folder / f"{number}.tar").write_bytes(bytes([number]) * 4096)
    return [(f"{number}.tar", 4096) for number in range(SHARDS)]


def under_limit(files: int, function: Callable[..., Any], *arguments: object) -> Any:
    """What the function returns in a process that may have so many files open, those that it has now included."""
    start_server()
    receiver, sender = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=_limited, args=(files, function, arguments, sender), daemon=True)
    process.start()
    sender.close()
    assert receiver.poll(limit(120))
    answer = receiver.recv()
    process.join()
    assert not isinstance(answer, Exception), answer
    return answer


def _limited(files: int, function: Callable[..., Any], arguments: tuple[Any, ...], sender: Any) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    try:
        sender.send(function(*arguments))
    except Exception as error:
        sender.send(error)


def read_at_random(folder: Path) -> tuple[int, int]:
    """How many reads by 16 threads gave another file's bytes, and how many files were open at the end."""
    shards = OpenShards(folder, [(f"{number}.tar", 4096) for number in range(SHARDS)])

    def read(seed: int) -> int:
        random = Random(seed)
        places = [random.randrange(SHARDS) for _ in range(500)]
        return sum(shards.read(place, random.randrange(3000), 1000) != bytes([place]) * 1000 for place in places)

    with ThreadPoolExecutor(16) as pool:
        wrong = sum(pool.map(read, range(16)))
    return wrong, len(open_files(folder))


@pytest.mark.parametrize("files", [64, 200])
def test_files_are_closed_and_opened_again_where_the_limit_is_below_their_number(tmp_path: Path, files: int) -> None:
    contents(tmp_path)
    wrong, kept = under_limit(files, read_at_random, tmp_path)
    assert wrong == 0 and 8 <= kept < SHARDS


def test_all_stay_open_where_the_limit_allows_it(tmp_path: Path) -> None:
    shards = OpenShards(tmp_path, contents(tmp_path))
    for _ in range(2):
        assert [shards.read(number, 4090, 10) for number in range(SHARDS)] == [bytes([n]) * 6 for n in range(SHARDS)]
    assert len(open_files(tmp_path)) == SHARDS
    shards.close()
    assert open_files(tmp_path) == []
    assert shards.read(3, 0, 2) == b"\3\3"
    del shards
    gc.collect()
    assert open_files(tmp_path) == []


def pixels(folder: Path) -> np.ndarray:
    split, cpu, view = Dataset(folder).split("train"), torch.device("cpu"), CenterCrop(short_side=32, crop=32)
    blocks = np.random.default_rng(1).permutation(len(split)).reshape(6, -1)
    config = LoaderConfig(threads=2, in_memory_mb=0)
    with evaluation_batches(split, view, statistics_of_size(32), list(blocks), cpu, config) as batches:
        images = torch.cat([batch.images for batch in batches]).numpy()
        assert len(open_files(folder)) < len(split.info.shards)
    return images


def test_the_loader_needs_fewer_files_than_there_are_shards(make_dataset: Callable[..., Dataset]) -> None:
    images = [encode(photograph(number, 40, 36), "PNG") for number in range(SHARDS)]
    folder = make_dataset(images, shard_size=1).folder
    np.testing.assert_array_equal(under_limit(80, pixels, folder), pixels_here(folder))


def pixels_here(folder: Path) -> np.ndarray:
    split, view = Dataset(folder).split("train"), CenterCrop(short_side=32, crop=32)
    order = np.random.default_rng(1).permutation(len(split))
    with evaluation_batches(
        split, view, statistics_of_size(32), [order], torch.device("cpu"), LoaderConfig(threads=1)
    ) as batches:
        return next(batches).images.numpy()
