"""The command `pipeline.tune`: it measures, stores what it found for this machine, and loaders find it."""

from __future__ import annotations

import json
import os
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from pipeline import tune
from pipeline.base.command import UserError
from pipeline.base.cores import available_cores
from pipeline.command_lines.tuning import SECONDS
from pipeline.data import tuned
from pipeline.data.augment import AugmentConfig
from pipeline.data.batch import LoaderConfig
from pipeline.data.decoders import RUNGS
from pipeline.data.probe import Probe
from pipeline.data.tuned import Machine, Tuned
from pipeline.run.config import Config
from pipeline.tune import Speed, hardware_gain, main, space, working_rungs
from tests.images import encode, photograph
from tests.patience import limit
from tests.pipeline.data.emulated_decoders import Emulated
from tests.pipeline.data.small_datasets import statistics_of_size, write_dataset
from tests.ranks import ALONE

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tuned, "FILE", tmp_path / "loader.yaml")
    return tuned.FILE


@pytest.mark.costly("measures a loader for three seconds with every core")
def test_what_it_finds_is_stored_and_taken(digits: Path, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cores = os.sched_getaffinity(0)
    assert main([str(digits), "--seconds", "3", "--device", "cpu", "--batch", "4", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    found = tuned.find(Machine.of(CPU, 1))
    assert found is not None and found.queues.threads >= 1 and found.decode_on == "cpu"
    assert figures["images_per_second"] == found.images_per_second > 0 and figures["file"] == str(file)
    assert tuned.with_queues(LoaderConfig(), ALONE).queues == found.queues
    assert os.sched_getaffinity(0) == cores


def test_a_split_that_is_kept_in_memory_is_not_tuned(digits: Path, tmp_path: Path, file: Path) -> None:
    recipe = tmp_path / "cifar.yaml"
    recipe.write_text("augment: {kind: pad-crop, crop: 48, pad: 4}\n")
    with pytest.raises(UserError, match="kept in memory"):
        main([str(digits), "--config", str(recipe), "--device", "cpu"])
    assert not file.exists()


def test_the_space_starts_with_the_built_in_values_and_keeps_the_promise() -> None:
    start, axes = space(["cpu"], 16)
    built_in = LoaderConfig(threads=16).queues
    assert {key: start[key] for key in ("threads", "read_threads", "read_ahead", "decode_ahead", "ready")} == vars(
        built_in
    )
    for axis in axes:
        assert {key: start[key] for key in axis[0]} in axis
    first, ways = space(RUNGS, 8)
    assert first["decode_on"] == "gpu" and "hw_decoder_load" not in first
    assert ways[0] == [{"decode_on": rung} for rung in RUNGS]


@pytest.mark.parametrize(("factor", "advised"), [(1.5, True), (1.01, False), (0.6, False)])
def test_the_hardware_decoder_is_advised_and_not_chosen(
    factor: float, advised: bool, file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def speed(setting: Mapping[str, Any]) -> float:
        assert setting["decode_on"] == "gpu"
        return 1000 * (factor if setting.get("hw_decoder_load") == 1 else 1.0)

    monkeypatch.setattr(tune, "speed_of", lambda *_: speed)
    monkeypatch.setattr(tune, "working_rungs", lambda *_: ("gpu",))
    assert main(["data", "--device", "cpu", "--seconds", "0.1", "--json"]) == 0
    found, said = tuned.find(Machine.of(CPU, 1)), capsys.readouterr().out
    assert found is not None
    assert ("set loader.hw_decoder_load to 1" in said and f"{factor:.2f} times as fast" in said) == advised
    assert json.loads(said.splitlines()[-1])["hardware_gain"] == pytest.approx(factor)


def test_no_gain_where_the_cpu_decodes_or_the_hardware_fails(capsys: pytest.CaptureFixture[str]) -> None:
    assert hardware_gain(Mock(), {"decode_on": "cpu", "hw_decoder_load": 0.0}) is None
    assert hardware_gain(Mock(side_effect=UserError("it failed")), {"decode_on": "gpu", "hw_decoder_load": 0.0}) is None
    assert "left out: it failed" in capsys.readouterr().err


def test_rungs_that_fail_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = Config(augment=AugmentConfig(short_side=(72, 96), crop=64))
    split = write_dataset(tmp_path / "data", [encode(photograph(i, 90, 120)) for i in range(4)]).split("train")
    dataset = Mock(statistics=statistics_of_size(64))
    speed = Speed(split, dataset, config, torch.device("cuda", 0), rows=8, cpu_rows=8)
    assert working_rungs(speed, Probe(limit(60), Emulated({"gpu": "crash"}))) == ("gpu-whole", "cpu")
    assert "gpu is left out: killed by SIGSEGV" in capsys.readouterr().err
    with pytest.raises(UserError, match="no decoder works"):
        working_rungs(speed, Probe(limit(60), Emulated(dict.fromkeys(RUNGS, "crash"))))


@dataclass
class Clock:
    """A clock that moves where it is told to."""

    now: float = 0.0

    def monotonic(self) -> float:
        return self.now


@dataclass
class SyntheticGpu:
    """Measures loaders of a machine with a GPU and 16 cores, in time of its clock: a second to start and half a second.

    best: the fastest way, by 1.3. threads: the best number; half and twice as many give 0.7 of it.
    """

    clock: Clock
    best: str
    threads: int
    random: np.random.Generator
    START, SLICE, NOISE, PROBING = 1.0, 0.5, 0.02, 20.0

    def __call__(self, setting: Mapping[str, Any]) -> float:
        self.clock.now += self.START + self.SLICE
        hardware = 0.7 if setting.get("hw_decoder_load") and setting["decode_on"] != "cpu" else 1.0
        way = (1.3 if setting["decode_on"] == self.best else 1.0) * hardware
        threads = 0.7 ** (np.log2(setting["threads"] / self.threads) ** 2)
        return float(5000 * way * threads * np.exp(self.NOISE * self.random.standard_normal()))

    def probed(self, *_: object) -> tuple[str, ...]:
        self.clock.now += self.PROBING
        return RUNGS


@pytest.mark.parametrize("threads", [4, 8, 24])
@pytest.mark.parametrize("best", RUNGS)
def test_a_minute_finds_the_way_and_the_threads_of_a_gpu(
    best: str, threads: int, file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock()
    gpu = SyntheticGpu(clock, best, threads, np.random.default_rng(threads))
    machine = Machine(device="NVIDIA H100 80GB HBM3", cores=16)
    ended: list[float] = []

    def store(best: Tuned) -> Path:
        ended.append(clock.now)
        return original(best)

    original = tuned.store
    monkeypatch.setattr(tuned, "store", store)
    monkeypatch.setattr(tune, "time", clock)
    monkeypatch.setattr(tune, "speed_of", lambda *_: gpu)
    monkeypatch.setattr(tune, "working_rungs", gpu.probed)
    monkeypatch.setattr(Machine, "of", lambda *_: machine)
    assert main(["data", "--device", "cpu"]) == 0
    found = tuned.find(machine)
    assert found is not None and (found.decode_on, found.queues.threads) == (best, threads)
    advice = 2 * tune.HARDWARE_TURNS if best != "cpu" else 0  # measurements with the hardware decoder, after the search
    assert ended[0] <= gpu.PROBING + SECONDS + (2 + advice) * (gpu.START + gpu.SLICE)


def test_the_cpu_decodes_smaller_batches(digits: Path) -> None:
    options = Namespace(dataset=str(digits), config=None, batch=None)
    speed = tune.speed_of(options, CPU, ranks=1)
    assert (speed.rows, speed.cpu_rows) == (256, min(256, tune.CORE_ROWS * available_cores()))
    options.batch = 512
    speed = tune.speed_of(options, CPU, ranks=1)
    assert (speed.rows, speed.cpu_rows) == (512, 512)


def test_a_gpu_of_one_process_is_refused(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    monkeypatch.setattr(tune, "is_exclusive", lambda _: True)
    with pytest.raises(UserError, match="EXCLUSIVE_PROCESS"):
        main(["data", "--device", "cpu"])
    assert not file.exists()


def test_ranks_share_the_cores() -> None:
    assert Machine.of(CPU, 1).cores == available_cores() and Machine.of(CPU, 10**6).cores == 1
