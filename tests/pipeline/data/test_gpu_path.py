"""The loader's branches for a GPU, played by the CPU: pixels, memory that is lent to the device, threads."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pipeline.data import finishing
from pipeline.data.augment import AugmentConfig, training_views
from pipeline.data.batch import Batch, BatchStream, LoaderConfig
from pipeline.data.dataset import Dataset, Split
from pipeline.data.finishing import Finish
from pipeline.data.graphs import Graph, Inputs, Normalization
from pipeline.data.lending import Lent
from pipeline.data.memory import MemoryProducer
from pipeline.data.order import Order, Presentations
from pipeline.data.producer import DaliProducer, Item, Producer
from pipeline.data.views import Views, centre_views, whole_views
from tests.pipeline.data.fake_gpu import CPU, Event, GpuFinish
from tests.pipeline.data.small_datasets import statistics_of_size

STATISTICS = statistics_of_size(64)
AUGMENT = AugmentConfig(short_side=(72, 96), crop=64)
CONFIG = LoaderConfig(threads=2)
STD = (58.4, 57.1, 57.4)


def training_stream(split: Split, augment: AugmentConfig = AUGMENT, batches: int = 4, size: int = 8) -> BatchStream:
    order = Order(len(split), size, seed=3)

    def views_of(shown: Presentations, shapes: NDArray[np.int64]) -> Views:
        return training_views(3, shown.epochs, shown.ids, *shapes.T, augment, statistics_of_size(augment.crop))

    return BatchStream(split, size, [order.minibatch(iteration) for iteration in range(batches)], views_of)


def collect(producer: Producer) -> list[Batch]:
    producer.thread.start()
    batches = []
    try:
        while (item := producer.ready.get()).batch is not None:
            batches.append(item.batch)
    finally:
        producer.close()
    if item.error is not None:
        raise item.error
    return batches


def produced(stream: BatchStream, graph: Graph, finish: Finish, config: LoaderConfig = CONFIG) -> list[Batch]:
    return collect(DaliProducer(stream, graph, finish, config))


@pytest.mark.usefixtures("fake_gpu")
@pytest.mark.parametrize("rung", ["gpu", "gpu-whole", "cpu"])
@pytest.mark.parametrize("std", [None, STD])
def test_normalized_in_the_graph_as_by_numpy(varied_jpegs: Dataset, rung: Any, std: tuple[float, ...] | None) -> None:
    """The same operations in the same order: with DALI's CPU operators even to the bit."""
    stream = training_stream(varied_jpegs.split("train"))
    normalization = Normalization.of(STATISTICS, 64, std)
    expected = produced(stream, Graph("crop", 64), Finish(normalization, CPU, torch.float32))
    found = produced(stream, Graph("crop", 64, rung, normalization), GpuFinish(normalization))
    rounded = produced(stream, Graph("crop", 64, rung, normalization), GpuFinish(normalization, torch.bfloat16))
    assert len(expected) == 4
    for one, two, three in zip(expected, found, rounded, strict=True):
        assert two.images.dtype == torch.float32 and torch.equal(two.images, one.images)
        assert torch.equal(three.images, one.images.bfloat16()) and torch.equal(two.labels, one.labels)
        np.testing.assert_array_equal(one.ids, two.ids)


@pytest.mark.usefixtures("fake_gpu")
@pytest.mark.parametrize("kind", ["five-crops", "whole"])
def test_evaluations_graphs_normalize_alike(varied_jpegs: Dataset, kind: Any) -> None:
    split = varied_jpegs.split("train")
    normalization = Normalization.of(STATISTICS, 64 if kind == "five-crops" else None, STD)
    shown = [Presentations(np.zeros(1, np.int64), np.array([sample])) for sample in range(6)]
    views = (
        (lambda _, shapes: whole_views(shapes, 72))
        if kind == "whole"
        else (lambda _, shapes: centre_views(shapes, 72, 64))
    )
    stream = BatchStream(split, 1, shown, views)
    expected = produced(stream, Graph(kind, 64), Finish(normalization, CPU, torch.float32))
    found = produced(stream, Graph(kind, 64, "gpu", normalization), GpuFinish(normalization))
    assert all(torch.equal(one.images, two.images) for one, two in zip(expected, found, strict=True))


@pytest.mark.usefixtures("fake_gpu")
def test_padded_crops_decoded_and_from_memory(tiny_images: Dataset) -> None:
    augment = AugmentConfig(kind="pad-crop", crop=32, colour=0.1)
    stream = training_stream(tiny_images.split("train"), augment, batches=8, size=16)
    normalization = Normalization.of(statistics_of_size(32), 32, STD)
    finishes = Finish(normalization, CPU, torch.float32, pad=4), GpuFinish(normalization, pad=4)
    expected = produced(stream, Graph("source", 32), finishes[0])
    found = produced(stream, Graph("source", 32, "gpu", normalization), finishes[1])
    kept = collect(MemoryProducer(stream, 32, finishes[1], CONFIG))
    assert len(expected) == 8
    for one, two, three in zip(expected, found, kept, strict=True):
        assert torch.equal(two.images, one.images) and torch.equal(three.images, one.images)
        assert torch.equal(two.labels, one.labels) and torch.equal(three.labels, one.labels)


@pytest.mark.usefixtures("fake_gpu")
def test_batches_have_memory_of_their_own(varied_jpegs: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's record_stream, which guards a batch while the net reads it, does not govern DALI's memory."""
    taken: list[NDArray[np.float32]] = []
    streams: list[object] = []
    original = finishing.feed_ndarray

    def recording(tensor: Any, copy: torch.Tensor, cuda_stream: object) -> torch.Tensor:
        taken.append(np.asarray(tensor))
        streams.append(cuda_stream)
        return original(tensor, copy, cuda_stream=cuda_stream)

    monkeypatch.setattr(finishing, "feed_ndarray", recording)
    normalization = Normalization.of(STATISTICS, 64)
    stream = training_stream(varied_jpegs.split("train"))
    finish = GpuFinish(normalization)
    batches = produced(stream, Graph("crop", 64, "gpu", normalization), finish)
    assert len(taken) == len(batches) == 4
    assert streams == [finish.stream] * 4  # so that the copy waits for DALI, and nobody on the host for the copy
    assert {one.ctypes.data for one in taken}.isdisjoint(batch.images.data_ptr() for batch in batches)


class LateEvent(Event):
    """The device does the work before `record` when someone waits for the event, or when `progress` is called."""

    def __init__(self, work: Callable[[], None]) -> None:
        self.work, self.happened = work, False

    def query(self) -> bool:
        return self.happened

    def synchronize(self) -> None:
        if not self.happened:
            self.work()
        self.happened = True


def test_lent_memory_is_kept_until_the_event_and_no_longer() -> None:
    class Owner: ...

    lent, done = Lent(at_most=2), []
    events = [LateEvent(lambda number=number: done.append(number)) for number in range(5)]  # type: ignore[misc]
    owners = [Owner() for _ in events]
    alive = [weakref.ref(owner) for owner in owners]

    def lend(number: int) -> list[int]:
        lent.lend(events[number], owners[number])  # type: ignore[arg-type]
        owners[number] = None  # type: ignore[call-overload]
        gc.collect()
        return [number for number, owner in enumerate(alive) if owner() is not None]

    owners_left = [lend(0), lend(1)]
    assert owners_left == [[0, 1, 2, 3, 4]] * 2 and done == [] and len(lent) == 2
    events[0].synchronize()
    assert lend(2) == [1, 2, 3, 4] and done == [0]  # the first had happened: nothing waits
    assert lend(3) == [2, 3, 4] and done == [0, 1]  # two are lent: the oldest is waited for
    lent.wait()
    gc.collect()
    assert done == [0, 1, 2, 3] and len(lent) == 0 and [owner() is None for owner in alive] == [True] * 4 + [False]


class Outputs:
    """A batch in DALI's memory, which is used again as soon as nobody holds it."""

    def __init__(self, memory: NDArray[np.float32]) -> None:
        weakref.finalize(self, memory.fill, -1.0)


class FakePipeline:
    def __init__(self, source: Callable[[], Inputs], made: list[NDArray[np.float32]]) -> None:
        self.source, self.made, self.left = source, made, 0

    def schedule_run(self) -> None:
        try:
            self.source()
            self.left += 1
        except StopIteration:
            pass

    def share_outputs(self, stream: object) -> tuple[Outputs]:
        if not self.left:
            raise StopIteration
        self.left -= 1
        self.made.append(np.full(3, len(self.made), np.float32))
        return (Outputs(self.made[-1]),)

    def release_outputs(self) -> None: ...


class FakeGraph(Graph):
    def build(self, source: Any, batch: int, device: torch.device, threads: int, queue: int) -> Any:
        return FakePipeline(source, MADE)


MADE: list[NDArray[np.float32]] = []


class LateFinish(GpuFinish):
    """Its device copies a batch out of DALI's memory only when someone waits for it."""

    def __call__(self, images: Any, request: Any, workers: Any) -> Any:
        memory, copy = MADE[-1], torch.zeros(3)
        event = LateEvent(lambda: copy.copy_(torch.from_numpy(memory)))
        return Batch(copy, torch.from_numpy(request.labels), request.presentations.ids), event


@pytest.mark.parametrize("ready", [1, 12])
def test_a_late_consumer_sees_no_overwritten_pixels(varied_jpegs: Dataset, ready: int) -> None:
    """The device is behind by all batches that may be lent, and DALI uses what is released at once."""
    MADE.clear()
    stream = training_stream(varied_jpegs.split("train"), batches=12, size=2)
    normalization = Normalization.of(STATISTICS, 64)
    finish = LateFinish(normalization)
    producer = DaliProducer(stream, FakeGraph("crop", 64, "gpu", normalization), finish, replace(CONFIG, ready=ready))
    producer.thread.start()
    items: list[Item] = []
    while (item := producer.ready.get(timeout=60)).batch is not None:
        items.append(item)
    assert item.error is None
    for item in items:
        assert item.event is not None
        item.event.synchronize()
    producer.close()
    assert [item.batch.images.tolist() for item in items if item.batch] == [[number] * 3 for number in range(12)]
    gc.collect()
    assert all((memory == -1).all() for memory in MADE)  # and in the end all of it was released


def test_encoded_bytes_are_read_until_the_batch_is_out_and_not_after(varied_jpegs: Dataset) -> None:
    """DALI shares the bytes: it keeps them alive by itself, and those of a batch that is out may change."""
    split, graph = varied_jpegs.split("train"), Graph("crop", 64)
    shapes = np.stack([split.samples["height"], split.samples["width"]], axis=1).astype(np.int64)
    views, blocks = centre_views(shapes, 72, 64), np.arange(40).reshape(5, 8)

    def run(spoil: bool) -> list[NDArray[np.uint8]]:
        fed: list[list[bytearray]] = []

        def batches() -> Iterator[Inputs]:
            for block in blocks:
                fed.append([bytearray(split.read(sample)) for sample in block])
                yield graph.inputs(fed[-1], views.rows(block))  # type: ignore[arg-type]

        source, images = batches(), []
        pipeline = graph.build(lambda: next(source), 8, CPU, threads=2, queue=2)
        pipeline.schedule_run()
        for number in range(len(blocks)):
            gc.collect()
            (outputs,) = pipeline.share_outputs()
            for image in fed[number] if spoil else ():
                image[:] = bytes(len(image))
            pipeline.release_outputs()
            images.append(np.array(outputs.as_tensor()))
            pipeline.schedule_run()
        return images

    np.testing.assert_array_equal(run(spoil=True), run(spoil=False))


def test_loader_threads_work_on_their_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[tuple[str, int]] = []
    monkeypatch.setattr(torch.cuda, "set_device", lambda gpu: taken.append((threading.current_thread().name, gpu)))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 5)

    class Nothing(Producer):
        def _produce(self) -> None:
            assert taken

    for device in (torch.device("cuda", 3), torch.device("cuda"), CPU):
        producer = Nothing(1, device)
        producer.thread.start()
        assert producer.ready.get(timeout=60).error is None or device is CPU
        producer.close()
    assert taken == [("loader", 3), ("loader", 5)]


def test_one_copy_carries_arrays_of_all_types() -> None:
    finish = GpuFinish(Normalization.of(STATISTICS, 64))
    random = np.random.default_rng(0)
    arrays = (
        random.integers(-9, 9, 7), random.normal(size=(7, 3)).astype(np.float32), random.integers(0, 9, (7, 5))[:, ::-1]
    )  # fmt: skip
    sent = finish._send(*arrays)
    assert len({tensor.untyped_storage().data_ptr() for tensor in sent}) == 1
    for tensor, array in zip(sent, arrays, strict=True):
        assert tensor.shape == array.shape
        np.testing.assert_array_equal(tensor, array)
