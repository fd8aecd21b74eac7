"""The command: rehearsals on real images, killed and repeated, and what bad input gets. Reference: runs left alone."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from paper import experiment
from paper.launching import split_options
from paper.reading import find, read_experiment
from paper.spec import resolve
from pipeline.base import command
from pipeline.base.command import UserError
from pipeline.base.exits import EXIT_PREEMPTED, EXIT_USER_ERROR
from pipeline.run.config import to_yaml
from tests.helpers import ROOT, wait_for
from tests.images import real_images
from tests.launch.launchers import environment, final_checkpoint, finish
from tests.patience import limit

TEXT = """
title: Two nets on digits
place: Table 0
config: demo.yaml
overrides: {tracking.mlflow: false, loader.threads: 1}
measure: error
protocols: [center]
rows:
  - {label: plain, nets: [{arch: plain8}], paper: {top1_error: 5}}
  - {label: residual, nets: [{arch: resnet8}], paper: {top1_error: 4}}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "digits.yaml"
    path.write_text(TEXT)
    return path


def words(file: Path | str, digits: Path, folder: Path, *options: str) -> list[str]:
    places = ["--data", str(digits), "--runs", str(folder / "runs"), "--json"]
    return [sys.executable, "-m", "pipeline.experiment", str(file), *places, *options]


def done_of(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """One command after the other, several trainings in each: minutes, on a busy machine many."""
    return finish(command, ROOT, timeout=1500)


def answer(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    return json.loads(done.stdout.splitlines()[-1])


def rows_of(done: subprocess.CompletedProcess[str]) -> dict[str, tuple[str, float | None]]:
    """State and top-1 error of each row."""
    return {row["label"]: (row["state"], row["figures"].get("top1_error")) for row in answer(done)["rows"]}


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_rehearsal_is_repeated_without_work_and_follows_the_folders(file: Path, digits: Path, tmp_path: Path) -> None:
    rehearsal = words(file, digits, tmp_path, "--scale", "0.02")
    first = done_of(rehearsal)
    assert first.returncode == 0, first.stderr
    rows = rows_of(first)
    assert {state for state, _ in rows.values()} == {"finished"} and "a rehearsal" in first.stdout
    folders = {path.name for path in (tmp_path / "runs").iterdir() if path.is_dir()}
    assert folders == {"plain8-seed0-scale0.02", "resnet8-seed0-scale0.02"}

    second = done_of(rehearsal)
    assert (second.returncode, rows_of(second)) == (0, rows) and "$ " not in second.stderr

    plain = tmp_path / "runs" / "plain8-seed0-scale0.02"
    checkpoint = final_checkpoint(plain)
    shutil.rmtree(plain)
    shown = done_of([*rehearsal, "--dry-run"])
    states = [one["state"] for one in answer(shown)["runs"]]
    assert (shown.returncode, states, plain.exists()) == (0, ["not run", "finished"], False)
    only = done_of([*rehearsal, "--only", "residual"])
    assert (only.returncode, list(rows_of(only)), plain.exists()) == (0, ["residual"], False)
    third = done_of(rehearsal)
    assert (rows_of(third), final_checkpoint(plain)) == (rows, checkpoint)


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_stopped_or_killed_it_goes_on(file: Path, digits: Path, tmp_path: Path) -> None:
    def started(folder: Path) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            words(file, digits, folder, "--scale", "0.5", "--only", "residual"),
            cwd=ROOT, env=environment(), start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        checkpoints = folder / "runs" / "resnet8-seed0-scale0.5" / "checkpoints"
        wait_for(lambda: process.poll() is not None or list(checkpoints.glob("*.pt")), "a checkpoint", 600)
        assert process.poll() is None
        return process

    spec = read_experiment(file).runs[1]
    process = started(tmp_path)
    process.send_signal(signal.SIGTERM)
    assert process.wait(limit(300)) == EXIT_PREEMPTED
    again = [*words(file, digits, tmp_path, "--scale", "0.5", "--only", "residual")]
    assert "interrupted (iteration" in answer(done_of([*again, "--dry-run"]))["runs"][0]["state"]
    shutil.rmtree(tmp_path / "runs")
    process = started(tmp_path)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    done = done_of(again)
    assert done.returncode == 0, done.stderr
    assert "interrupted (iteration" in done.stderr and rows_of(done)["residual"][0] == "finished"
    alone = resolve(spec, digits, tmp_path / "alone", 0.5)
    (tmp_path / "alone.yaml").write_text(to_yaml(alone))
    left_alone = done_of([sys.executable, "launch/local.py", "--config", str(tmp_path / "alone.yaml")])
    assert left_alone.returncode == 0, left_alone.stderr
    assert final_checkpoint(alone.run_folder) == final_checkpoint(tmp_path / "runs" / alone.run_name)


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_ensemble_and_ray(file: Path, digits: Path, tmp_path: Path) -> None:
    """One row of two nets, trained by Ray; the reference is pipeline.ensemble's own figure."""
    text = TEXT.replace("measure: error", "measure: ensemble")
    text = text[: text.index("  - {label: plain")] + "  - {label: both, nets: [{arch: plain8}, {arch: resnet8}]}\n"
    file.write_text(text)
    done = done_of(words(file, digits, tmp_path, "--scale", "0.02", "--launcher", "ray", "--procs", "1"))
    assert done.returncode == 0, done.stderr
    written = json.loads((tmp_path / "runs" / "ensemble-digits-scale0.02" / "ensemble.json").read_text())
    ensemble = written["protocols"]["center"]["ensemble"]
    figures = answer(done)["rows"][0]["figures"]
    assert figures == {key: pytest.approx(ensemble[key]) for key in ("top1_error", "top5_error")}
    assert (
        json.loads((tmp_path / "runs" / "plain8-seed0-scale0.02" / "run.json").read_text())["attempts"][0]["launcher"]
        == "ray"
    )


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_layer_responses_are_made_once(file: Path, digits: Path, tmp_path: Path) -> None:
    """As for Fig. 7: each net trained, then measured; the reference is the file that pipeline.responses leaves."""
    file.write_text(TEXT.replace("measure: error", "measure: responses").replace("protocols: [center]\n", ""))
    command = words(file, digits, tmp_path, "--scale", "0.02")
    done = done_of(command)
    assert done.returncode == 0, done.stderr
    for row, name in zip(answer(done)["rows"], ("plain8", "resnet8"), strict=True):
        std = json.loads((tmp_path / f"runs/{name}-seed0-scale0.02/responses.json").read_text())["std"]
        assert len(std) == 7 and row["figures"] == {"response_std": pytest.approx(sum(std) / 7)}
    again = done_of(command)
    assert again.returncode == 0 and "$ " not in again.stderr and answer(again)["rows"] == answer(done)["rows"]


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_rehearsal_of_table_2_on_real_imagenet_images(tmp_path: Path) -> None:
    """Whole images, whole nets, mini-batches of 256: one iteration of each."""
    source = tmp_path / "images"
    for number, (_, image) in enumerate(real_images(every=4)):
        for split in ("train", "val"):
            path = source / split / f"class{number % 3}" / f"{number:04d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(image)
    prepare = [sys.executable, "data_prep/shard_imagenet.py", str(source), str(tmp_path / "data")]
    prepared = done_of(prepare)
    assert prepared.returncode == 0, prepared.stderr
    options = ["--scale", "1e-6", "--", "--tracking.mlflow=false", "--threads=2"]
    done = done_of(words("table2", tmp_path / "data", tmp_path, *options))
    assert done.returncode == 0, done.stderr
    assert len(rows_of(done)) == 4 and {state for state, _ in rows_of(done).values()} == {"finished"}


def refused(words: Sequence[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one sentence that a command line gets."""
    with pytest.raises(SystemExit) as stopped:
        command.run(lambda: experiment.main(words))
    assert stopped.value.code == EXIT_USER_ERROR
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1
    return said


def test_conflicting_runs_are_said_and_left_alone(
    file: Path, digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = read_experiment(file).runs[1]
    folder = tmp_path / "runs" / spec.name()
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(
        to_yaml(resolve(spec, digits, tmp_path / "runs")).replace("batch: 64", "batch: 32")
    )
    places = ["--data", str(digits), "--runs", str(tmp_path / "runs"), "--only", "residual", "--json"]
    assert experiment.main([str(file), *places]) == EXIT_USER_ERROR
    captured = capsys.readouterr()
    row = json.loads(captured.out.splitlines()[-1])["rows"][0]
    assert (row["state"], row["figures"]) == ("conflicting (batch: 32 -> 64)", {})
    assert row["state"] in captured.out and "$ " not in captured.err
    assert [path.name for path in folder.iterdir()] == ["config.yaml"]


def test_mistakes_get_one_sentence(
    file: Path, digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = ["--data", str(digits), "--runs", str(tmp_path / "runs")]
    for words, sentence in (
        (["tabel6"], "there is no experiment 'tabel6': did you mean 'table6'"),
        ([str(file), "--only", "residal", *places], "has no row 'residal': did you mean 'residual'?"),
        ([str(file), "--scale", "2", *places], "--scale 2 cannot be"),
        ([str(file), "--scale", "0.001", *places], "leaves 1 iterations, too few"),
        ([str(file), "--data", str(tmp_path)], "needs a dataset folder and"),
        (["fig1", "--data", str(tmp_path)], "python data_prep/shard_cifar10.py SOURCE"),
        ([str(file), *places, "--procs", "0"], "--procs is 0"),
        ([str(file), *places, "--launcher", "slurm", "--procs", "2"], "--procs goes with --launcher local or ray"),
        ([str(file), *places, "--launcer", "ray"], "--launcer is not an option: did you mean '--launcher'"),
        ([str(file), *places, "--", "--batch", "32"], "plain8-seed0 computes (batch: 64 -> 32)"),
        ([str(file), *places, "--", "--init", "runs/x"], "plain8-seed0 computes (init: None -> runs/x)"),
        ([str(file), *places, "--", "--name", "x"], "--name must not stand behind '--'"),
        ([str(file), *places, "--", "--scale-batch", "2"], "--scale-batch must not stand behind '--'"),
    ):
        assert sentence in refused(words, capsys)
    assert not (tmp_path / "runs").exists()


def test_options_behind_the_dashes_go_where_they_belong() -> None:
    behind = ["--threads", "2", "--nodes=4", "--loader.ready=3", "--partition", "gpu"]
    assert split_options(behind) == (("--threads", "2", "--loader.ready=3"), ("--nodes=4", "--partition", "gpu"))
    with pytest.raises(UserError, match="must not stand behind"):
        split_options(["--config=x.yaml"])


def test_plan_of_the_ensemble(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The commands that are shown are the launchers' and give the very configs."""
    from launch.local import COMMAND_LINE
    from pipeline.run.options import parse

    places = ["--data", str(tmp_path / "data"), "--runs", str(tmp_path / "runs"), "--scale", "0.05"]
    assert experiment.main(["table5", *places, "--procs", "2", "--dry-run"]) == 0
    shown = [line.split()[4:] for line in capsys.readouterr().out.splitlines() if line.startswith("$ ")]
    configs = [parse(COMMAND_LINE.training_parser(), words)[0] for words in shown]
    assert configs == [resolve(spec, places[1], places[3], 0.05) for spec in find("table5").runs]


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert experiment.main(["--list", "--json"]) == 0
    listed = {one["name"]: one for one in json.loads(capsys.readouterr().out.splitlines()[-1])["experiments"]}
    assert (listed["table6"]["place"], listed["table6"]["rows"], listed["table6"]["runs"]) == ("Table 6", 6, 10)


TRAINED = """
import signal, sys
signal.signal(int(sys.argv[1]), lambda *_: sys.exit(75))
print("ready", flush=True)
while True:
    signal.pause()
"""
CALLER = """
import sys
from paper.launching import call
for number in sys.argv[2:]:
    print(call([sys.executable, "-c", sys.argv[1], number]), flush=True)
"""


def test_requests_to_stop_reach_the_training() -> None:
    """Schedulers send any of them; the command waits until what it started has saved and says how that ended."""
    numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
    words = [sys.executable, "-c", CALLER, TRAINED, *(str(int(number)) for number in numbers)]
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stdout is not None
        try:
            for number in numbers:
                assert process.stdout.readline() == "ready\n"
                process.send_signal(number)
                assert process.stdout.readline() == f"{EXIT_PREEMPTED}\n"
            assert process.wait(limit(60)) == 0
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
