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

from pipeline.base.attempt import attempt_variables
from pipeline.base.exits import EXIT_PREEMPTED
from pipeline.base.lease import FencedError, Lease
from pipeline.process.world import World
from pipeline.run.config import Config, to_yaml
from pipeline.run.options import load
from pipeline.training.checkpoint import Checkpoints
from tests.fleet import Fleet
from tests.helpers import ROOT, wait_for
from tests.patience import limit
from tests.pipeline.small_runs import config_of, hold_before, note_request, refusal, series, train_rank, weights
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
        wait_for(lambda lines=lines: metrics.exists() and metrics.read_text().count("\n") >= lines, "metrics", 120)
        time.sleep(generator.uniform(0, 0.2))
        os.killpg(job.pid, signal.SIGKILL)
        job.wait()
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=limit(200))
    assert series(config) == series(undisturbed)
    assert weights(config) == weights(undisturbed)


@pytest.mark.slow
def test_a_run_of_epochs_goes_on_with_the_same_command(undisturbed: Config, tmp_path: Path) -> None:
    """Killed on 2 processes and continued on 1, it ends as the run of as many iterations does, left alone."""
    base = replace(
        undisturbed, runs=str(tmp_path), iterations=400, evaluation=replace(undisturbed.evaluation, every=100)
    )
    file = tmp_path / "config.yaml"
    file.write_text(to_yaml(base))
    command = [sys.executable, "launch/local.py", "--config", str(file), "--epochs", "0.5"]
    alone, killed = ["--name", "alone", "--procs", "1"], ["--name", "killed", "--procs", "2"]
    subprocess.run([*command, *alone], cwd=ROOT, check=True, capture_output=True, timeout=limit(200))
    metrics = tmp_path / "killed/metrics.jsonl"
    job = subprocess.Popen([*command, *killed], cwd=ROOT, stderr=subprocess.DEVNULL, start_new_session=True)
    wait_for(lambda: metrics.exists() and metrics.read_text().count("\n") >= 2, "metrics", 120)
    os.killpg(job.pid, signal.SIGKILL)
    job.wait()
    subprocess.run(
        [*command, *killed[:2], "--procs", "1"], cwd=ROOT, check=True, capture_output=True, timeout=limit(200)
    )
    whole, parts = (load(tmp_path / name / "config.yaml") for name in ("alone", "killed"))
    assert series(parts) == series(whole) and weights(parts) == weights(whole)
    assert parts.iterations == 23  # 0.5 x 1442 / 32 = 22.5


def become_the_command_and_wait(rank: int, config: Config, folder: Path) -> None:
    """`python -m pipeline.train --json` on this config; it waits before iteration 13."""
    from pipeline import train

    hold_before(rank, folder, (13,))
    note_request(rank, folder)
    file, train_config = folder / "config.yaml", train.train
    file.write_text(to_yaml(config))

    def command(_: Config) -> int:
        train.train = train_config
        return train.main(["--config", str(file), "--json"])

    train.train = command  # type: ignore[assignment]


@pytest.mark.costly("a whole training, in two pieces, beside one left alone")
def test_asked_to_stop_saves_and_goes_on(undisturbed: Config, tmp_path: Path) -> None:
    """SIGTERM: saved between two checkpoints, exit code 75, then the same bits; the metrics of the interval are whole."""
    config = replace(undisturbed, name="stopped", runs=str(tmp_path))
    job = Fleet(config, 1, tmp_path / "logs", partial(become_the_command_and_wait, config=config, folder=tmp_path))
    wait_for((tmp_path / "at-13").exists, "iteration 13")
    job.kill(signal.SIGTERM)
    wait_for((tmp_path / "asked-0").exists, "the request")
    (tmp_path / "go-13").touch()
    assert job.wait(60) == [EXIT_PREEMPTED], job.said(0)
    assert "stopped on request" in job.said(0)
    assert json.loads(job.said(0).splitlines()[-1])["exit_code"] == EXIT_PREEMPTED
    newest = Checkpoints(config.run_folder / "checkpoints", config.checkpoint).newest()
    assert newest is not None and newest.iteration == 14
    assert run_ranks(4, train_rank, config) == [0] * 4
    assert series(config) == series(undisturbed)
    assert weights(config) == weights(undisturbed)


def linger_in_evaluation(rank: int, folder: Path) -> None:
    """The first block of each rank takes until the file `go` is there; the file `at` says that rank 0's has begun."""
    from pipeline.evaluation import scoring as protocols

    note_request(rank, folder)
    classify, first = protocols._classify, iter([True])

    def slowly(*arguments: Any) -> Any:
        if next(first, False):
            if rank == 0:
                (folder / "at").touch()
            wait_for((folder / "go").exists, "leave to go on")
        return classify(*arguments)

    protocols._classify = slowly


@pytest.mark.costly("a whole training, in two pieces, beside one left alone")
def test_asked_to_stop_during_an_evaluation(undisturbed: Config, tmp_path: Path) -> None:
    """It is given up, the state before it saved; the continued run makes it, and nothing tells the two apart."""
    config = replace(undisturbed, name="stopped", runs=str(tmp_path))
    job = Fleet(config, 2, tmp_path / "logs", partial(linger_in_evaluation, folder=tmp_path))
    wait_for((tmp_path / "at").exists, "the evaluation")
    os.kill(job.ranks[1].pid or 0, signal.SIGTERM)
    wait_for((tmp_path / "asked-1").exists, "the request")
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
    from pipeline.loop.trainer import Trainer
    from pipeline.train import train

    def broken(trainer: Trainer, *batch: object) -> None:
        Lease(config.run_folder, attempt_variables("job-17", 1, {}))
        raise RuntimeError("connection reset by peer")

    os.environ |= attempt_variables("job-17", 0, {})
    Trainer.update = broken  # type: ignore[method-assign]
    with pytest.raises(FencedError):
        train(config)
    status: str = json.loads((config.run_folder / "tracking.json").read_text())["status"]
    return status


def test_the_failure_of_an_attempt_that_was_replaced_is_not_the_runs(digits: Path, tmp_path: Path) -> None:
    assert run_ranks(1, fail_when_taken_over, config_of(digits, tmp_path, "run")) == ["RUNNING"]


def test_second_writer_is_refused(digits: Path, tmp_path: Path) -> None:
    config = config_of(digits, tmp_path, "held")
    config.run_folder.mkdir()
    held = Lease(config.run_folder, {})
    (sentence,) = run_ranks(1, refusal, config)
    assert sentence.startswith(f"another process is training in {config.run_folder}")
    assert not (config.run_folder / "metrics.jsonl").exists()
    held.release()


def test_a_finished_run_says_so_and_stays_as_it_is(undisturbed: Config, tmp_path: Path) -> None:
    """The same command again, on another number of processes."""
    config = replace(undisturbed, runs=str(tmp_path))
    shutil.copytree(undisturbed.run_folder, config.run_folder)
    job = Fleet(config, 2, tmp_path / "logs")
    assert job.wait(60) == [0, 0], job.said(0)
    assert f"{config.run_name} was finished already" in job.said(0)
    for path in (undisturbed.run_folder / "checkpoints").iterdir():
        assert (config.run_folder / "checkpoints" / path.name).read_bytes() == path.read_bytes()
    assert (config.run_folder / "metrics.jsonl").read_bytes() == (undisturbed.run_folder / "metrics.jsonl").read_bytes()
