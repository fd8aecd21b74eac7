"""What bad input to a training gets: one sentence, exit code 2, nothing written."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipeline.base.exits import EXIT_USER_ERROR
from pipeline.run.config import Config, to_yaml
from tests.helpers import ROOT
from tests.patience import limit
from tests.pipeline.small_runs import one_sentence, refusal
from tests.ranks import run_ranks

MISTAKES = {
    "an unknown arch": (["--arch", "resnet19"], "there is no net named 'resnet19'"),
    "a misspelt option": (["--iteration", "5"], "--iterations"),
    "a value of the wrong type": (["--batch", "many"], "batch does not fit"),
    "no dataset": (["--data", "nowhere"], "nowhere is not a dataset folder"),
    "a batch that groups do not divide": (["--bn-group", "5"], "bn_group 5 does not divide batch 32"),
    "another config in the run folder": (["--seed", "9"], "seed: 0 -> 9"),
    "a crop larger than the image": (["--augment.crop", "40", "--name", "new"], "crop of 40"),
    "a stage without an end": (
        ["--augment.stages", "[{until: 50, crop: 24, short_side: [25, 29]}]"],
        "end at iteration 50",
    ),
    "stages out of order": (
        [
            "--augment.stages",
            "[{until: 9, crop: 24, short_side: [25, 29]}, {until: 9, crop: 28, short_side: [29, 33]}]",
        ],
        "end at [9, 9]",
    ),
    "a stage's size": (["--augment.stages", "[{until: 9, crop: 24, short_side: [20, 29]}]"], "crop of 24"),
    "a learning rate that is none": (["--optimizer.lr=-1"], "optimizer.lr is -1.0"),
    "a negative momentum": (["--optimizer.momentum=-0.5"], "optimizer.momentum is -0.5"),
    "a negative seed": (["--seed=-1"], "seed is -1"),
    "no threads": (["--threads", "0"], "threads is 0: it must be at least 1"),
    "fewer than no images": (["--recompute-bn-images=-1"], "recompute_bn_images is -1: it must be at least 0"),
    "no time": (["--timeout-seconds", "0"], "timeout_seconds is 0"),
    "smoothing everything": (["--label-smoothing", "1"], "label_smoothing is 1.0"),
    "a run name for the shell": (["--name", "x;reboot"], "may hold only"),
    "a missing config file": (["--config", "missing.yaml"], "missing.yaml cannot be read"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_get_one_sentence(
    undisturbed: Config, tmp_path: Path, mistake: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """In this process, through the command's own entry point: the sentence on standard error, exit code 2."""
    from pipeline import train
    from pipeline.base import command

    arguments, sentence = MISTAKES[mistake]
    file = tmp_path / "config.yaml"
    file.write_text(to_yaml(undisturbed))
    before = sorted(path.name for path in Path(undisturbed.runs).rglob("*"))
    threads = torch.get_num_threads()
    with pytest.raises(SystemExit) as stopped:
        command.run(lambda: train.main(["--config", str(file), *arguments]))
    torch.set_num_threads(threads)
    assert stopped.value.code == EXIT_USER_ERROR
    captured = capsys.readouterr().err
    assert captured.startswith("error: ") and captured.count("\n") == 1 and sentence in captured
    if mistake != "a crop larger than the image":
        assert sorted(path.name for path in Path(undisturbed.runs).rglob("*")) == before


@pytest.mark.parametrize(
    ("ranks", "change", "sentence"),
    [(3, {}, "batch 32 is not divided by 3 processes"), (2, {"seed": 9}, "seed: 0 -> 9")],
)
def test_every_rank_is_refused_with_the_same_sentence(
    undisturbed: Config, ranks: int, change: dict[str, int], sentence: str
) -> None:
    """None waits for the others. That launchers say it once: tests/launch/ranks/test_supervisor.py."""
    sentences = run_ranks(ranks, refusal, replace(undisturbed, **change))
    assert sentence in sentences[0] and sentences == sentences[:1] * ranks


@pytest.mark.slow  # a cold start; in this process and on forked ranks: above
def test_mistakes_of_several_ranks_are_said_once(undisturbed: Config, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(to_yaml(undisturbed))
    command = [sys.executable, "launch/local.py", "--config", str(file)]
    for arguments, sentence in (
        (["--procs", "3"], "batch 32 is not divided by 3 processes"),
        (["--procs", "2", "--seed", "9"], "seed: 0 -> 9"),
    ):
        result = subprocess.run([*command, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=limit(120))
        assert sentence in one_sentence(result)


def test_misspelt_key_in_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from pipeline import train
    from pipeline.base import command

    file = tmp_path / "config.yaml"
    file.write_text("schedule:\n  patiance: 3\n")
    with pytest.raises(SystemExit) as stopped:
        command.run(lambda: train.main(["--config", str(file)]))
    said = capsys.readouterr().err
    assert stopped.value.code == EXIT_USER_ERROR and said.startswith("error: ") and said.count("\n") == 1
    assert "'schedule.patiance'" in said and str(file) in said and "'patience'" in said


def test_a_damaged_record_of_attempts_is_said(undisturbed: Config, tmp_path: Path) -> None:
    config = replace(undisturbed, runs=str(tmp_path))
    shutil.copytree(undisturbed.run_folder, config.run_folder)
    (config.run_folder / "run.json").write_text('{"attempts": [')
    (sentence,) = run_ranks(1, refusal, config)
    assert "is damaged" in sentence
