"""Whole runs that start from weights: on 1 and 2 processes, killed, their source gone. Reference: a run left alone."""

from __future__ import annotations

import json
import shutil
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from pipeline.base.layout import checkpoints_in
from pipeline.run.config import Config
from pipeline.run.options import load
from pipeline.training.checkpoint import CheckpointConfig, read_verified
from pipeline.training.optimizer import OptimizerConfig
from pipeline.training.schedule import ScheduleConfig
from tests.fleet import Fleet
from tests.helpers import wait_for
from tests.pipeline.small_runs import ONE_STAGE, config_of, hold_before, series, train_rank
from tests.ranks import run_ranks


def fine_tuning(data: Path, runs: Path, source: Path, name: str) -> Config:
    """A short run with all that fine-tuning has: a slower body, frozen BN, a moving average."""
    return replace(
        config_of(data, runs, name),
        init=str(source),
        iterations=8,
        augment=ONE_STAGE,
        freeze_bn=True,
        optimizer=OptimizerConfig(body_lr_factor=0.1),
        schedule=ScheduleConfig(kind="steps", steps=(6,)),
        checkpoint=CheckpointConfig(every=4),
    )


def last_state(config: Config) -> dict:
    iteration, path = checkpoints_in(config.run_folder / "checkpoints")[-1]
    assert iteration == config.iterations
    return read_verified(path).state


def assert_same_run(one: Config, other: Config) -> None:
    first, second = last_state(one), last_state(other)
    for key in ("model", "model_ema"):
        assert all(torch.equal(value, second[key][name]) for name, value in first[key].items()), key
    optimizers = (state["training"]["optimizer"]["state"] for state in (first, second))
    momenta = ([each["momentum_buffer"] for each in states.values()] for states in optimizers)
    assert all(map(torch.equal, *momenta))
    assert series(one) == series(other)


@pytest.mark.costly("three trainings: one process, two of them, and two that are killed")
def test_any_number_of_processes_and_a_kill_give_the_same_run(
    undisturbed: Config, upper_digits: Path, tmp_path: Path
) -> None:
    """The one that is killed goes on by its checkpoint alone: what it started from is gone by then."""
    source = shutil.copytree(undisturbed.run_folder, tmp_path / "source")
    alone = fine_tuning(upper_digits, tmp_path / "runs", source, "alone")
    assert run_ranks(1, train_rank, alone) == [0]
    _check_what_was_frozen(alone, source)
    _check_what_is_noted(alone, source)

    killed = replace(alone, name="killed")
    job = Fleet(killed, 2, tmp_path / "logs", partial(hold_before, folder=tmp_path, iterations=(6,)))
    wait_for((tmp_path / "at-6").exists, "the sixth update", 60)
    wait_for(lambda: checkpoints_in(killed.run_folder / "checkpoints"), "a checkpoint", 60)
    job.kill(signal.SIGKILL)
    job.wait(30)
    assert "starts from" in job.said(0) and "starts from" not in job.said(1)
    shutil.rmtree(source)
    assert run_ranks(2, train_rank, killed) == [0, 0]
    assert_same_run(killed, alone)


def _check_what_was_frozen(config: Config, source: Path) -> None:
    """BN is the source's, to the bit; the convolutions were trained."""
    began = read_verified(checkpoints_in(source / "checkpoints")[-1][1]).state["model"]
    state = last_state(config)
    assert "model_recomputed_bn" not in state and not (config.run_folder / "nonfinite.jsonl").exists()
    for name, value in state["model"].items():
        if "bn" in name and not name.endswith("num_batches_tracked"):
            assert torch.equal(value, began[name]), name
        elif "conv" in name:
            assert not torch.equal(value, began[name]), name


def _check_what_is_noted(config: Config, source: Path) -> None:
    """config.yaml has the hash; run.json and what MLflow is told say where the weights come from."""
    assert load(config.run_folder / "config.yaml").init_sha256 is not None
    facts = json.loads((config.run_folder / "run.json").read_text())["starts_from"]
    assert facts["init"] == str(source) and facts["iteration"] == 50
    assert facts["sha256"] == json.loads((source / "model/model.json").read_text())["weights_sha256"]
    told = json.loads((config.run_folder / "tracking.json").read_text())
    assert told["tags"]["starts_from"].startswith(
        f"{source} (iteration 50, final weights, SHA-256 {facts['sha256'][:16]}"
    )
    assert told["params"]["init"] == str(source)


@pytest.mark.slow
def test_fine_tuned_beats_from_scratch(tmp_path: Path) -> None:
    """At equal updates; the bench prints the table of docs/fine-tuning.md, three seeds of longer trainings."""
    from bench.fine_tuning import measure, parse

    ways = ["from scratch", "fine-tuned"]
    options = parse(["--seeds", "1", "--pretraining", "150", "--updates", "40", "--ways", *ways])
    errors = measure(tmp_path, options)
    (scratch,), (tuned,) = (errors[way][40] for way in ways)
    assert tuned < scratch
