"""Whole runs killed, asked to stop, taken over, and continued. Reference: a run left alone."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pipeline.command import EXIT_PREEMPTED
from pipeline.config import Config, to_yaml
from pipeline.lease import FencedError, Lease
from pipeline.training.checkpoint import Checkpoints
from pipeline.world import World
from tests.conftest import ROOT
from tests.fleet import Fleet
from tests.launch.doors import wait_for
from tests.pipeline.small_runs import ITERATIONS, config_of, one_sentence, series, train_rank, weights
from tests.ranks import run_ranks


@pytest.mark.slow  # make chaos kills fifty times in CI
def test_killed_and_continued_is_bit_identical(undisturbed: Config, tmp_path: Path) -> None:
    """kill -9 of the whole job at random moments, started again with the same command on 2 processes."""
    config = replace(undisturbed, name="killed", runs=str(tmp_path))
    file = tmp_path / "config.yaml"
    file.write_text(to_yaml(config))
    command = [sys.executable, "launch/local.py", "--config", str(file), "--procs", "2"]
    generator = random.Random(int(os.environ.get("CHAOS_SEED", "0")))
    metrics = config.run_folder / "metrics.jsonl"
    for lines in sorted(generator.sample(range(1, 10), 2)):
        job = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL, start_new_session=True)
        while not metrics.exists() or metrics.read_text().count("\n") < lines:
            assert job.poll() is None, "the job ended before it could be killed"
            time.sleep(0.01)
        time.sleep(generator.uniform(0, 0.2))
        os.killpg(job.pid, signal.SIGKILL)
        job.wait()
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120)
    assert series(config) == series(undisturbed)
    assert weights(config) == weights(undisturbed)


def test_asked_to_stop_saves_and_goes_on(undisturbed: Config, tmp_path: Path) -> None:
    """SIGTERM: saved between two checkpoints, exit code 75, then the same bits; the metrics of the interval are whole."""
    config = replace(undisturbed, name="stopped", runs=str(tmp_path))
    file = tmp_path / "config.yaml"
    file.write_text(to_yaml(config))
    command = [sys.executable, "-m", "pipeline.train", "--config", str(file), "--json"]
    job = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    metrics = config.run_folder / "metrics.jsonl"
    while not metrics.exists() or metrics.read_text().count("\n") < 2:
        assert job.poll() is None
        time.sleep(0.005)
    job.send_signal(signal.SIGTERM)
    output, _ = job.communicate(timeout=60)
    assert job.returncode == EXIT_PREEMPTED and "stopped on request" in output
    assert json.loads(output.splitlines()[-1])["exit_code"] == EXIT_PREEMPTED
    newest = Checkpoints(config.run_folder / "checkpoints", config.checkpoint).newest()
    assert newest is not None and 10 <= newest.iteration < ITERATIONS
    assert run_ranks(4, train_rank, config) == [0] * 4
    assert series(config) == series(undisturbed)
    assert weights(config) == weights(undisturbed)


def linger_in_evaluation(rank: int, folder: Path) -> None:
    """The first block of each rank takes until the file `go` is there; the file `at` says that rank 0's has begun."""
    from pipeline.evaluation import protocols

    classify, first = protocols._classify, iter([True])

    def slowly(*arguments: Any) -> Any:
        if next(first, False):
            if rank == 0:
                (folder / "at").touch()
            wait_for((folder / "go").exists)
        return classify(*arguments)

    protocols._classify = slowly


def test_asked_to_stop_during_an_evaluation(undisturbed: Config, tmp_path: Path) -> None:
    """It is given up, the state before it saved; the continued run makes it, and nothing tells the two apart."""
    config = replace(undisturbed, name="stopped", runs=str(tmp_path))
    job = Fleet(config, 2, tmp_path / "logs", partial(linger_in_evaluation, folder=tmp_path))
    wait_for((tmp_path / "at").exists)
    os.kill(job.ranks[1].pid or 0, signal.SIGTERM)
    time.sleep(0.2)
    (tmp_path / "go").touch()
    assert job.wait(60) == [EXIT_PREEMPTED] * 2, job.said(0)
    newest = Checkpoints(config.run_folder / "checkpoints", config.checkpoint).newest()
    assert newest is not None and newest.iteration == 25
    assert {line[0] for line in series(config)} == {"train"}
    assert run_ranks(2, train_rank, config) == [0] * 2
    assert series(config) == series(undisturbed)
    assert weights(config) == weights(undisturbed)


def test_killed_after_the_last_checkpoint_it_still_says_that_it_is_finished(
    undisturbed: Config, tmp_path: Path
) -> None:
    config = replace(undisturbed, runs=str(tmp_path))
    shutil.copytree(undisturbed.run_folder, config.run_folder)
    told = config.run_folder / "tracking.json"
    reference = json.loads(told.read_text())
    assert reference["status"] == "FINISHED" and len(reference["artifacts"]) == 2
    told.write_text(json.dumps({**reference, "status": "RUNNING", "artifacts": reference["artifacts"][:1]}))
    assert run_ranks(2, train_rank, config) == [0] * 2
    now = json.loads(told.read_text())
    assert (now["status"], now["artifacts"]) == ("FINISHED", reference["artifacts"])
    assert series(config) == series(undisturbed)


def fail_when_taken_over(world: World, config: Config) -> str:
    """What tracking.json says after a rank of an attempt that was replaced meanwhile has failed of something else."""
    from pipeline.train import main
    from pipeline.trainer import Trainer

    def broken(trainer: Trainer, *batch: object) -> None:
        Lease(config.run_folder, {"SLURM_JOB_ID": "17", "SLURM_RESTART_COUNT": "1"})
        raise RuntimeError("connection reset by peer")

    os.environ |= {"SLURM_JOB_ID": "17"}
    Trainer.update = broken  # type: ignore[method-assign]
    with pytest.raises(FencedError):
        main(config)
    status: str = json.loads((config.run_folder / "tracking.json").read_text())["status"]
    return status


def test_the_failure_of_an_attempt_that_was_replaced_is_not_the_runs(digits: Path, tmp_path: Path) -> None:
    assert run_ranks(1, fail_when_taken_over, config_of(digits, tmp_path, "run")) == ["RUNNING"]


def test_second_writer_is_refused(undisturbed: Config, tmp_path: Path) -> None:
    config = replace(undisturbed, name="held", runs=str(tmp_path), iterations=100_000)
    file = tmp_path / "config.yaml"
    file.write_text(to_yaml(config))
    command = [sys.executable, "-m", "pipeline.train", "--config", str(file)]
    first = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not (config.run_folder / "metrics.jsonl").exists():
            assert first.poll() is None
            time.sleep(0.05)
        second = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert "another process is training" in one_sentence(second)
    finally:
        first.kill()
        first.wait()
