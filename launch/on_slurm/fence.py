"""The end of an attempt that was cut off: SLURM has started the job anew elsewhere, and the network comes back.

The later attempt takes the run folder's lease (pipeline/base/lease.py), and from then on the older one can publish nothing.
What is left to do is to end it, before its srun sees how its ranks end: once the network is back that srun would cancel
the step of the later attempt, since both are called JOB.0. So the batch script watches the lease too.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from pipeline.base.exits import EXIT_FENCED
from pipeline.base.layout import LEASE

LOOK_SECONDS = 1.0
# The batch script looks as often and comes first: its srun must not notice how the ranks end.
LOOKS_BEFORE_THE_END = 3


def superseded(folder: Path, job: str, restarts: int) -> int | None:
    """The later attempt of SLURM's job `job` that holds the lease of the run `folder`, where there is one."""
    # Opened anew each time: that is what makes a network file system ask its server.
    with suppress(OSError, ValueError, KeyError, TypeError):
        lease = json.loads((folder / LEASE).read_text())
        if lease["job"] == f"SLURM_JOB_ID={job}" and int(lease["attempt"]) > restarts:
            return int(lease["attempt"])
    return None


def watch(folder: Path, job: str, restarts: int, end: Callable[[int], object] = os._exit) -> None:
    """Look at the lease in the background from now on; `end` is called, without a last word, when it is a later attempt's."""

    def look() -> None:
        seen = 0
        while seen < LOOKS_BEFORE_THE_END:
            time.sleep(LOOK_SECONDS)
            later = superseded(folder, job, restarts)
            seen += later is not None
        print(f"attempt {restarts} of job {job} ends: attempt {later} has taken over", file=sys.stderr, flush=True)
        end(EXIT_FENCED)

    threading.Thread(target=look, name="fence", daemon=True).start()


def batch_script_lines(folder: Path) -> list[str]:
    """The same watch as shell lines of the batch script: it kills its srun and itself."""
    lease = shlex.quote(str(folder / LEASE))
    return [
        "watch_lease() {",
        "  while sleep 1; do",
        f"    holder=$(tr -d '{{}}\"' 2>/dev/null <{lease} | tr , '\\n')",
        '    held_by=$(echo "$holder" | sed -n "s/^ *job: *//p")',
        '    [ "$held_by" = "SLURM_JOB_ID=$SLURM_JOB_ID" ] || continue',
        '    attempt=$(echo "$holder" | sed -n "s/^ *attempt: *//p")',
        '    if [ "${attempt:-0}" -gt "${SLURM_RESTART_COUNT:-0}" ]; then',
        "      pkill -KILL -P $$ -x srun; kill -KILL $$",
        "    fi",
        "  done",
        "} 2>/dev/null",
        "watch_lease &",
    ]
