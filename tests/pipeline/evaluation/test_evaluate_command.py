"""python -m pipeline.evaluate, as it is typed: what it writes, what it says, what bad input gets."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline import evaluate
from pipeline.data.dataset import Dataset
from pipeline.evaluation.nets import find_checkpoint
from pipeline.evaluation.scores import load
from pipeline.handover.training_data import TrainingData
from pipeline.tracking import TrackingConfig, open_tracker, read_metrics
from pipeline.tracking.state import Wanted
from pipeline.training.checkpoint import publish
from tests.helpers import ROOT
from tests.patience import limit
from tests.pipeline.data.small_datasets import replace_table
from tests.pipeline.evaluation.nets_and_images import Run, figures, write_run
from tests.pipeline.evaluation.scoring_ranks import evaluate_as_typed
from tests.ranks import run_ranks


def test_a_run_is_tested_under_each_protocol(made_run: Path, run_evaluate: Run) -> None:
    open_tracker(made_run, TrackingConfig(mlflow=False), name="one", params={}, tags={}).close()  # as the training did
    code, output, errors = run_evaluate(made_run, "--protocol", "center,ten-crop", "--split", "train", "--json")
    assert code == 0, errors
    results = {one["protocol"]: one for one in figures(output)["results"]}
    for protocol in ("center", "ten-crop"):
        path = made_run / f"scores/{protocol}-train-00000100.npz"
        scores = load(path)
        assert results[protocol]["scores"] == str(path)
        assert (results[protocol]["top1_error"], results[protocol]["top5_error"]) == (
            scores.errors(1),
            scores.errors(5),
        )
        assert results[protocol]["images"] == 150 and results[protocol]["images_per_second"] > 0
        assert f"{scores.errors(1):.2f}" in output
        assert scores.provenance.arch == "resnet8" and scores.provenance.split == "train"
    names = sorted(one.name for one in (made_run / "scores").iterdir())
    assert names == [
        f"{protocol}-train-00000100.{end}" for protocol in ("center", "ten-crop") for end in ("json", "npz")
    ]
    recorded = {(one.kind, one.iteration): one.values for one in read_metrics(made_run / "metrics.jsonl")}
    wanted = Wanted.read(made_run)
    artifacts = [[f"scores/{protocol}-train-00000100.npz", "scores"] for protocol in ("center", "ten-crop")]
    assert wanted is not None and wanted.artifacts == artifacts
    assert recorded["ten-crop-train", 100]["top1_error"] == results["ten-crop"]["top1_error"]


def test_a_run_that_subtracts_the_mean_colour_is_tested_so(
    ten_classes: Dataset, run_evaluate: Run, tmp_path: Path
) -> None:
    """Reference: the run of the mean image, with that colour given by hand. Other images of its size get the mean image."""
    colour = ",".join(f"{value:.9g}" for value in ten_classes.statistics.mean_image.mean(axis=(0, 1), dtype=np.float64))
    runs = [write_run(tmp_path, kind, ten_classes, subtract=kind) for kind in ("mean-image", "mean-colour")]
    results = {}
    for name, run, more in (
        ("image", runs[0], ()),
        ("given", runs[0], ("--mean", colour, "--scores", tmp_path / "given.npz")),
        ("colour", runs[1], ()),
    ):
        code, output, errors = run_evaluate(run, "--split", "train", "--json", *more)
        assert code == 0, errors
        results[name] = load(Path(figures(output)["results"][0]["scores"]))
    np.testing.assert_array_equal(results["colour"].scores, results["given"].scores)
    assert not np.array_equal(results["image"].scores, results["given"].scores)
    assert results["colour"].provenance.normalization == results["given"].provenance.normalization
    assert TrainingData.of(ten_classes, 32, "mean-colour").mean.shape == (3,)


def test_scores_that_stand_are_not_made_twice(
    made_run: Path, run_evaluate: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = figures(run_evaluate(made_run, "--split", "train", "--json")[1])

    def never(*_: object, **__: object) -> None:
        raise AssertionError("scored again")

    monkeypatch.setattr("pipeline.evaluation.score_files.score_split", never)
    assert figures(run_evaluate(made_run, "--split", "train", "--json")[1]) == first
    with pytest.raises(AssertionError, match="scored again"):
        run_evaluate(made_run, "--split", "train", "--again")


def test_a_damaged_score_file_is_made_again(made_run: Path, run_evaluate: Run) -> None:
    run_evaluate(made_run, "--split", "train")
    path = made_run / "scores/center-train-00000100.npz"
    whole = path.read_bytes()
    path.write_bytes(whole[:-200])
    assert run_evaluate(made_run, "--split", "train")[0] == 0
    assert path.read_bytes() == whole


def test_a_split_without_labels_is_scored(
    made_run: Path, ten_classes: Dataset, run_evaluate: Run, tmp_path: Path
) -> None:
    folder = tmp_path / "unlabelled"
    shutil.copytree(ten_classes.folder, folder)
    table = np.load(folder / "train.samples.npy")
    table["label"] = -1
    replace_table(folder, "train", table)
    code, output, errors = run_evaluate(made_run, "--data", folder, "--split", "train", "--json")
    assert code == 0, errors
    (result,) = figures(output)["results"]
    assert result["top1_error"] is None
    assert (load(Path(result["scores"])).labels == -1).all()
    assert not (made_run / "metrics.jsonl").exists() or not read_metrics(made_run / "metrics.jsonl")


def test_a_checkpoint_of_a_run_can_be_named(made_run: Path, ten_classes: Dataset, run_evaluate: Run) -> None:
    old = next((made_run / "checkpoints").iterdir())
    write_run(made_run.parent, "one", ten_classes, iteration=200, seed=1)
    assert figures(run_evaluate(made_run, "--split", "train", "--json")[1])["results"][0]["scores"].endswith(
        "00000200.npz"
    )
    assert figures(run_evaluate(old, "--split", "train", "--json")[1])["results"][0]["scores"].endswith("00000100.npz")


def test_two_ranks_write_the_same_file_and_one_speaks(made_run: Path, run_evaluate: Run) -> None:
    run_evaluate(made_run, "--split", "train")
    path = made_run / "scores/center-train-00000100.npz"
    alone = path.read_bytes()
    path.unlink()
    arguments = [str(made_run), "--split", "train", "--threads", "1", "--json"]
    (code, output), other = run_ranks(2, evaluate_as_typed, arguments)
    assert code == 0 and other == (0, "")
    assert path.read_bytes() == alone
    assert figures(output)["results"][0]["images"] == 150


@pytest.mark.slow
def test_two_processes_under_torchrun_write_the_same_file(made_run: Path, run_evaluate: Run) -> None:
    run_evaluate(made_run, "--split", "train")
    path = made_run / "scores/center-train-00000100.npz"
    alone = path.read_bytes()
    path.unlink()
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    arguments = ["-m", "pipeline.evaluate", made_run, "--split", "train", "--threads", "1", "--json"]
    ended = subprocess.run(
        [*launcher, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, timeout=limit(250)
    )
    assert ended.returncode == 0, ended.stderr
    assert path.read_bytes() == alone
    assert figures(ended.stdout)["results"][0]["images"] == 150


def test_mistakes_get_one_sentence(made_run: Path, ten_classes: Dataset, run_evaluate: Run, tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    without = write_run(tmp_path / "runs", "without", ten_classes)
    for one in (without / "checkpoints").iterdir():
        one.unlink()
    other = write_run(tmp_path / "runs", "other", ten_classes, classes=7)
    (tmp_path / "loose.pt").write_bytes(b"x")
    damaged = write_run(tmp_path / "runs", "damaged", ten_classes)
    checkpoint = next((damaged / "checkpoints").iterdir())
    checkpoint.write_bytes(checkpoint.read_bytes()[:-1])
    only_damaged = write_run(tmp_path / "runs", "only-damaged", ten_classes)
    (one,) = (only_damaged / "checkpoints").iterdir()
    os.truncate(one, 100)
    cases: list[tuple[list[object], str]] = [
        ([only_damaged], "none of the checkpoints in .*its digest differs"),
        ([tmp_path / "absent"], "there is no run folder or checkpoint"),
        ([tmp_path / "nothing"], "is not a run folder"),
        ([tmp_path / "absent" / "checkpoints" / "x.pt"], "there is no run folder or checkpoint"),
        ([without], "has no checkpoint yet"),
        ([tmp_path / "loose.pt"], "is not a checkpoint of a run"),
        (["--weights", "resnet50", "--data", "x"], "--weights is 'resnet50': .* torchvision:resnet50 here"),
        (["--weights", "timm:a", "--data", "x"], "download the file .* give it with --preprocessing timm"),
        ([checkpoint], "is damaged"),
        ([made_run, "--protocol", ","], "no protocol was named: give --protocol with center"),
        ([made_run, "--protocol", "tencrop"], "there is no protocol 'tencrop': did you mean 'ten-crop'"),
        ([made_run, "--split", "vall"], "has no split 'vall'"),
        ([made_run, "--weights", "recomputed-bn"], "holds no weights with recomputed"),
        ([made_run, "--weights", "ema"], "holds no moving average"),
        ([made_run, "--protocl", "center"], "--protocl is not an option: did you mean '--protocol'"),
        ([made_run, "--data", tmp_path / "nothing"], "is not a dataset folder"),
        ([other, "--split", "train"], "has 7 classes, but the dataset .* has 10"),
    ]
    for arguments, sentence in cases:
        code, _, errors = run_evaluate(*arguments)
        said = [line for line in errors.splitlines() if line.startswith("error: ")]
        assert code == 2 and len(said) == 1, (arguments, errors)
        assert "Traceback" not in errors
        assert re.search(sentence, said[0]), (sentence, said[0])
        assert not list(tmp_path.rglob("*.npz")), "nothing is written"


def test_a_diverged_net_is_refused_and_writes_no_scores(made_run: Path, run_evaluate: Run) -> None:
    checkpoint = next((made_run / "checkpoints").iterdir())
    state = torch.load(checkpoint, weights_only=True)
    state["model"]["fc.bias"][0] = float("nan")
    publish(made_run / "checkpoints", 300, {**state, "iteration": 300})
    code, _, errors = run_evaluate(made_run, "--split", "train")
    assert code == 2 and "is not a softmax" in errors
    assert not list((made_run / "scores").glob("*.npz"))


def test_help_opens_with_a_sentence_and_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        evaluate.main(["--help"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "usage: python -m pipeline.evaluate [RUN|CHECKPOINT] [options]"
    assert lines[2].startswith("Tests one net") and lines[2].endswith(".")
    assert "python -m pipeline.evaluate runs/" in lines[5]


def test_a_checkpoint_that_a_training_removes_meanwhile(
    made_run: Path, ten_classes: Dataset, run_evaluate: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between its being found and its being read: of a run folder, the next one is taken."""
    old = find_checkpoint(made_run)

    def overtaken(target: Path) -> Path:
        path = find_checkpoint(target)
        if path.name == old.name:
            write_run(made_run.parent, "one", ten_classes, iteration=200, seed=1)
            old.unlink()
        return path

    monkeypatch.setattr("pipeline.evaluation.nets.find_checkpoint", overtaken)
    contents = old.read_bytes()
    code, output, errors = run_evaluate(made_run, "--split", "train", "--json")
    assert code == 0, errors
    assert figures(output)["results"][0]["scores"].endswith("00000200.npz")
    old.write_bytes(contents)
    code, _, errors = run_evaluate(old, "--split", "train")
    assert code == 2 and "was removed before it could be read" in errors and "damaged" not in errors
