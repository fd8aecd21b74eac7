"""What python -m pipeline.evaluate leaves in the run folder and in MLflow: scores, trials, what was interrupted."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mlflow import MlflowClient

from pipeline.data.dataset import Dataset
from pipeline.evaluation.nets import find_checkpoint, open_checkpoint
from pipeline.evaluation.protocols import Protocol, find
from pipeline.evaluation.score_files import newest, trial_suffix
from pipeline.evaluation.scores import load
from pipeline.evaluation.scoring import Scored, score_split
from pipeline.handover.model_card import known_scores
from pipeline.tracking import TrackingConfig, log_evaluations, open_tracker, read_metrics
from pipeline.training.checkpoint import publish
from tests.pipeline.evaluation.nets_and_images import Run, changed_copy, figures, settings
from tests.pipeline.tracking.mlflow_store import only_run, store_uri


def kinds(run: Path) -> set[str]:
    return {one.kind for one in read_metrics(run / "metrics.jsonl")}


def test_a_trial_stands_beside_the_runs_own_scores(
    made_run: Path, ten_classes: Dataset, run_evaluate: Run, tmp_path: Path
) -> None:
    run_evaluate(made_run, "--split", "train")
    own = made_run / "scores/center-train-00000100.npz"
    before, table = own.read_bytes(), load(own).scores
    other = changed_copy(ten_classes, tmp_path / "other", lambda manifest: manifest.update(seed=1))
    found = {"center-train"}
    for options, suffix in (
        (["--precision", "bf16"], "-bf16"),
        (["--short-side", 40], "-short-side40"),
        (["--mean", "1,2,3"], "-mean[0-9a-f]{8}"),
        (["--data", other.folder], f"-data{other.sha256[:8]}"),
        (["--precision", "bf16", "--short-side", 40], "-bf16-short-side40"),
    ):
        code, output, errors = run_evaluate(made_run, "--split", "train", *options, "--json")
        assert code == 0, errors
        path = Path(figures(output)["results"][0]["scores"])
        assert re.fullmatch(f"center-train-00000100{suffix}", path.stem), path
        assert np.array_equal(load(path).scores, table) == ("--data" in options), "the same images and mean there alone"
        found.add(f"center-train{path.stem.removeprefix('center-train-00000100')}")
    assert own.read_bytes() == before and kinds(made_run) == found and len(found) == 6
    assert newest(made_run, "train", "final") == {"center": own}
    assert [one.path for one in known_scores(open_checkpoint(find_checkpoint(made_run), "final"))] == [own]


def test_a_short_side_of_its_own_is_no_trial_of_what_has_five(ten_classes: Dataset, made_run: Path) -> None:
    subject = open_checkpoint(find_checkpoint(made_run), "final")
    shown = settings(40, 32, ten_classes.statistics)
    assert trial_suffix(subject, ten_classes, find("ten-crop"), shown) == "-short-side40"
    assert trial_suffix(subject, ten_classes, find("multi-scale"), shown) == ""


def test_other_scores_in_a_file_named_by_hand_are_not_replaced(
    made_run: Path, run_evaluate: Run, tmp_path: Path
) -> None:
    command = [made_run, "--split", "train", "--scores", tmp_path / "out.npz"]
    assert run_evaluate(*command)[0] == 0
    before = (tmp_path / "out.npz").read_bytes()
    code, _, errors = run_evaluate(*command, "--precision", "bf16")
    assert code == 2 and "out.npz holds other scores already" in errors and "Traceback" not in errors
    assert (tmp_path / "out.npz").read_bytes() == before
    assert run_evaluate(*command)[0] == 0
    assert run_evaluate(*command, "--precision", "bf16", "--again")[0] == 0
    assert load(tmp_path / "out.npz").provenance.precision == "bf16"
    (tmp_path / "out.npz").write_bytes(before[:-200])
    assert run_evaluate(*command)[0] == 0, "a damaged file is nothing to keep"
    assert (tmp_path / "out.npz").read_bytes() == before


def test_what_an_interrupted_evaluation_has_finished_is_recorded(
    made_run: Path, run_evaluate: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_tracker(made_run, TrackingConfig(mlflow=False), name="one", params={}, tags={}).close()

    def interrupted(net: object, split: object, protocol: Protocol, *rest: Any, **options: Any) -> Scored | None:
        if protocol.name == "ten-crop":
            raise KeyboardInterrupt
        return score_split(net, split, protocol, *rest, **options)

    monkeypatch.setattr("pipeline.evaluation.score_files.score_split", interrupted)
    assert run_evaluate(made_run, "--split", "train", "--protocol", "center,ten-crop")[0] == 130
    assert kinds(made_run) == {"center-train"}
    (made_run / "metrics.jsonl").unlink()
    assert run_evaluate(made_run, "--split", "train")[0] == 0
    assert kinds(made_run) == {"center-train"}, "scores that were found are recorded too"


@pytest.mark.costly("the process that tells MLflow imports it")
def test_mlflow_is_told_once_of_all_that_was_recorded(
    made_run: Path, run_evaluate: Run, empty_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of what an attempt recorded that did not come to telling it, too; and not waited for where it has everything."""
    shutil.copy(empty_store, made_run.parent)
    open_tracker(made_run, TrackingConfig(mlflow=False), name="one", params={}, tags={}).close()
    assert run_evaluate(made_run, "--split", "train")[0] == 0
    config = made_run / "config.yaml"
    config.write_text(config.read_text().replace("mlflow: false", "mlflow: true"))
    waits = []

    def logged(folder: Path, tracking: TrackingConfig, *rest: Any) -> None:
        waits.append(tracking.mlflow)
        log_evaluations(folder, tracking, *rest)

    monkeypatch.setattr("pipeline.evaluate.log_evaluations", logged)
    assert run_evaluate(made_run, "--split", "train", "--protocol", "center,ten-crop")[0] == 0
    assert waits == [False, False, True]
    run = only_run(store_uri(made_run.parent))
    assert {"center-train/top1_error", "ten-crop-train/top5_error"} <= set(run.data.metrics)
    kept = MlflowClient(store_uri(made_run.parent)).list_artifacts(run.info.run_id, "scores")
    assert {Path(one.path).name for one in kept} == {f"{name}-train-00000100.npz" for name in ("center", "ten-crop")}
    assert run_evaluate(made_run, "--split", "train", "--protocol", "center,ten-crop")[0] == 0
    assert waits[3:] == [False, False]


def test_recomputed_statistics_have_scores_of_their_own(made_run: Path, run_evaluate: Run) -> None:
    state = torch.load(find_checkpoint(made_run), weights_only=True)
    recomputed = {
        key: 4 * value if key.endswith("running_var") else value.clone() for key, value in state["model"].items()
    }
    publish(made_run / "checkpoints", 300, {**state, "iteration": 300, "model_recomputed_bn": recomputed})
    tables = []
    for weights, suffix in (("final", ""), ("recomputed-bn", "-recomputed-bn")):
        code, _, errors = run_evaluate(made_run, "--split", "train", "--weights", weights)
        assert code == 0, errors
        scores = load(made_run / f"scores/center-train-00000300{suffix}.npz")
        assert scores.provenance.weights == weights
        tables.append(scores.scores)
    assert not np.array_equal(*tables)
    assert kinds(made_run) == {"center-train", "center-train-recomputed-bn"}
