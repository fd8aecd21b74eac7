"""A disk that fills up under a training, and has room again later: a real one of 6 MB."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from pipeline.run.config import Config
from pipeline.training.checkpoint import Checkpoints
from tests.disks import small_disk
from tests.fleet import Fleet
from tests.helpers import wait_for
from tests.pipeline.small_runs import config_of, hold_before, series, weights


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", 6) as disk:
        yield disk


def saved(config: Config) -> int:
    newest = Checkpoints(config.run_folder / "checkpoints", config.checkpoint).newest()
    assert newest is not None
    return newest.iteration


def fill(disk: Path) -> Path:
    filler = disk / "filler"
    with pytest.raises(OSError, match="No space left"), open(filler, "wb", buffering=0) as file:
        while True:
            file.write(bytes(1 << 12))
    return filler


@pytest.mark.slow  # quick ones with a full disk: test_checkpoint.py
def test_training_goes_on_and_saves_again_when_there_is_room(digits: Path, tmp_path: Path, disk: Path) -> None:
    reference = config_of(digits, tmp_path / "runs", "reference")
    job = Fleet(reference, 1, tmp_path / "logs")
    assert job.wait(120) == [0], job.said(0)

    config = replace(reference, runs=str(disk), name="run")
    job = Fleet(config, 2, tmp_path / "logs-small", partial(hold_before, folder=tmp_path, iterations=(15, 35)))
    wait_for((tmp_path / "at-15").exists, "iteration 15", 120)
    wait_for(lambda: saved(config) == 10, "checkpoint 10")
    filler = fill(disk)
    (tmp_path / "go-15").touch()
    wait_for((tmp_path / "at-35").exists, "iteration 35", 120)
    assert saved(config) == 10  # the last good one stays
    filler.unlink()
    (tmp_path / "go-35").touch()
    assert job.wait(120) == [0, 0], job.said(0)
    said = job.said(0)
    for iteration in (20, 30):
        assert f"warning: checkpoint {iteration} was not saved" in said and "the disk is full" in said
    assert "checkpoint 40 was not saved" not in said
    assert series(config) == series(reference)  # lines that waited in memory among them
    assert weights(config) == weights(reference)
