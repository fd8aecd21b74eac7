"""kill -9 while an evaluation runs, then the same command again: the score file of one that was never stopped."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch.local import free_port
from pipeline.data.dataset import Dataset
from tests.pipeline.evaluation.nets_and_images import write_run

ROOT = Path(__file__).parents[3]
NAME = "multi-scale-train-00000100"
# The command itself; only the 30 s between two writes of the partial file are none.
SCRIPT = """
from pipeline import command, evaluate
from pipeline.evaluation import partial

partial.WRITE_SECONDS = 0.0
command.run(evaluate.main)
"""


def start(folder: Path, script: Path, ranks: int) -> list[subprocess.Popen[str]]:
    """The ranks, started without a launcher: torchrun's workers are in sessions of their own and outlive its kill -9."""
    arguments = [str(script), str(folder), "--split", "train", "--protocol", "multi-scale", "--threads", "1"]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "PYTHONPATH": str(ROOT)}
    sizes = {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
    return [
        subprocess.Popen(
            [sys.executable, *arguments], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            env={**os.environ, **shared, **sizes, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(ranks)
    ]  # fmt: skip


def finish(folder: Path, script: Path, ranks: int) -> None:
    for process in start(folder, script, ranks):
        _, said = process.communicate(timeout=300)
        assert process.returncode == 0, said


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_killed_and_started_again(few_photographs: Dataset, tmp_path: Path, ranks: int) -> None:
    script = tmp_path / "evaluate.py"
    script.write_text(SCRIPT)
    whole = write_run(tmp_path / "runs", "whole", few_photographs, arch="resnet32")
    killed = write_run(tmp_path / "runs", "killed", few_photographs, arch="resnet32")
    finish(whole, script, 1)
    partial, done = (killed / f"scores/{NAME}{end}" for end in (".partial.npz", ".npz"))
    processes = start(killed, script, ranks)
    try:
        deadline = time.monotonic() + 200
        while not partial.exists():
            assert processes[0].poll() is None and time.monotonic() < deadline, "it ended before it could be killed"
            time.sleep(0.01)
        time.sleep(random.uniform(0, 0.3))
    finally:
        for process in processes:
            process.kill()  # SIGKILL
        for process in processes:
            process.communicate()
    assert partial.exists() and not done.exists(), "killed in the middle"
    finish(killed, script, ranks)
    assert done.read_bytes() == (whole / f"scores/{NAME}.npz").read_bytes()
    assert not partial.exists()
