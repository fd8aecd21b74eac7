"""States and figures from run folders alone: real runs on the digits; references by NumPy and from the files themselves."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from paper.reading import read_experiment
from paper.rows import RowResult, collect
from paper.spec import Experiment, RunSpec, resolve
from paper.state import read_state
from pipeline import evaluate, train
from pipeline.base.lease import Lease
from pipeline.tracking.journal import read_metrics
from pipeline.training.checkpoint import publish, read_verified

SCALE = 0.02  # of the demo's 400 iterations: 8
TEXT = """
title: Nets on digits
place: Table 0
config: demo.yaml
overrides: {tracking.mlflow: false, loader.threads: 1, evaluation.every: 400, checkpoint.every: 3, recompute_bn_images: 0}
measure: error
protocols: [center]
rows:
  - {label: two seeds, nets: [{arch: resnet8, seeds: [0, 1]}]}
  - {label: one, nets: [{arch: resnet8}]}
  - {label: none, nets: [{arch: plain8}]}
"""


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    file = tmp_path_factory.mktemp("experiments") / "digits.yaml"
    file.write_text(TEXT)
    return read_experiment(file)


@pytest.fixture(scope="module")
def trained(digits: Path, experiment: Experiment, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one finished run, seed 0, tested."""
    runs = tmp_path_factory.mktemp("runs")
    train_and_test(experiment.runs[0], digits, runs)
    return runs


def train_and_test(spec: RunSpec, digits: Path, runs: Path) -> None:
    threads = torch.get_num_threads()
    assert train.train(resolve(spec, digits, runs, SCALE)) == 0
    assert evaluate.main([str(runs / spec.name(SCALE)), "--threads", "1"]) == 0
    torch.set_num_threads(threads)


@pytest.fixture
def runs(trained: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy that may be spoilt."""
    yield Path(shutil.copytree(trained, tmp_path / "runs"))


def state_of(spec: RunSpec, digits: Path, runs: Path) -> str:
    return read_state(resolve(spec, digits, runs, SCALE)).text


def rows_of(experiment: Experiment, digits: Path, runs: Path) -> dict[str, RowResult]:
    return {one.row.label: one for one in collect(experiment, digits, runs, SCALE)}


def test_states_follow_the_folder(experiment: Experiment, digits: Path, runs: Path) -> None:
    first, _, plain = experiment.runs
    folder = runs / first.name(SCALE)
    assert (state_of(first, digits, runs), state_of(plain, digits, runs)) == ("finished", "not run")
    assert "not run" in read_state(resolve(first, digits, runs)).text  # at full length: another run
    newest, before = sorted((folder / "checkpoints").glob("*.pt"), reverse=True)[:2]
    with open(newest, "r+b") as file:
        file.write(b"damage")
    expected = f"interrupted (iteration {int(before.name[:8])} of 8)"
    assert state_of(first, digits, runs) == expected
    newest.unlink()
    assert state_of(first, digits, runs) == expected
    lease = Lease(folder, {})
    assert state_of(first, digits, runs) == "running (iteration 8 of 8)"  # by metrics.jsonl
    lease.release()
    shutil.rmtree(folder / "checkpoints")
    assert state_of(first, digits, runs) == "interrupted (iteration 0 of 8)"
    shutil.rmtree(folder)
    assert state_of(first, digits, runs) == "not run"


def test_another_run_under_the_name_is_told_apart(experiment: Experiment, digits: Path, runs: Path) -> None:
    first = experiment.runs[0]
    other = replace(first, overrides=(*first.overrides, ("batch", 32)))
    assert state_of(other, digits, runs) == "conflicting (batch: 64 -> 32)"
    # What leaves the computation as it is makes no conflict.
    assert read_state(resolve(first, digits, runs, SCALE, ["--threads=2", "--checkpoint.every=3"])).kind == "finished"
    facts = runs / first.name(SCALE) / "run.json"
    facts.write_text(json.dumps({**json.loads(facts.read_text()), "dataset_sha256": "0" * 64}))
    assert state_of(first, digits, runs).startswith("conflicting (the dataset's content: 000000000000 -> ")
    (runs / first.name(SCALE) / "config.yaml").write_text("archh: resnet8\n")
    assert "conflicting (unknown key 'archh'" in state_of(first, digits, runs)


def test_a_row_is_complete_when_all_its_runs_are(experiment: Experiment, digits: Path, runs: Path) -> None:
    rows = rows_of(experiment, digits, runs)
    with np.load(runs / "resnet8-seed0-scale0.02" / "scores" / "center-val-00000008.npz") as file:
        error = 100 * np.mean(file["scores"].astype("f4").argmax(axis=1) != file["labels"])
    assert rows["one"].figures["top1_error"] == pytest.approx(error, abs=1e-9)
    assert (rows["one"].state, rows["none"].state) == ("finished", "not run")
    assert rows["two seeds"].state == rows["two seeds"].status == "1 of 2 runs finished"
    assert rows["two seeds"].figures == {} == rows["none"].figures
    shutil.rmtree(runs / "resnet8-seed0-scale0.02")
    assert (rows_of(experiment, digits, runs)["one"].state, rows_of(experiment, digits, runs)["one"].figures) == (
        "not run",
        {},
    )


@pytest.mark.slow
def test_seeds_and_ensembles(experiment: Experiment, digits: Path, runs: Path) -> None:
    """References: NumPy's mean, sample standard deviation and average of scores."""
    train_and_test(experiment.runs[1], digits, runs)
    scores, errors = [], []
    for seed in (0, 1):
        with np.load(runs / f"resnet8-seed{seed}-scale0.02" / "scores" / "center-val-00000008.npz") as file:
            labels = file["labels"]
            scores.append(file["scores"].astype("f8"))
            errors.append(100 * np.mean(file["scores"].astype("f4").argmax(axis=1) != labels))
    figures = rows_of(experiment, digits, runs)["two seeds"].figures
    assert figures["top1_error"] == pytest.approx(min(errors))
    assert figures["top1_mean"] == pytest.approx(np.mean(errors))
    assert figures["top1_std"] == pytest.approx(np.std(errors, ddof=1))
    ensemble = rows_of(replace(experiment, measure="ensemble"), digits, runs)["two seeds"].figures
    average = (scores[0] + scores[1]) / 2
    assert ensemble["top1_error"] == pytest.approx(100 * np.mean(average.argmax(axis=1) != labels))


def test_scores_of_another_checkpoint_do_not_count(experiment: Experiment, digits: Path, runs: Path) -> None:
    """A run whose end was trained anew, and the score file that was left behind."""
    folder = runs / "resnet8-seed0-scale0.02"
    final = max((folder / "checkpoints").glob("*.pt"))
    checkpoint = read_verified(final)
    state = checkpoint.state
    state["model"]["fc.bias"] += 1
    final.unlink()
    publish(final.parent, 8, state)
    assert rows_of(experiment, digits, runs)["one"].state == "finished, without center"


def test_damaged_scores_do_not_count(experiment: Experiment, digits: Path, runs: Path) -> None:
    (runs / "resnet8-seed0-scale0.02" / "scores" / "center-val-00000008.npz").write_bytes(b"cut off")
    assert rows_of(experiment, digits, runs)["one"].state == "finished, without center"


def test_curves_are_the_runs_metrics(experiment: Experiment, digits: Path, runs: Path) -> None:
    curve = rows_of(replace(experiment, measure="curve", protocols=()), digits, runs)["one"]
    records = read_metrics(runs / "resnet8-seed0-scale0.02" / "metrics.jsonl")
    last = {one.kind: one.values for one in records if one.iteration == 8}
    assert curve.figures == {
        "train_error": last["train"]["top1_error"],
        "top1_error": last["val"]["top1_error"],
        "top5_error": last["val"]["top5_error"],
    }


@pytest.mark.slow
def test_responses_of_the_final_checkpoint_count(experiment: Experiment, digits: Path, runs: Path) -> None:
    from pipeline import responses

    figure = replace(experiment, measure="responses", protocols=())
    assert rows_of(figure, digits, runs)["one"].state == "finished, without responses"
    folder = runs / "resnet8-seed0-scale0.02"
    assert responses.main([str(folder), "--threads", "1"]) == 0
    file = folder / "responses.json"
    values = json.loads(file.read_text())
    assert rows_of(figure, digits, runs)["one"].figures == {"response_std": pytest.approx(np.mean(values["std"]))}
    file.write_text(json.dumps({**values, "checkpoint": "00000008-0123456789abcdef.pt"}))
    assert rows_of(figure, digits, runs)["one"].state == "finished, without responses"
