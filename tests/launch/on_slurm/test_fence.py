"""The batch script's watch over the lease, run by a real shell: a later attempt of the same job ends it, no other job does."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from launch.on_slurm.fence import batch_script_lines
from launch.ranks.failure import attempt
from pipeline.base.attempt import attempt_variables
from pipeline.base.exits import EXIT_FENCED
from pipeline.base.lease import FencedError, Lease
from tests.helpers import ROOT, alive, wait_for
from tests.patience import limit

LOOKS_OFTEN = """
import os, time
nap = time.sleep
def sleep(seconds):
    with open("looks", "a") as looks:
        print(os.getpid(), file=looks)
    nap(0.02)
time.sleep = sleep
"""


@contextmanager
def batch_script(folder: Path, *lines: str) -> Iterator[subprocess.Popen[bytes]]:
    """Attempt 1 of job 17: the watch over the lease in `folder`, which notes in the file `looks` each look, then `lines`."""
    (folder / "sitecustomize.py").write_text(LOOKS_OFTEN)
    names = {"SLURM_JOB_ID": "17", "SLURM_RESTART_COUNT": "1", "PYTHONPATH": f"{folder}:{ROOT}"}
    script = "\n".join([*batch_script_lines(folder), *lines])
    process = subprocess.Popen(["bash", "-c", script], cwd=folder, env={**os.environ, **names}, start_new_session=True)
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def looks(folder: Path) -> list[int]:
    """The process that looked, once for each look."""
    file = folder / "looks"
    return [int(line) for line in file.read_text().split()] if file.exists() else []


@pytest.mark.parametrize(
    ("holder", "restarts", "code"),
    [
        ("17", 2, -signal.SIGKILL),
        ("17", 1, 0),  # this attempt's own
        ("170", 2, 0),  # of another job, whose number begins with the same digits
        ("1", 2, 0),
    ],
)
def test_the_batch_script_ends_for_a_later_attempt_of_its_own_job(
    tmp_path: Path, holder: str, restarts: int, code: int
) -> None:
    Lease(tmp_path, attempt_variables(f"SLURM_JOB_ID={holder}", restarts, {})).release()
    # A script that must live ends by itself when the watch has looked three times.
    waits = 'until [ "$(cat looks 2>/dev/null | wc -l)" -gt 3 ]; do sleep 0.02; done'
    with batch_script(tmp_path, "sleep 1000000" if code else waits, "exit 0") as process:
        assert process.wait(timeout=limit(60)) == code


def test_the_batch_script_takes_its_srun_along(tmp_path: Path) -> None:
    """Its srun, so that it cannot cancel the step of the later attempt; what else it started is left to SLURM."""
    shutil.copy(shutil.which("sleep") or "sleep", tmp_path / "srun")
    started = "./srun 1000000 & sleep 1000000 & jobs -p >started; mv started children; wait"
    with batch_script(tmp_path, started) as process:
        wait_for(lambda: (tmp_path / "children").exists() and looks(tmp_path), "the watch")
        watch, srun, other = map(int, (tmp_path / "children").read_text().split())
        assert watch in looks(tmp_path)
        Lease(tmp_path, attempt_variables("SLURM_JOB_ID=17", 2, {})).release()
        assert process.wait(timeout=limit(60)) == -signal.SIGKILL
        wait_for(lambda: not alive(watch) and not alive(srun), "the end of the watch and of srun")
        assert alive(other)


def test_the_watch_ends_with_the_batch_script(tmp_path: Path) -> None:
    with batch_script(tmp_path, "sleep 1000000") as process:
        wait_for(lambda: looks(tmp_path), "the watch")
        watch = looks(tmp_path)[0]
        process.kill()
        wait_for(lambda: not alive(watch), "the end of the watch")


def test_the_watch_is_small() -> None:
    """One runs beside every batch script: without the imports of terminals, YAML, types and torch."""
    code = "import sys, launch.on_slurm.fence; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "pipeline.base.attempt" in loaded
    assert not {"rich", "yaml", "pydantic", "torch", "submitit", "dataclasses"} & set(loaded)


def test_a_fenced_rank_made_no_mistake_of_its_users() -> None:
    """Which would end the attempt that has replaced it, where both belong to one launch (Ray)."""

    def fenced() -> int:
        raise FencedError("another attempt has taken the run over")

    code, failure = attempt(0, fenced)
    assert code == EXIT_FENCED and failure is not None and failure.sentence.startswith("another attempt")
