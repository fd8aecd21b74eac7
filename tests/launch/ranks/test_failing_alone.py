"""A rank that fails while the others wait for it, where closing the group never ends, as with NCCL: the launcher says why."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import ROOT
from tests.launch.launchers import environment
from tests.patience import limit

LAUNCHER = """
import os, sys
import launch.ranks.supervisor as its
from launch.local import rank_environment, reserve_port
from pipeline.base import command
its.REQUEST_AFTER_SECONDS, its.FORCE_AFTER_SECONDS = 0.3, 0.6  # for the rank that is left
program, *words = sys.argv[1:]
with reserve_port() as port:
    environments = [{**os.environ, **rank_environment(rank, 2, port)} for rank in range(2)]
    command.run(lambda: its.supervise([[sys.executable, "-c", program, *words]] * 2, environments))
"""

# launch/ranks/worker.py as a rank whose communicators, closed or destructed, wait for ever. Rank 1 is out of memory in its
# third update, rank 0 waits in a collective, in a kernel which no exception ends.
RANK = """
import atexit, runpy, threading
import torch, torch.distributed as dist
from pipeline.loop.trainer import Trainer
for_ever = threading.Event().wait
dist.destroy_process_group = for_ever
atexit.register(for_ever)
update = Trainer.update
def failing(trainer, *batch):
    if trainer.progress.iteration == 2:
        if trainer.world.rank == 0: for_ever()
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    update(trainer, *batch)
Trainer.update = failing
runpy.run_module("launch.ranks.worker", run_name="__main__", alter_sys=True)
"""


@pytest.mark.costly("each of two ranks imports everything, as a user's do")
def test_the_error_of_a_rank_that_fails_alone_is_the_jobs(tmp_path: Path, tiny: Path) -> None:
    words = ["--config", str(tiny), "--runs", str(tmp_path), "--name", "run"]
    done = subprocess.run(
        [sys.executable, "-c", LAUNCHER, RANK, *words],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=limit(60),
        check=False,
    )
    assert done.returncode == 1, done.stderr
    error = done.stderr.splitlines()[-1]
    assert error.startswith(
        "error: rank 1 failed first: OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB"
    )
    assert "in failing" in done.stderr  # its traceback
