"""python -m pipeline.evaluate, as it is typed: what it writes, what it says, what bad input gets."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mlflow import MlflowClient

from pipeline import evaluate
from pipeline.data.dataset import Dataset
from pipeline.evaluation.definitions import Protocol, find
from pipeline.evaluation.model_card import known_scores
from pipeline.evaluation.nets import find_checkpoint, open_checkpoint
from pipeline.evaluation.protocols import Scored, score_split
from pipeline.evaluation.score_files import newest, trial_suffix
from pipeline.evaluation.scores import load
from pipeline.tracking import TrackingConfig, log_evaluations, open_tracker, read_metrics
from pipeline.tracking.state import read_wanted
from pipeline.training.checkpoint import publish
from tests.pipeline.evaluation.nets_and_images import Run, changed_copy, name_data, showing, write_run
from tests.pipeline.tracking.mlflow_store import only_run, store_uri

ROOT = Path(__file__).parents[3]


@pytest.fixture
def made_run(photographs: Dataset, tmp_path: Path) -> Path:
    return write_run(tmp_path / "runs", "one", photographs)


def figures(output: str) -> dict[str, Any]:
    return json.loads(output.splitlines()[-1])


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
    wanted = read_wanted(made_run)
    artifacts = [[f"scores/{protocol}-train-00000100.npz", "scores"] for protocol in ("center", "ten-crop")]
    assert wanted is not None and wanted.artifacts == artifacts
    assert recorded["ten-crop-train", 100]["top1_error"] == results["ten-crop"]["top1_error"]


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
    made_run: Path, photographs: Dataset, run_evaluate: Run, tmp_path: Path
) -> None:
    folder = tmp_path / "unlabelled"
    shutil.copytree(photographs.folder, folder)
    table = np.load(folder / "train.samples.npy")
    table["label"] = -1
    np.save(folder / "train.samples.npy", table)
    code, output, errors = run_evaluate(made_run, "--data", folder, "--split", "train", "--json")
    assert code == 0, errors
    assert figures(output)["results"][0]["top1_error"] is None
    assert (load(made_run / "scores/center-train-00000100.npz").labels == -1).all()
    assert not (made_run / "metrics.jsonl").exists() or not read_metrics(made_run / "metrics.jsonl")


def test_a_checkpoint_of_a_run_can_be_named(made_run: Path, photographs: Dataset, run_evaluate: Run) -> None:
    old = next((made_run / "checkpoints").iterdir())
    write_run(made_run.parent, "one", photographs, iteration=200, seed=1)
    assert figures(run_evaluate(made_run, "--split", "train", "--json")[1])["results"][0]["scores"].endswith(
        "00000200.npz"
    )
    assert figures(run_evaluate(old, "--split", "train", "--json")[1])["results"][0]["scores"].endswith("00000100.npz")


def test_two_processes_under_torchrun_write_the_same_file(made_run: Path, run_evaluate: Run) -> None:
    run_evaluate(made_run, "--split", "train")
    path = made_run / "scores/center-train-00000100.npz"
    alone = path.read_bytes()
    path.unlink()
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    arguments = ["-m", "pipeline.evaluate", made_run, "--split", "train", "--threads", "1", "--json"]
    ended = subprocess.run([*launcher, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert ended.returncode == 0, ended.stderr
    assert path.read_bytes() == alone
    assert figures(ended.stdout)["results"][0]["images"] == 150


def test_mistakes_get_one_sentence(made_run: Path, photographs: Dataset, run_evaluate: Run, tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    without = write_run(tmp_path / "runs", "without", photographs)
    for one in (without / "checkpoints").iterdir():
        one.unlink()
    other = write_run(tmp_path / "runs", "other", photographs, classes=7)
    (tmp_path / "loose.pt").write_bytes(b"x")
    damaged = write_run(tmp_path / "runs", "damaged", photographs)
    checkpoint = next((damaged / "checkpoints").iterdir())
    checkpoint.write_bytes(checkpoint.read_bytes()[:-1])
    cases: list[tuple[list[object], str]] = [
        ([tmp_path / "absent"], "there is no run folder or checkpoint"),
        ([tmp_path / "nothing"], "is not a run folder"),
        ([without], "has no checkpoint yet"),
        ([tmp_path / "loose.pt"], "is not a checkpoint of a run"),
        ([checkpoint], "is damaged"),
        ([made_run, "--protocol", "tencrop"], "there is no protocol 'tencrop': did you mean 'ten-crop'"),
        ([made_run, "--split", "vall"], "has no split 'vall'"),
        ([made_run, "--weights", "recomputed-bn"], "holds no weights with recomputed"),
        ([made_run, "--weights", "ema"], "holds no moving average"),
        ([made_run, "--protocl", "center"], "--protocl is not an option: did you mean '--protocol'"),
        ([made_run, "--data", tmp_path / "nothing"], "is not a dataset folder"),
        ([other, "--split", "train"], "tells 7 classes apart, the dataset .* has 10"),
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
    publish(made_run / "checkpoints", 300, state)
    code, _, errors = run_evaluate(made_run, "--split", "train")
    assert code == 2 and "is not a softmax" in errors
    assert not list((made_run / "scores").glob("*.npz"))


def test_help_opens_with_a_sentence_and_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        evaluate.main(["--help"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("Tests one net") and lines[0].endswith(".")
    assert "python -m pipeline.evaluate runs/" in lines[3]


def kinds(run: Path) -> set[str]:
    return {one.kind for one in read_metrics(run / "metrics.jsonl")}


def test_a_trial_stands_beside_the_runs_own_scores(
    made_run: Path, photographs: Dataset, run_evaluate: Run, tmp_path: Path
) -> None:
    run_evaluate(made_run, "--split", "train")
    own = made_run / "scores/center-train-00000100.npz"
    before, table = own.read_bytes(), load(own).scores
    other = changed_copy(photographs, tmp_path / "other", lambda manifest: manifest.update(seed=1))
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


def test_a_short_side_of_its_own_is_no_trial_of_what_has_five(photographs: Dataset, made_run: Path) -> None:
    subject = open_checkpoint(find_checkpoint(made_run), "final")
    shown = showing(40, 32, photographs.statistics)
    assert trial_suffix(subject, photographs, find("ten-crop"), shown) == "-short-side40"
    assert trial_suffix(subject, photographs, find("multi-scale"), shown) == ""


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


def test_mlflow_is_told_once_of_all_that_was_recorded(
    made_run: Path, run_evaluate: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of what an attempt recorded that did not come to telling it, too; and not waited for where it has everything."""
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


def test_a_run_trained_from_a_url_is_tested(
    digits: Path, run_evaluate: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    local, remote = (write_run(tmp_path / "runs", name, Dataset(digits)) for name in ("local", "remote"))
    name_data(remote, f"file://{digits}")
    for folder, options in ((local, []), (remote, []), (remote, ["--data", f"file://{digits}", "--again"])):
        code, _, errors = run_evaluate(folder, *options)
        assert code == 0, errors
        scores = [run / "scores/center-val-00000100.npz" for run in (local, folder)]
        assert scores[0].read_bytes() == scores[1].read_bytes()


def test_a_dataset_that_was_moved_is_known_by_its_content(
    photographs: Dataset, run_evaluate: Run, tmp_path: Path
) -> None:
    shutil.copytree(photographs.folder, tmp_path / "data")
    folder = write_run(tmp_path / "runs", "one", Dataset(tmp_path / "data"))
    path = folder / "scores/center-train-00000100.npz"
    assert run_evaluate(folder, "--split", "train")[0] == 0
    before = path.read_bytes()
    path.unlink()
    (tmp_path / "data").rename(tmp_path / "moved")
    code, _, errors = run_evaluate(folder, "--split", "train")
    assert code == 2 and "is not a dataset folder" in errors
    code, _, errors = run_evaluate(folder, "--split", "train", "--data", tmp_path / "moved")
    assert code == 0, errors
    assert path.read_bytes() == before


def test_a_dataset_with_other_classes_is_refused(
    made_run: Path, photographs: Dataset, run_evaluate: Run, tmp_path: Path
) -> None:
    def swap(manifest: dict[str, Any]) -> None:
        manifest["classes"][3:5] = manifest["classes"][4:2:-1]

    other = changed_copy(photographs, tmp_path / "other", swap)
    code, _, errors = run_evaluate(made_run, "--split", "train", "--data", other.folder)
    assert code == 2 and "Traceback" not in errors
    assert "class 3 of the dataset" in errors and "is n00000004, one was trained with n00000003" in errors


def test_an_empty_split_is_one_sentence(
    made_run: Path, photographs: Dataset, run_evaluate: Run, tmp_path: Path
) -> None:
    none = {"samples": 0, "table": "none.samples.npy", "table_sha256": "", "shards": []}
    other = changed_copy(photographs, tmp_path / "other", lambda manifest: manifest["splits"].update(none=none))
    np.save(other.folder / "none.samples.npy", np.load(other.folder / "train.samples.npy")[:0])
    code, _, errors = run_evaluate(made_run, "--split", "none", "--data", other.folder)
    said = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert code == 2 and len(said) == 1 and "Traceback" not in errors, errors
    assert "the split 'none'" in said[0] and "is empty" in said[0]


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


def test_a_checkpoint_that_a_training_removes_meanwhile(
    made_run: Path, photographs: Dataset, run_evaluate: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between its being found and its being read: of a run folder, the next one is taken."""
    old = find_checkpoint(made_run)

    def overtaken(target: Path) -> Path:
        path = find_checkpoint(target)
        if path.name == old.name:
            write_run(made_run.parent, "one", photographs, iteration=200, seed=1)
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
