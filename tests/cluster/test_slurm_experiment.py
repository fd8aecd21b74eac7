"""python -m pipeline.experiment --launcher slurm on a real SLURM: trainings, their tests behind them, the average last."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.base.exits import EXIT_USER_ERROR
from tests.cluster.conftest import Trainings
from tests.helpers import wait_for
from tests.launch.launchers import environment, launcher_of

pytestmark = pytest.mark.cluster

ENSEMBLE = """
title: Two nets on digits
place: Table 0
config: demo.yaml
overrides: {tracking.mlflow: false, loader.threads: 1, threads: 1, evaluation.every: 400}
measure: ensemble
protocols: [center]
rows:
  - {label: both, nets: [{arch: plain8}, {arch: resnet8}]}
"""


def experiment(
    trainings: Trainings, digits: Path, *options: str, runs: str = "runs"
) -> subprocess.CompletedProcess[str]:
    file = trainings.folder / "both.yaml"
    file.write_text(ENSEMBLE)
    words = [sys.executable, "-m", "pipeline.experiment", str(file), "--data", str(digits), "--runs", runs]
    words += ["--scale", "0.02", "--launcher", "slurm", "--json", "--", "--site", str(trainings.site), *options]
    return trainings.cluster.run(words, cwd=trainings.folder, extra=environment(), timeout=600, check=False)


def submitted(trainings: Trainings, digits: Path, *options: str) -> dict[str, Any]:
    done = experiment(trainings, digits, *options)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.timeout(2400)
def test_jobs_follow_one_another_and_are_not_submitted_twice(trainings: Trainings, digits: Path) -> None:
    # Nothing starts while both submissions are made: which jobs are still there must not depend on this machine's speed.
    trainings.cluster.run(["scontrol", "update", "PartitionName=debug", "State=DOWN"])
    try:
        first = submitted(trainings, digits, "--nodes", "2")
        whats = [one["what"] for one in first["submitted"]]
        assert whats == ["train", "center", "train", "center", "average"]
        jobs = [one["job"] for one in first["submitted"]]
        assert first["rows"][0]["figures"] == {}
        again = submitted(trainings, digits, "--nodes", "2")
        assert {one["job"] for one in again["submitted"]} == set(jobs)
    finally:
        trainings.cluster.run(["scontrol", "update", "PartitionName=debug", "State=UP"])
    wait_for(lambda: trainings.cluster.state(jobs[-1]) == "COMPLETED", "the average", 1500)
    done = submitted(trainings, digits)
    assert (done["submitted"], done["rows"][0]["state"]) == ([], "finished")
    runs = trainings.folder / "runs"
    written = json.loads((runs / "ensemble-both-scale0.02" / "ensemble.json").read_text())
    assert done["rows"][0]["figures"]["top1_error"] == written["protocols"]["center"]["ensemble"]["top1_error"]
    assert launcher_of(runs / "resnet8-seed0-scale0.02") == ("slurm", 2)


def test_sbatch_words_reach_the_user(trainings: Trainings, digits: Path) -> None:
    done = experiment(trainings, digits, "--partition", "gpux", runs="refused")
    assert done.returncode == EXIT_USER_ERROR
    first, *sentences = done.stderr.splitlines()
    assert first.startswith("reading the runs of ") and len(sentences) == 1
    assert sentences[0].startswith("error: ") and "there is no partition 'gpux'" in sentences[0]
