"""Requests to stop that come before the first iteration: exit code 75, on every rank, whatever it was at. Real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from pipeline.command import EXIT_PREEMPTED
from pipeline.training.checkpoint import Checkpoints
from tests.conftest import ROOT
from tests.fleet import Fleet
from tests.launch.doors import environment, wait_for
from tests.pipeline.small_runs import config_of


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGUSR2, marks=pytest.mark.slow)])
def test_during_the_imports(tmp_path: Path, number: signal.Signals) -> None:
    command = [sys.executable, "-m", "pipeline.train", "--data", "nowhere", "--runs", str(tmp_path)]
    job = subprocess.Popen(command, cwd=ROOT, env=environment(), stderr=subprocess.PIPE, text=True)
    wait_for(lambda: "libtorch_cpu" in Path(f"/proc/{job.pid}/maps").read_text())
    job.send_signal(number)
    _, err = job.communicate(timeout=60)
    assert job.returncode == EXIT_PREEMPTED, err
    assert err == "ended on request: the same command goes on where it was\n"
    assert not list(tmp_path.iterdir())


def wait_less(rank: int, told: Path) -> None:
    from pipeline import world
    from pipeline.training import preemption

    preemption.MEETING_SECONDS = 1.0
    init = world.dist.init_process_group

    def announced(*arguments: object, **options: object) -> None:
        told.touch()
        init(*arguments, **options)

    world.dist.init_process_group = announced


def test_while_waiting_for_ranks_that_do_not_come(digits: Path, tmp_path: Path) -> None:
    """The other rank has ended already: machine code waits for it, for ten minutes."""
    told = tmp_path / "told"
    job = Fleet(config_of(digits, tmp_path, "run"), 2, tmp_path / "logs", partial(wait_less, told=told))
    job.ranks[1].kill()
    wait_for(told.exists)
    started = time.monotonic()
    os.kill(job.ranks[0].pid, signal.SIGTERM)
    job.ranks[0].join(30)
    assert job.ranks[0].exitcode == EXIT_PREEMPTED, job.said(0)
    assert time.monotonic() - started < 10


def open_slowly(rank: int, folder: Path) -> None:
    from pipeline import train

    opening = train.open_dataset

    def slow(place: str) -> object:
        (folder / f"opening-{rank}").touch()
        end = time.monotonic() + 60
        while not (folder / "go").exists() and time.monotonic() < end:
            time.sleep(0.01)
        return opening(place)

    train.open_dataset = slow


def test_while_the_dataset_is_opened(digits: Path, tmp_path: Path) -> None:
    """One rank of two is told; both have met, so both stop, at an iteration."""
    config = config_of(digits, tmp_path, "run")
    job = Fleet(config, 2, tmp_path / "logs", partial(open_slowly, folder=tmp_path))
    wait_for(lambda: len(list(tmp_path.glob("opening-*"))) == 2)
    os.kill(job.ranks[1].pid, signal.SIGTERM)
    (tmp_path / "go").touch()
    assert job.wait(60) == [EXIT_PREEMPTED] * 2, job.said(0)
    newest = Checkpoints(config.run_folder / "checkpoints", config.checkpoint).newest()
    assert newest is not None and newest.iteration <= 2


def copy_slowly(rank: int, told: Path) -> None:
    from pipeline.data import staging

    def slow(*arguments: object) -> None:
        told.touch()
        time.sleep(60)

    staging._copy = slow


def test_while_shards_are_copied(digits: Path, tmp_path: Path) -> None:
    """Which takes hours for ImageNet, and changes nothing that had to be saved."""
    config = config_of(digits, tmp_path, "run")
    config = replace(config, loader=replace(config.loader, stage_to=str(tmp_path / "disk")))
    job = Fleet(config, 2, tmp_path / "logs", partial(copy_slowly, told=tmp_path / "told"))
    wait_for((tmp_path / "told").exists)
    job.kill(signal.SIGTERM)
    assert job.wait(20) == [EXIT_PREEMPTED] * 2, job.said(0)
