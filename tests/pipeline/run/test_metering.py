"""Which ranks start a sampler, what the run folder then holds, and that no sampler outlives a run."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.base.command import UserError
from pipeline.base.layout import SYSTEM, system_files
from pipeline.meter import process
from pipeline.meter.records import About, read_sums
from pipeline.process.world import Machine, World
from pipeline.run.config import Config
from pipeline.run.metering import metered
from pipeline.run.summary import summary
from pipeline.tracking import TrackingConfig
from tests.patience import limit
from tests.pipeline.meter.test_sampler import sampler_of
from tests.pipeline.meter.test_usage import write
from tests.ranks import ALONE


def config_of(folder: Path, every: float | None) -> Config:
    config = Config(runs=str(folder), name="a")
    config.run_folder.mkdir()
    return replace(config, tracking=replace(config.tracking, system_every=every))


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine the sampler needs more than its 2 s to write its first and last line."""
    monkeypatch.setattr(process, "CLOSE_SECONDS", limit(30.0))


def sums_of(config: Config, world: World) -> list[tuple[int, int, int, float]]:
    with metered(config, world, 3):
        pass
    found = read_sums(config.run_folder)
    return [(about.rank, about.attempt, about.gpus, about.cpu_share) for about, _ in found]


def test_the_lowest_rank_of_a_machine_samples(tmp_path: Path) -> None:
    config, cores = config_of(tmp_path, 10.0), os.cpu_count() or 1
    machine = Machine(ranks=(5, 9), gpus=("GPU-a", "GPU-b"), cores=max(1, cores // 2))
    assert sums_of(config, replace(ALONE, rank=9, size=12, machine=machine)) == []
    share = max(1, cores // 2) / cores
    assert sums_of(config, replace(ALONE, rank=5, size=12, machine=machine)) == [(5, 3, 2, share)]
    assert sampler_of(config.run_folder) == set()


@pytest.mark.parametrize("every", [0, None])
def test_system_metrics_can_be_switched_off(tmp_path: Path, every: float | None) -> None:
    config = config_of(tmp_path, every)
    assert sums_of(config, ALONE) == [] and not (config.run_folder / SYSTEM).exists()
    assert system_files(config.run_folder) == []


@pytest.mark.parametrize("every", [-1.0, 0.01, float("nan")])
def test_intervals_that_would_keep_a_core_busy(every: float) -> None:
    with pytest.raises(UserError, match="give at least"):
        TrackingConfig(system_every=every)


def test_the_closing_line_of_json_has_the_energy(tmp_path: Path) -> None:
    config = config_of(tmp_path, None)
    about = About(host="a", rank=0, attempt=1, gpus=1, costs={"co2_g_per_kwh": 400.0})
    assert "energy_kwh" not in summary(config, 0)
    write(config.run_folder, about, (60, {"gpu_0": 1.8e6}))
    assert {"energy_kwh": 0.5, "co2_g": 200.0}.items() <= summary(config, 0).items()
    assert "cost" not in summary(config, 0)


def test_a_training_has_its_machine_sampled(undisturbed: Config) -> None:
    assert [(about.rank, about.attempt) for about, _ in read_sums(undisturbed.run_folder)] == [(0, 1)]
    assert sampler_of(undisturbed.run_folder) == set()
