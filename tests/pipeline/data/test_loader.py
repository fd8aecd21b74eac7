from __future__ import annotations

import gc
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.base.command import UserError
from pipeline.data.augment import AugmentConfig, ResizeStage
from pipeline.data.dataset import Dataset, Split
from pipeline.data.graphs import Normalization
from pipeline.data.loader import Batch, BatchIterator, LoaderConfig, evaluation_batches, training_batches
from pipeline.data.order import Order
from pipeline.data.views import CenterCrop, TenCrop
from tests.helpers import ROOT, open_files
from tests.images import encode, photograph
from tests.patience import limit
from tests.pipeline.data.small_datasets import statistics_of_size

CPU = torch.device("cpu")
CONFIG = LoaderConfig(threads=2)
AUGMENT = AugmentConfig(short_side=(72, 96), crop=64)
STATISTICS = statistics_of_size(64)


def train(
    split: Split, rows: slice, start: int, stop: int, config: LoaderConfig = CONFIG, batch: int = 16, **options: Any
) -> BatchIterator:
    order = Order(len(split), batch, seed=3)
    return training_batches(split, order, AUGMENT, STATISTICS, rows, start, stop, CPU, config, **options)


def collect(batches: BatchIterator) -> list[Batch]:
    with batches:
        return list(batches)


def test_one_batch_an_iteration_with_its_ids_and_labels(varied_jpegs: Dataset) -> None:
    split = varied_jpegs.split("train")
    batches = collect(train(split, slice(0, 16), 0, 6))
    order = Order(len(split), 16, seed=3)
    assert len(batches) == 6
    for iteration, batch in enumerate(batches):
        np.testing.assert_array_equal(batch.ids, order.minibatch(iteration).ids)
        assert batch.labels.dtype == torch.int64
        np.testing.assert_array_equal(batch.labels.numpy(), split.samples["label"][batch.ids])
        assert batch.images.shape == (16, 64, 64, 3) and batch.images.dtype == torch.float32


@pytest.mark.parametrize("edges", [(0, 8, 16), (0, 1, 16), (0, 5, 10, 13, 16)])
@pytest.mark.parametrize("threads", [1, 3])
def test_images_do_not_depend_on_threads_or_on_the_split_among_ranks(
    varied_jpegs: Dataset, edges: tuple[int, ...], threads: int
) -> None:
    split = varied_jpegs.split("train")
    whole = collect(train(split, slice(0, 16), 0, 4))
    config = LoaderConfig(threads=threads, read_threads=threads, decode_ahead=threads, read_ahead=1, ready=1)
    ranks = [collect(train(split, slice(a, b), 0, 4, config)) for a, b in itertools.pairwise(edges)]
    for iteration, batch in enumerate(whole):
        parts = [rank[iteration] for rank in ranks]
        assert torch.equal(torch.cat([part.images for part in parts]), batch.images)
        assert torch.equal(torch.cat([part.labels for part in parts]), batch.labels)
        np.testing.assert_array_equal(np.concatenate([part.ids for part in parts]), batch.ids)


def test_resuming_at_an_iteration_goes_on_with_the_same_batches(varied_jpegs: Dataset) -> None:
    split = varied_jpegs.split("train")
    whole = collect(train(split, slice(0, 16), 0, 7))
    for start in (1, 4, 6):
        resumed = collect(train(split, slice(0, 16), start, 7))
        assert len(resumed) == 7 - start
        for batch, expected in zip(resumed, whole[start:], strict=True):
            assert torch.equal(batch.images, expected.images)
    assert collect(train(split, slice(0, 16), 7, 7)) == []


def test_stages_resize_and_resume_inside_one(varied_jpegs: Dataset) -> None:
    """Reference: loaders of one size each, for the iterations that a stage has."""
    split = varied_jpegs.split("train")
    order, rows = Order(len(split), 16, seed=3), slice(4, 12)
    stages = tuple(
        ResizeStage(until=until, crop=crop, short_side=(crop, crop + 20)) for until, crop in ((2, 32), (5, 48))
    )
    augment = replace(AUGMENT, stages=stages)
    expected = []
    for start, stop, crop, short_side in ((0, 2, 32, (32, 52)), (2, 5, 48, (48, 68)), (5, 7, 64, (72, 96))):
        plain = AugmentConfig(crop=crop, short_side=short_side)
        expected += collect(training_batches(split, order, plain, STATISTICS, rows, start, stop, CPU, CONFIG))
    for start in (0, 1, 2, 3, 6):
        batches = training_batches(split, order, augment, STATISTICS, rows, start, 7, CPU, CONFIG)
        found = collect(batches)
        assert len(found) == 7 - start and batches.wait_seconds > 0
        for batch, reference in zip(found, expected[start:], strict=True):
            assert torch.equal(batch.images, reference.images) and torch.equal(batch.labels, reference.labels)


def test_closing_in_a_stage_ends_them_all(varied_jpegs: Dataset) -> None:
    split = varied_jpegs.split("train")
    augment = replace(AUGMENT, stages=(ResizeStage(until=1, crop=32, short_side=(40, 50)),))
    order = Order(len(split), 16, seed=3)
    batches = training_batches(split, order, augment, STATISTICS, slice(0, 16), 0, 9, CPU, CONFIG)
    assert [next(batches).images.shape[1] for _ in range(3)] == [32, 64, 64]
    batches.close()
    assert list(batches) == [] and not loader_threads()


def test_batches_stay_valid_while_the_loader_goes_on(varied_jpegs: Dataset) -> None:
    """Tensors must not share memory that DALI uses again."""
    copies, kept = [], []
    with train(varied_jpegs.split("train"), slice(0, 4), 0, 40) as batches:
        for batch in batches:
            kept.append(batch.images)
            copies.append(batch.images.clone())
    gc.collect()
    assert all(torch.equal(one, copy) for one, copy in zip(kept, copies, strict=True))


def test_evaluation_gives_each_block_as_it_is(varied_jpegs: Dataset) -> None:
    split = varied_jpegs.split("train")
    blocks = [np.arange(0, 16), np.array([39, 3]), np.array([7])]
    batches = collect(evaluation_batches(split, CenterCrop(short_side=72, crop=64), STATISTICS, blocks, CPU, CONFIG))
    assert [len(batch.images) for batch in batches] == [16, 2, 1]
    for batch, block in zip(batches, blocks, strict=True):
        np.testing.assert_array_equal(batch.ids, block)
    again = collect(
        evaluation_batches(split, CenterCrop(short_side=72, crop=64), STATISTICS, [np.array([3, 39, 8])], CPU, CONFIG)
    )
    assert torch.equal(again[0].images[:2], batches[1].images.flip(0))
    assert torch.equal(again[0].images[2], batches[0].images[8])


def test_ten_crops_are_five(varied_jpegs: Dataset) -> None:
    split = varied_jpegs.split("train")
    view = TenCrop(short_side=72, crop=64)
    (batch,) = collect(evaluation_batches(split, view, STATISTICS, [np.arange(5)], CPU, CONFIG))
    assert batch.images.shape == (5, 5, 64, 64, 3)


def test_an_explicit_mean_and_standard_deviation(varied_jpegs: Dataset) -> None:
    split = varied_jpegs.split("train")
    view, block = CenterCrop(short_side=72, crop=64), [np.arange(3)]
    raw = Normalization(np.zeros(3, np.float32))
    mean, std = np.array([123.675, 116.28, 103.53], np.float32), np.array([58.395, 57.12, 57.375], np.float32)
    (plain,) = collect(evaluation_batches(split, view, raw, block, CPU, CONFIG))
    (scaled,) = collect(evaluation_batches(split, view, Normalization(mean, std), block, CPU, CONFIG))
    np.testing.assert_array_equal(plain.images, plain.images.round())
    np.testing.assert_allclose(scaled.images, (plain.images.numpy() - mean) / std, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("damage", ["cut", "text", "zero"])
def test_a_sample_that_does_not_decode_is_named(make_dataset: Callable[..., Dataset], damage: str) -> None:
    images = [encode(photograph(number, 90, 120)) for number in range(12)]
    images[7] = {"cut": images[7][: len(images[7]) // 3], "text": b"not an image", "zero": b"\0"}[damage]
    split = make_dataset(images).split("train")
    with pytest.raises(UserError, match=r"sample image0007 \(bytes \d+ to \d+ of .*test-train-000000.tar\) does not"):
        collect(train(split, slice(0, 12), 0, 3, batch=12))


def test_a_shard_that_was_cut_off_is_named(make_dataset: Callable[..., Dataset]) -> None:
    dataset = make_dataset([encode(photograph(number, 90, 120)) for number in range(6)])
    shard = dataset.folder / "train/test-train-000000.tar"
    os.truncate(shard, 20_000)
    with pytest.raises(UserError, match=r"test-train-000000.tar has 20,000 bytes, the manifest says [\d,]+: .* again"):
        collect(train(dataset.split("train"), slice(0, 6), 0, 1, batch=6))


def test_batches_before_a_failure_are_delivered(make_dataset: Callable[..., Dataset]) -> None:
    images = [encode(photograph(number, 90, 120)) for number in range(8)]
    images[5] = b"not an image"
    split = make_dataset(images).split("train")
    blocks = [np.array([number]) for number in range(8)]
    config = LoaderConfig(threads=1, decode_ahead=1, read_ahead=1)
    batches = evaluation_batches(split, CenterCrop(short_side=72, crop=64), STATISTICS, blocks, CPU, config)
    assert [int(next(batches).ids[0]) for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(UserError, match="image0005"):
        next(batches)
    with pytest.raises(StopIteration):
        next(batches)


def loader_threads() -> set[str]:
    return {thread.name for thread in threading.enumerate() if thread.name.startswith("loader")}


@pytest.mark.parametrize("taken", [0, 1, 5])
def test_closing_early_ends_the_work_and_leaves_nothing_behind(
    varied_jpegs: Dataset, taken: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = varied_jpegs.split("train")
    collect(train(split, slice(0, 16), 0, 3))  # opens the shards
    gc.collect()
    files = open_files(varied_jpegs.folder)
    read, samples = split.read, []

    def counted(sample: int) -> bytes:
        samples.append(sample)
        return read(sample)

    monkeypatch.setattr(split, "read", counted)
    batches = train(split, slice(0, 16), 0, 100_000)
    for _ in range(taken):
        next(batches)
    batches.close()
    # Taken by the consumer, waiting for it, on the way there, in DALI, being read: the 100,000 were not worked through.
    ahead = CONFIG.queues.ready + 1 + CONFIG.queues.decode_ahead + CONFIG.queues.read_ahead + 1
    assert len(samples) <= 16 * (taken + ahead)
    assert (loader_threads(), open_files(varied_jpegs.folder)) == (set(), files)
    with pytest.raises(StopIteration):
        next(batches)


def test_a_forgotten_loader_is_collected(varied_jpegs: Dataset) -> None:
    batches = train(varied_jpegs.split("train"), slice(0, 4), 0, 100_000)
    next(batches)
    del batches
    gc.collect()
    assert not loader_threads()


def test_waiting_is_measured(varied_jpegs: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    split = varied_jpegs.split("train")
    read, asked = split.read, threading.Event()

    def late(sample: int) -> bytes:
        assert asked.wait(limit(60))
        time.sleep(0.2)
        return read(sample)

    monkeypatch.setattr(split, "read", late)
    with train(split, slice(0, 1), 0, 4, LoaderConfig(threads=1, read_threads=1, read_ahead=1, decode_ahead=1)) as it:
        get = it._producer.ready.get

        def asking() -> Any:
            asked.set()
            return get()

        monkeypatch.setattr(it._producer.ready, "get", asking)
        started = time.perf_counter()
        list(it)
        assert 0.2 <= it.wait_seconds <= time.perf_counter() - started


def test_reads_run_ahead_and_at_once(varied_jpegs: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """The twelve samples of the first batch and of the two behind it: no read ends before all of them are under way."""
    split = varied_jpegs.split("train")
    order, read, together = Order(len(split), 4, seed=3), split.read, threading.Barrier(12)
    first = {int(sample) for iteration in range(3) for sample in order.minibatch(iteration).ids}
    assert len(first) == 12

    def held(sample: int) -> bytes:
        if sample in first:
            together.wait(limit(60))
        return read(sample)

    monkeypatch.setattr(split, "read", held)
    batches = collect(train(split, slice(0, 4), 0, 8, LoaderConfig(threads=2, read_ahead=2), batch=4))
    assert [batch.ids.tolist() for batch in batches] == [order.minibatch(t).ids.tolist() for t in range(8)]


SCRIPT = """
import os, signal, sys, time
from pathlib import Path
import numpy as np
import torch
from pipeline.data.augment import AugmentConfig
from pipeline.data.dataset import Dataset, Statistics
from pipeline.data.loader import LoaderConfig, training_batches
from pipeline.data.order import Order

folder, logs, *ends = sys.argv[1:]
for end in ends:  # each in a process of its own, forked from one that has imported everything
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        break
    os.read(reader, 1)
    if end == "consume":
        os.kill(child, signal.SIGINT)
    print(end, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
else:
    sys.exit()

os.dup2(os.open(Path(logs) / end, os.O_WRONLY | os.O_CREAT), 2)
split = Dataset(folder).split("train")
augment, rows, config = AugmentConfig(short_side=(72, 96), crop=64), slice(0, 8), LoaderConfig(threads=2)
statistics = Statistics(mean_image=np.zeros((64, 64, 3), np.float32), eigenvalues=np.ones(3), eigenvectors=np.eye(3))
order = Order(len(split), 8, 0)
batches = training_batches(split, order, augment, statistics, rows, 0, 10**9, torch.device("cpu"), config)
for number, batch in enumerate(batches):
    if number == 2:
        os.write(writer, b"x")
        if end != "consume":
            break
        time.sleep(1_000_000)  # its work with the batch
if end == "fail":
    raise RuntimeError("the consumer failed")
"""


@pytest.mark.costly("a program's own end takes a program, which imports torch and DALI")
def test_processes_end_without_closing(varied_jpegs: Dataset, tmp_path: Path) -> None:
    """Ctrl-C while the loader runs, falling off the end of the program, and an error in it: no hang, no crash."""
    command = [sys.executable, "-c", SCRIPT, str(varied_jpegs.folder), str(tmp_path), "consume", "leave", "fail"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=limit(200))
    said = {end: (tmp_path / end).read_text() for end in ("consume", "leave", "fail")}
    assert done.stdout.splitlines() == [f"consume {-signal.SIGINT}", "leave 0", "fail 1"], (done.stderr, said)
    assert [end for end, text in said.items() if "KeyboardInterrupt" in text] == ["consume"]
    assert [end for end, text in said.items() if "the consumer failed" in text] == ["fail"]
