"""What listens while a training runs: exactly what docs/clusters.md says, for each launcher of this machine."""

from __future__ import annotations

import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.helpers import wait_for
from tests.launch.launchers import environment, script
from tests.listening import documented, family, places
from tests.patience import limit

ENDLESS = ["--iterations", "1000000", "--evaluation.every", "1000000", "--checkpoint.every", "1000000"]
TORCHRUN = [
    "-m",
    "torch.distributed.run",
    "--nproc-per-node",
    "2",
    "--rdzv-backend",
    "c10d",
    "--rdzv-endpoint",
    "localhost:0",
]


def check(row: str, command: list[str], config: Path, folder: Path, extra: dict[str, str] | None = None) -> None:
    """Train, look where the command's processes listen, and compare with the row of the docs."""
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(
            [*command, "--config", str(config), "--name", "run", *ENDLESS],
            cwd=folder,
            env=environment(extra),
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    metrics = folder / "runs" / "run" / "metrics.jsonl"
    everyone: list[int] = []
    try:
        wait_for(lambda: process.poll() is not None or metrics.exists(), "metrics", 250)
        assert process.poll() is None, (folder / "log").read_text()
        everyone = family(process.pid)
        assert places(everyone) == documented(row)
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(limit(60))
        for pid in everyone:
            with suppress(psutil.NoSuchProcess):
                psutil.Process(pid).kill()


@pytest.mark.costly("each of two ranks imports everything, as a user's do")
def test_several_ranks_of_this_machine(tmp_path: Path, tiny: Path) -> None:
    check("launch/local.py --procs 8", [*script("local.py"), "--procs", "2"], tiny, tmp_path)


@pytest.mark.slow
def test_one_rank(tmp_path: Path, tiny: Path) -> None:
    check("python -m pipeline.train", [sys.executable, "-m", "pipeline.train"], tiny, tmp_path)


@pytest.mark.slow
def test_torchrun(tmp_path: Path, tiny: Path) -> None:
    check("torchrun", [sys.executable, *TORCHRUN, "-m", "pipeline.train"], tiny, tmp_path)


@pytest.mark.cluster
def test_ray_that_is_started_here(tmp_path: Path, tiny: Path) -> None:
    home = {"HOME": str(tmp_path), "RAY_worker_niceness": "0"}  # for a token file of its own
    check("launch/ray_train.py", [*script("ray_train.py"), "--workers", "2"], tiny, tmp_path, home)
