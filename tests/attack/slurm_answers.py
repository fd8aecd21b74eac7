"""SLURM's commands answer rubbish, fail or hang: a launcher says one sentence, or goes by what it can read.

A folder of stand-ins begins PATH: they are a broken site, which no real SLURM can be made to be.
"""

from __future__ import annotations

import contextlib
import io
import os
import traceback
from collections.abc import Callable
from pathlib import Path
from random import Random
from unittest.mock import patch

from launch import slurm_command, status
from launch.on_slurm import scheduler
from launch.on_slurm.allocation import Allocation
from launch.on_slurm.visibility import check_shared
from pipeline.base.command import describe_user_error
from tests.attack.attack import Attack, Outcome

TRUE = {
    "partition": "PartitionName=gpu AllowAccounts=ALL Default=YES MaxNodes=UNLIMITED MaxTime=1-00:00:00 TotalNodes=4",
    "node": "NodeName=n1 Arch=x86_64 NodeHostName=n1 OS=Linux 6.1 RealMemory=4000 Partitions=gpu",
    "job": "JobId=7 JobName=run JobState=RUNNING Reason=None Restarts=1 Requeue=1",
    "sbatch": "Submitted batch job 77",
}
WORDS = (
    "",
    "None",
    "(null)",
    "-1",
    "9" * 30,
    "1e9",
    "²",
    "UNLIMITED",
    "Partition_Limit",
    "=",
    "\0",
    "<html>",
    "é" * 5000,
)


def answer(random: Random) -> tuple[bytes, str]:
    """What a stand-in prints, drawn: one of SLURM's answers, harmed; and how it ends, as a line of shell."""
    line = random.choice([*TRUE.values()])
    for _ in range(random.randrange(3)):
        parts = line.split(" ")
        at = random.randrange(len(parts))
        parts[at] = random.choice((parts[at].partition("=")[0] + "=" + random.choice(WORDS), random.choice(WORDS)))
        line = " ".join(parts)
    text = (line + "\n").encode() * random.choice((0, 1, 1, 1, 3))
    if random.random() < 0.3:
        text = text[: random.randrange(len(text) + 1)] + random.randbytes(random.randrange(200))
    end = random.choice(("exit 0", "exit 0", "exit 0", "exit 1", "kill -SEGV $$", "echo Unable to contact >&2; exit 1"))
    return text, "exec sleep 60" if random.random() < 0.02 else end


def stand_in(folder: Path, name: str, random: Random) -> None:
    text, end = answer(random)
    (folder / f"{name}.answer").write_bytes(text)
    (folder / name).write_text(f"#!/bin/sh\ncat {folder}/{name}.answer\n{end}\n")
    (folder / name).chmod(0o755 if random.random() > 0.02 else 0o644)


def attempts(folder: Path) -> dict[str, Callable[[], object]]:
    """What asks SLURM, by what it is for."""
    run = folder / "run"
    (run / "slurm").mkdir(parents=True)
    (run / "slurm" / "7_submission.sh").touch()
    words = ["--name", "a", "--folder", str(folder / "a"), "--assume-shared", "--partition", "gpu", "--", "true"]
    return {
        "partition": lambda: scheduler.check_partition(Allocation(nodes=2, partition="gpu")),
        "default partition": lambda: scheduler.check_partition(Allocation(nodes=2)),
        "shared": lambda: check_shared(Allocation(), [Path("/proc/self")]),
        "status": lambda: status.main([str(run), "--json"]),
        "submission": lambda: slurm_command.main(words),
    }


def attack(random: Random, tries: int, folder: Path, outcome: Outcome) -> None:
    (commands := folder / "bin").mkdir()
    calls = attempts(folder)
    path = {"PATH": f"{commands}:/usr/bin:/bin"}
    with patch.dict(os.environ, path), patch.object(scheduler, "TIMEOUT_SECONDS", 1.0):
        for number in range(tries):
            for name in ("scontrol", "sbatch", "srun"):
                stand_in(commands, name, random)
            hangs = (commands / "sbatch").read_text()  # sbatch may wait for its controller, as long as its user likes
            (commands / "sbatch").write_text(hangs.replace("exec sleep 60", "exit 1"))
            what = random.choice(list(calls))
            try:
                with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                    calls[what]()
                outcome.right("went on")
            except Exception as error:
                sentence = describe_user_error(error)
                if sentence and "\n" not in sentence:
                    outcome.right("refused")
                else:
                    answers = {file.name: file.read_bytes()[:300] for file in commands.glob("*.answer")}
                    outcome.wrong(f"try {number}, {what}: {answers}: {traceback.format_exc()}")


SLURM_ANSWERS = Attack(
    name="slurm-answers", what="SLURM's commands answer rubbish, fail or hang", run=attack, short=100, full=1500
)
