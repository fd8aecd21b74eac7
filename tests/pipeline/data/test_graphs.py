from __future__ import annotations

from unittest.mock import MagicMock

import numpy as np
import pytest
import torch

from pipeline.base.command import UserError
from pipeline.data import graphs
from pipeline.data.batch import LoaderConfig
from pipeline.data.decoders import RUNGS, Rung, decoder_version, lower_rungs
from pipeline.data.graphs import Graph, Normalization, crop_places, pad_and_crop, pad_and_gather
from tests.pipeline.data.small_datasets import statistics_of_size

RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize("std", [None, (58.4, 57.1, 57.4)])
@pytest.mark.parametrize("shape", [(6, 32, 32, 3), (4, 5, 32, 32, 3), (3, 20, 45, 3)])
def test_both_normalizations_are_the_formula_to_the_bit(shape: tuple[int, ...], std: tuple[float, ...] | None) -> None:
    side = 32 if shape[-3:-1] == (32, 32) else None
    normalization = Normalization.of(statistics_of_size(32), side, std)
    images = RANDOM.integers(0, 256, shape, np.uint8)
    colour = RANDOM.normal(0, 5, (shape[0], 3)).astype(np.float32)
    shift = colour.reshape(-1, *(1,) * (len(shape) - 2), 3)
    expected = (images.astype(np.float32) - normalization.mean) + shift
    expected = expected if std is None else expected / np.array(std, np.float32)
    result = np.empty(shape, np.float32)
    normalization.on_cpu(images, colour, result)
    np.testing.assert_array_equal(result, expected)
    on_device = normalization.to(torch.device("cpu"))(torch.from_numpy(images), torch.from_numpy(colour))
    np.testing.assert_array_equal(on_device, expected)


def test_threads_cost_memory_where_a_gpu_decodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a large host's cores DALI gets 32 threads there, and all elsewhere."""

    def threads_of(rung: Rung, device: str, threads: int) -> int:
        pipeline = MagicMock()
        monkeypatch.setattr(graphs, "Pipeline", pipeline)
        Graph("crop", 64, rung).build(lambda: (), 8, torch.device(device), threads, 2)
        return int(pipeline.call_args.kwargs["num_threads"])

    monkeypatch.setattr(Graph, "_operators", lambda *_: None)
    found = [threads_of(rung, "cuda:0", threads) for rung in RUNGS for threads in (8, 128)]
    assert found == [8, 32, 8, 32, 8, 128]
    assert threads_of("gpu", "cpu", 128) == 128


def test_the_mean_image_only_where_it_fits() -> None:
    statistics = statistics_of_size(32)
    assert Normalization.of(statistics, 32).mean.shape == (32, 32, 3)
    for side in (None, 31, 224):
        np.testing.assert_allclose(
            Normalization.of(statistics, side).mean, statistics.mean_image.mean(axis=(0, 1)), rtol=1e-5
        )


def test_pad_and_crop_at_the_corners() -> None:
    image = torch.arange(1, 17, dtype=torch.float32).reshape(1, 4, 4, 1).repeat(4, 1, 1, 3)
    starts = np.array([[0, 0], [2, 2], [4, 4], [2, 2]])
    result = pad_and_crop(image, starts, np.array([False, False, False, True]), pad=2)[..., 0]
    assert result[0, 2:, 2:].tolist() == [[1, 2], [5, 6]] and result[0].sum() == 14
    assert torch.equal(result[1], image[0, ..., 0])
    assert result[2, :2, :2].tolist() == [[11, 12], [15, 16]] and result[2].sum() == 54
    assert torch.equal(result[3], image[0, ..., 0].flip(1))


def test_the_gather_is_the_crop() -> None:
    images = torch.from_numpy(RANDOM.normal(size=(20, 8, 8, 3)).astype(np.float32))
    starts, mirror = RANDOM.integers(0, 7, (20, 2)), RANDOM.random(20) < 0.5
    rows, columns = (torch.from_numpy(np.ascontiguousarray(places)) for places in crop_places(starts, mirror, 8))
    assert torch.equal(pad_and_gather(images, rows, columns, pad=3), pad_and_crop(images, starts, mirror, pad=3))


def test_settings_that_cannot_work_are_refused() -> None:
    for options in ({"threads": 0}, {"threads": -1}, {"read_threads": 0}, {"ready": 0}):
        with pytest.raises(UserError, match="must be at least 1"):
            LoaderConfig(**options)
    with pytest.raises(UserError, match="hw_decoder_load"):
        LoaderConfig(hw_decoder_load=1.5)


def test_the_rung_of_a_device() -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda", 1)
    for decode_on in ("gpu", "gpu-whole"):
        with pytest.raises(UserError, match=f"decode_on is {decode_on}, but the batches go to the CPU"):
            LoaderConfig(decode_on=decode_on).rung(cpu)
    assert [LoaderConfig(decode_on=one).rung(cuda) for one in ("auto", "gpu", "gpu-whole", "cpu")] == [
        "gpu", "gpu", "gpu-whole", "cpu"
    ]  # fmt: skip
    assert LoaderConfig().rung(cpu) == LoaderConfig(decode_on="cpu").rung(cpu) == "cpu"
    assert lower_rungs("gpu") == ("gpu-whole", "cpu") and lower_rungs("cpu") == ()


def test_the_facts_of_decoding_and_the_share_that_is_warned_of() -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda", 1)
    version = decoder_version()
    assert version[0].isdigit()
    assert LoaderConfig().decoding_facts(cpu) == {"decode_on": "cpu", "hw_decoder_load": None, "nvimgcodec": version}
    assert LoaderConfig().decoding_facts(cuda) == {"decode_on": "gpu", "hw_decoder_load": 0.0, "nvimgcodec": version}
    assert [LoaderConfig(hw_decoder_load=load).decoding_warning(cuda) for load in (None, 0)] == [None, None]
    for load, rare in ((0.65, False), (1, True)):
        shared = LoaderConfig(hw_decoder_load=load)
        assert shared.decoding_warning(cpu) is None
        sentence = shared.decoding_warning(cuda)
        assert sentence is not None and f"hw_decoder_load is {load}:" in sentence and "number of ranks" in sentence
        assert ("rare" in sentence) == rare
