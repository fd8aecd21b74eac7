"""The end of an attempt that was cut off: SLURM has started the job anew elsewhere, and the network comes back.

The later attempt takes the run folder's lease (pipeline/base/lease.py), and from then on the older one can publish nothing.
The older one must then end, before its srun sees how its ranks end: once the network is back that srun would cancel the step
of the later attempt, since both are called JOB.0. So the batch script watches the lease too, from beside its srun:
python -m launch.on_slurm.fence FOLDER SHELL. Imports light modules alone.
"""

from __future__ import annotations

import os
import shlex
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil

from launch.on_slurm.attempt import job_name, restarts
from pipeline.base.attempt import is_later, read_holder
from pipeline.base.exits import EXIT_FENCED

LOOK_SECONDS = 1.0
# The batch script looks as often and comes first: its srun must not notice how the ranks end.
LOOKS_BEFORE_THE_END = 3


def is_superseded(folder: Path) -> bool:
    """Whether a later attempt of this SLURM job holds the lease of the run `folder`."""
    with suppress(OSError):
        return is_later(read_holder(folder).attempts, than={job_name(): restarts()})
    return False


def watch(folder: Path, end: Callable[[int], object] = os._exit) -> None:
    """In a rank: look at the lease in the background from now on; `end` is called where the lease is a later attempt's."""

    def look() -> None:
        seen = 0
        while seen < LOOKS_BEFORE_THE_END:
            time.sleep(LOOK_SECONDS)
            seen += is_superseded(folder)
        print(f"attempt {restarts()} ends: a later attempt of the job has taken over", file=sys.stderr, flush=True)
        end(EXIT_FENCED)

    threading.Thread(target=look, name="fence", daemon=True).start()


def batch_script_lines(folder: Path) -> list[str]:
    """Shell lines that run this module beside the batch script's srun, as long as the batch script runs."""
    return [f"{shlex.quote(sys.executable)} -m launch.on_slurm.fence {shlex.quote(str(folder))} $$ &"]


def watch_script(folder: Path, shell: int) -> None:
    """Beside the batch script, which is the process `shell`: end it and its srun where the lease is a later attempt's.

    Returns when the batch script has ended.
    """
    while os.getppid() == shell:
        if is_superseded(folder):
            with suppress(psutil.NoSuchProcess):  # one has ended meanwhile: the next look finds the others
                script = psutil.Process(shell)
                for process in (*(child for child in script.children() if child.name() == "srun"), script):
                    process.kill()
        time.sleep(LOOK_SECONDS)


if __name__ == "__main__":
    watch_script(Path(sys.argv[1]), int(sys.argv[2]))
