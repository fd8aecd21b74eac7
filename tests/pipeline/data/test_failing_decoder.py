"""A GPU's decoder that fails is told from damaged images, which are those that the CPU refuses."""

from __future__ import annotations

import dataclasses
import struct
import weakref
from collections.abc import Callable, Collection, Sequence
from typing import Any, ClassVar
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from pipeline.base.command import UserError
from pipeline.data import failures
from pipeline.data.batch import Batch, LoaderConfig
from pipeline.data.dali_errors import reason_of
from pipeline.data.dataset import Dataset, Split
from pipeline.data.decoders import decoder_version
from pipeline.data.finishing import Finish
from pipeline.data.graphs import Graph, Inputs, Normalization
from pipeline.data.views import Views
from tests.images import encode, photograph
from tests.pipeline.data.fake_gpu import CPU, FailingGraph, GpuFinish
from tests.pipeline.data.small_datasets import statistics_of_size
from tests.pipeline.data.test_gpu_path import produced, training_stream

pytestmark = pytest.mark.usefixtures("fake_gpu")
STOP = LoaderConfig(threads=2)
SUBSTITUTE = dataclasses.replace(STOP, on_decode_error="substitute")
NORMALIZATION = Normalization.of(statistics_of_size(64), 64)


@pytest.fixture
def images() -> list[bytes]:
    return [encode(photograph(number, 90, 120)) for number in range(12)]


def damaged_png() -> bytes:
    """Its header and its end are sound."""
    png = bytearray(encode(photograph(20, 90, 120), "PNG"))
    png[len(png) // 2 : len(png) // 2 + 200] = bytes(200)
    return bytes(png)


def on_gpu(split: Split, graph: Graph, config: LoaderConfig) -> list[Batch]:
    return produced(training_stream(split, batches=6, size=4), graph, GpuFinish(NORMALIZATION), config)


def on_cpu(split: Split, config: LoaderConfig) -> list[Batch]:
    finish = Finish(NORMALIZATION, CPU, torch.float32)
    return produced(training_stream(split, batches=6, size=4), Graph("crop", 64), finish, config)


@pytest.mark.parametrize("config", [STOP, SUBSTITUTE])
@pytest.mark.parametrize(("rung", "remedy"), [("gpu", "gpu-whole or cpu"), ("gpu-whole", "cpu")])
def test_sound_images_are_not_blamed(
    make_dataset: Callable[..., Dataset], images: list[bytes], config: LoaderConfig, rung: Any, remedy: str
) -> None:
    split = make_dataset(images).split("train")
    graph = FailingGraph("crop", 64, rung, NORMALIZATION, broken=(images[4],))
    with pytest.raises(UserError) as caught:
        on_gpu(split, graph, config)
    sentence = str(caught.value)
    assert f"nvImageCodec {decoder_version()} on " in sentence and f"loader.decode_on: {rung})" in sentence
    assert "sample image0004 " in sentence and "which the CPU decodes" in sentence
    assert f"set loader.decode_on to {remedy} " in sentence and "last checkpoint" in sentence
    assert "verify.py" not in sentence and "substitute" not in sentence


@pytest.mark.parametrize("config", [STOP, SUBSTITUTE])
def test_nor_where_a_damaged_image_is_among_them(
    make_dataset: Callable[..., Dataset], images: list[bytes], config: LoaderConfig
) -> None:
    graph = FailingGraph("crop", 64, "gpu", NORMALIZATION, broken=tuple(images))
    stream = training_stream(make_dataset([damaged_png(), *images[1:]]).split("train"), batches=1, size=12)
    with pytest.raises(UserError, match="which the CPU decodes") as caught:
        produced(stream, graph, GpuFinish(NORMALIZATION), config)
    assert "image0000" not in str(caught.value)


def test_a_batch_on_which_only_the_gpu_fails(make_dataset: Callable[..., Dataset], images: list[bytes]) -> None:
    graph = FailingGraph("crop", 64, "gpu", NORMALIZATION, broken=(images[4],), alone=False)
    with pytest.raises(UserError, match=r"decoding on the GPU .*nvImageCodec.* failed .*set loader.decode_on"):
        on_gpu(make_dataset(images).split("train"), graph, SUBSTITUTE)


def test_a_failed_pipeline_is_freed_before_images_are_judged(
    make_dataset: Callable[..., Dataset], images: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its memory may be all that the GPU has."""
    built: list[weakref.ref[Any]] = []
    alive: list[int] = []
    build, damaged = Graph.build, failures.Judge.damaged

    def building(self: Graph, *arguments: Any, **options: Any) -> Any:
        pipeline = build(self, *arguments, **options)
        built.append(weakref.ref(pipeline))
        return pipeline

    def judging(self: failures.Judge, *arguments: Any) -> dict[int, str]:
        alive.append(sum(pipeline() is not None for pipeline in built))
        return damaged(self, *arguments)

    monkeypatch.setattr(Graph, "build", building)
    monkeypatch.setattr(failures.Judge, "damaged", judging)
    on_cpu(make_dataset([damaged_png(), *images[1:]]).split("train"), SUBSTITUTE)
    assert len(alive) >= 2 and set(alive) == {0}


class Exhausted(Graph):
    """Finds no memory: for a build, or for a batch; `judging`: only for images that are judged, one by one."""

    error: ClassVar[Exception]
    builds: ClassVar[bool]
    judging: ClassVar[bool]
    built: ClassVar[list[int]] = []  # the sizes of batches

    @classmethod
    def finds(cls, error: Exception, builds: bool, judging: bool = False) -> None:
        cls.error, cls.builds, cls.judging = error, builds, judging
        cls.built.clear()

    def build(self, source: Any, batch: int, *arguments: Any, **options: Any) -> Any:
        self.built.append(batch)
        if self.judging and batch > 1:
            return super().build(source, batch, *arguments, **options)
        if not self.builds:
            raise self.error
        pipeline = super().build(source, batch, *arguments, **options)
        return Mock(wraps=pipeline, share_outputs=Mock(side_effect=self.error), run=Mock(side_effect=self.error))


@pytest.mark.parametrize("config", [STOP, SUBSTITUTE])
@pytest.mark.parametrize("rung", ["gpu", "cpu"])
@pytest.mark.parametrize(
    ("builds", "error"),
    [
        (False, MemoryError("CUDA allocation failed")),
        (True, RuntimeError("Error in GPU operator\nencountered:\nCan't allocate 129499136 bytes on device 0.")),
        (True, RuntimeError("nvJPEG error: NVJPEG_STATUS_ALLOCATOR_FAILURE")),
        (True, RuntimeError("CUDA runtime API error cudaErrorMemoryAllocation (2):\nout of memory")),
        (True, RuntimeError("std::bad_alloc")),
    ],
    ids=str,
)
def test_exhausted_memory_is_named_and_blames_no_image(
    make_dataset: Callable[..., Dataset], images: list[bytes], builds: bool, error: Exception, rung: Any, config: Any
) -> None:
    split = make_dataset([damaged_png(), *images[1:]]).split("train")
    Exhausted.finds(error, builds)
    with pytest.raises(UserError, match=r"^decoding ran out of memory .*loader.decode_ahead") as caught:
        on_gpu(split, Exhausted("crop", 64, rung, NORMALIZATION), config)
    assert reason_of(error) in str(caught.value) and f"loader.decode_on: {rung};" in str(caught.value)
    assert Exhausted.built == [4]  # nothing was judged


@pytest.mark.parametrize("builds", [False, True])
@pytest.mark.parametrize("rung", ["gpu", "cpu"])
@pytest.mark.parametrize("damage", [b"\xff\xd8 nothing", damaged_png()], ids=["header", "behind it"])
def test_nor_is_an_image_blamed_that_is_judged_without_memory(
    make_dataset: Callable[..., Dataset], images: list[bytes], damage: bytes, rung: Any, builds: bool
) -> None:
    Exhausted.finds(RuntimeError("Can't allocate 129499136 bytes on host.") if builds else MemoryError(), builds, True)
    with pytest.raises(UserError, match=r"^decoding ran out of memory"):
        on_gpu(
            make_dataset([damage, *images[1:]]).split("train"), Exhausted("crop", 64, rung, NORMALIZATION), SUBSTITUTE
        )


def claiming(image: bytes, height: int, width: int) -> bytes:
    """A JPEG whose header claims another size."""
    place = next(place for place in range(len(image)) if image[place] == 0xFF and image[place + 1] in (0xC0, 0xC2))
    return image[: place + 5] + struct.pack(">HH", height, width) + image[place + 9 :]


@pytest.mark.parametrize("config", [STOP, SUBSTITUTE], ids=["stop", "substitute"])
def test_an_image_that_claims_another_size_is_damaged(
    make_dataset: Callable[..., Dataset], images: list[bytes], config: LoaderConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DALI would want 11 GB for it."""
    split = make_dataset(images[:4]).split("train")
    absurd, read = claiming(split.read(1), 60000, 60000), split.read
    monkeypatch.setattr(split, "read", lambda sample: absurd if sample == 1 else read(sample))
    stream = training_stream(split, batches=1, size=4)
    finish, graph = Finish(NORMALIZATION, CPU, torch.float32), Graph("crop", 64)
    height, width = (int(split.samples[name][1]) for name in ("height", "width"))
    reason = f"does not decode (its header says 60000 x 60000 pixels, the sample table {height} x {width})"
    if config is STOP:
        with pytest.raises(UserError) as caught:
            produced(stream, graph, finish, config)
        assert reason in str(caught.value)
    else:
        ((sentence,),) = (batch.substitutions for batch in produced(stream, graph, finish, config))
        assert f"{reason}, substituted by sample 2" in sentence


def test_other_failures_are_not_of_memory() -> None:
    for words in (
        "nvImageCodec failure: '#8'",
        "CUDA error: an illegal memory access was encountered",
        "no such decoder",
    ):
        assert not failures.is_of_memory(RuntimeError(words))


class Unbuildable(Graph):
    def build(self, *arguments: Any, **options: Any) -> Any:
        if self.rung != "cpu":
            raise RuntimeError("no such decoder")
        return super().build(*arguments, **options)


def test_a_decoder_that_is_missing(make_dataset: Callable[..., Dataset], images: list[bytes]) -> None:
    with pytest.raises(UserError, match=r"decoding on the GPU .* failed \(no such decoder\)"):
        on_gpu(make_dataset(images).split("train"), Unbuildable("crop", 64, "gpu", NORMALIZATION), STOP)


class Tolerant(Graph):
    """A GPU's decoder that takes truncated images: it makes up what is missing."""

    whole: ClassVar[dict[bytes, bytes]] = {}

    def inputs(self, encoded: Sequence[bytes], views: Views) -> Inputs:
        if self.rung != "cpu":
            encoded = [self.whole.get(image, image) for image in encoded]
        return super().inputs(encoded, views)


def test_the_cpu_judges_truncated_images_everywhere(make_dataset: Callable[..., Dataset], images: list[bytes]) -> None:
    cut = images[5][: len(images[5]) // 3]
    Tolerant.whole[cut] = images[5]
    split = make_dataset([*images[:5], cut, *images[6:]]).split("train")
    expected = on_cpu(split, SUBSTITUTE)
    found = on_gpu(split, Tolerant("crop", 64, "gpu", NORMALIZATION), SUBSTITUTE)
    assert sum(len(batch.substitutions) for batch in expected) > 0
    for one, two in zip(expected, found, strict=True):
        assert one.substitutions == two.substitutions and torch.equal(one.images, two.images)
        np.testing.assert_array_equal(one.ids, two.ids)
    with pytest.raises(UserError, match=r"image0005 .* does not decode"):
        on_gpu(split, Tolerant("crop", 64, "gpu", NORMALIZATION), STOP)


def test_only_the_images_in_question_are_tried(
    make_dataset: Callable[..., Dataset], images: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A header that cannot be read costs none, a missing end one image; damage that shows only in DALI, its batch."""
    tried: list[int] = []
    original = failures.failures

    def counting(graph: Graph, encoded: Any, views: Any, device: Any, rows: Collection[int]) -> dict[int, str]:
        tried.append(len(rows))
        return original(graph, encoded, views, device, rows)

    monkeypatch.setattr(failures, "failures", counting)
    for damage, cost in ((b"\xff\xd8 nothing", 0), (images[0][: len(images[0]) // 3], 1), (damaged_png(), 4)):
        tried.clear()
        split = make_dataset([damage, *images[1:]], where=str(cost)).split("train")
        batches = on_cpu(split, SUBSTITUTE)
        replaced = sum(len(batch.substitutions) for batch in batches)
        assert replaced == 2  # two epochs
        assert sum(tried) == replaced * (cost + 1)  # and the substitute
