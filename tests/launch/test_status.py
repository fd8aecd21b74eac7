"""launch/status.py: when a run is over, by what SLURM (a stand-in that says what it is told to) and the run folder say."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from launch import status
from pipeline.base.lease import Lease
from pipeline.meter.records import About
from pipeline.process.notes import FileBoard, Note
from pipeline.run.config import Config, to_yaml
from tests.pipeline.meter.test_usage import write


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run folder that job 7 was submitted from and that has not begun; the job's state stands in PATH's file `state`."""
    commands, folder = tmp_path / "bin", tmp_path / "runs" / "a"
    commands.mkdir()
    for name in ("sbatch", "srun", "scontrol"):
        (commands / name).write_text(f'#!/bin/sh\necho "JobId=7 $(cat {commands}/state) Restarts=0"\n')
        (commands / name).chmod(0o755)
    (commands / "state").write_text("JobState=PENDING Reason=Resources")
    monkeypatch.setenv("PATH", f"{commands}:/usr/bin:/bin")
    (folder / "slurm").mkdir(parents=True)
    (folder / "slurm" / "7_submission.sh").touch()
    return folder


def test_a_job_that_waits_is_not_over(run: Path) -> None:
    """It has 0 of 0 iterations, as long as there is no config in the run folder."""
    found = status.read(run)
    assert found.jobs == {"7": "PENDING (Resources)"} and not found.over
    (run.parents[1] / "bin" / "state").write_text("JobState=COMPLETED Reason=None")
    assert status.read(run).over
    assert replace(found, iteration=8, iterations=8).over and not replace(found, iteration=7, iterations=8).over


def test_what_was_asked_of_sbatch_is_shown(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "slurm" / "7_submission.sh").write_text("#!/bin/bash\n#SBATCH --gres=gpu:a100:4\n#SBATCH --output=x\n")
    found = status.read(run)
    status.show_status(found)
    assert "asked of sbatch: gres=gpu:a100:4\n" in capsys.readouterr().out
    assert status.figures(found)["asked"] == ["gres=gpu:a100:4"]


def test_the_epoch_is_shown_where_the_dataset_is_at_hand(
    run: Path, digits: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """1,442 images, 64 at a time."""
    (run / "config.yaml").write_text(to_yaml(Config(data=str(digits), iterations=113, batch=64)))
    line = {"kind": "train", "iteration": 72, "loss": 1.0, "time": 0.0}
    (run / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    found = status.read(run)
    status.show_status(found)
    assert "72 of 113 (epoch 3.20 of 5.02)" in capsys.readouterr().out
    assert status.figures(found)["epoch"] == "3.20 of 5.02"
    (run / "config.yaml").write_text(to_yaml(Config(data="s3://nowhere/data", iterations=113, batch=64)))
    assert status.read(run).epoch is None


def test_without_a_job_the_lease_tells(run: Path) -> None:
    """As behind launch/local.py and launch/ray_train.py."""
    (run / "slurm" / "7_submission.sh").unlink()
    assert status.read(run).over
    lease = Lease(run, {})
    assert not status.read(run).over
    lease.release()
    assert status.read(run).over


def test_energy_is_shown_as_far_as_it_is_known(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status.show_status(status.read(run))
    assert "energy" not in capsys.readouterr().out
    costs = {"price_per_kwh": 0.5, "currency": "EUR"}
    write(run, About(host="a", rank=0, attempt=1, gpus=1, costs=costs), (60, {"gpu_0": 3.6e6}))
    found = status.read(run)
    status.show_status(found)
    assert "energy: 1 kWh (GPUs; CPUs not measured), 0.5 EUR" in capsys.readouterr().out
    figures = status.figures(found)
    assert (figures["energy_kwh"], figures["cost"]) == (1.0, 0.5) and "co2_g" not in figures and "usage" not in figures


def test_the_slowest_rank_is_shown_with_its_host(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "slurm" / "7_submission.sh").unlink()
    line = {"kind": "train", "iteration": 8, "loss": 1.0, "slowest_rank": 1, "slowest_rank_ratio": 1.5}
    (run / "metrics.jsonl").write_text(json.dumps({**line, "slowest_rank_data_wait_share": 0.25, "time": 0.0}) + "\n")
    (run / "activity").mkdir()
    note = Note(
        rank=1, beat=1, position=1, iteration=8, activity="saving", standing=0.0, time=0.0, host="node7", process=1
    )
    FileBoard([run / "activity" / f"rank-{rank}.json" for rank in range(2)]).write(note)
    lease = Lease(run, {})
    status.show_status(status.read(run))
    lease.release()
    words = "slowest: rank 1 (node7), 1.50 times the others' time for an update, 25% of it waiting for data"
    assert words in capsys.readouterr().out
