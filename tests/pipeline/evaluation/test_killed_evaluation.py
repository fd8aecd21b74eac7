"""kill -9 in the middle of an evaluation, then the same command again: the score file of one that was never stopped."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from launch.local import rank_environment
from pipeline.data.dataset import Dataset
from tests.helpers import ROOT, wait_for
from tests.patience import limit
from tests.pipeline.evaluation.nets_and_images import write_run

NAME = "multi-scale-train-00000100"
# The command itself; only the 30 s between two writes of the partial file are none, and it stands still after STOP of them.
SCRIPT = """
import os, time
from pathlib import Path
from pipeline.base import command
from pipeline import evaluate
from pipeline.evaluation import partial

written = 0
write = partial.PartialScores._write

def write_and_stop(self):
    global written
    write(self)
    written += 1
    while written == int(os.environ["STOP"]):
        Path(os.environ["STOPPED"]).touch()
        time.sleep(1)

partial.WRITE_SECONDS = 0.0
partial.PartialScores._write = write_and_stop
command.run(evaluate.main)
"""


def start(folder: Path, script: Path, ranks: int, port: int, stop: int = 0) -> list[subprocess.Popen[str]]:
    """The ranks, started without a launcher: torchrun's workers are in sessions of their own and outlive its kill -9."""
    arguments = [str(script), str(folder), "--split", "train", "--protocol", "multi-scale", "--threads", "1"]
    shared = {"PYTHONPATH": str(ROOT), "STOP": str(stop), "STOPPED": str(script.with_suffix(".stopped"))}
    return [
        subprocess.Popen(
            [sys.executable, *arguments], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            env={**rank_environment(rank, ranks, port), **shared},
        )
        for rank in range(ranks)
    ]  # fmt: skip


def finish(folder: Path, script: Path, ranks: int, port: int) -> None:
    for process in start(folder, script, ranks, port):
        _, said = process.communicate(timeout=limit(250))
        assert process.returncode == 0, said


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_killed_and_started_again(few_of_ten_classes: Dataset, tmp_path: Path, port: int, ranks: int) -> None:
    script = tmp_path / "evaluate.py"
    script.write_text(SCRIPT)
    whole = write_run(tmp_path / "runs", "whole", few_of_ten_classes, arch="resnet32")
    killed = write_run(tmp_path / "runs", "killed", few_of_ten_classes, arch="resnet32")
    finish(whole, script, 1, port)
    partial, done = (killed / f"scores/{NAME}{end}" for end in (".partial.npz", ".npz"))
    processes = start(killed, script, ranks, port, stop=3 - ranks)
    stopped = script.with_suffix(".stopped")
    try:
        wait_for(lambda: stopped.exists() or processes[0].poll() is not None, "an evaluation in the middle", 200)
    finally:
        for process in processes:
            process.kill()  # SIGKILL
        said = [process.communicate()[1] for process in processes]
    assert partial.exists() and not done.exists(), ("it was to be killed in the middle", said)
    finish(killed, script, ranks, port)
    assert done.read_bytes() == (whole / f"scores/{NAME}.npz").read_bytes()
    assert not partial.exists()
