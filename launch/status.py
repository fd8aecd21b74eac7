"""How a run is doing: its job in SLURM, its progress, its last errors and the end of its log.

python launch/status.py resnet152-seed0
"""

from __future__ import annotations

from pipeline.base.starting import begin

if __name__ == "__main__":  # before the imports below, which take longer
    begin("")

import math
import re
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from launch.on_slurm.allocation import has_slurm
from launch.on_slurm.scheduler import number, show
from launch.ranks.failure import Failure, cause, read_all_notes
from pipeline.base import command
from pipeline.base.command import UserError
from pipeline.base.entries import check_entries
from pipeline.base.layout import CONFIG, LOGS, METRICS, SLURM, activity_of, job_log, job_script, jobs_in, rank_log
from pipeline.base.lease import is_held
from pipeline.base.output import reader_has_gone
from pipeline.base.parsing import CommandParser
from pipeline.base.regular import open_regular
from pipeline.base.tables import print_json, print_table
from pipeline.meter.usage import Usage, usage_of
from pipeline.process.notes import Note

if TYPE_CHECKING:  # it imports torch
    from pipeline.run.config import Config

FOLLOW_SECONDS = 10.0
LOG_BYTES, LOG_LINES = 4000, 10
ACTIVE = {"PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED", "REQUEUED", "REQUEUE_HOLD", "PREEMPTED"}


@dataclass(frozen=True, kw_only=True)
class Status:
    """One run, as its folder and SLURM show it.

    `images_per_second`: in the last log interval; `left_seconds`: at that rate; `slowest`: the rank that held the others up
    most in it, in words. None where unknown. `asked`: what the latest job's script asks of sbatch.
    """

    name: str
    jobs: dict[str, str]  # job id -> state in SLURM's words
    restarts: int
    asked: list[str]
    iteration: int
    iterations: int
    images_per_second: float | None
    left_seconds: float | None
    slowest: str | None
    epoch: str | None  # `3.2 of 90`; None where the dataset's manifest is not at hand
    errors: list[Failure]  # the cause of each attempt that failed, oldest first
    log: Path | None
    usage: Usage | None  # None where nothing was sampled
    held: bool  # a process is writing the run, whatever launcher started it

    @property
    def active_jobs(self) -> list[str]:
        """The jobs that are in SLURM's queue or on its nodes."""
        return [job for job, state in self.jobs.items() if state.split()[0] in ACTIVE]

    @property
    def over(self) -> bool:
        finished = 0 < self.iterations <= self.iteration  # 0: not begun, or no training
        return finished or not (self.active_jobs or self.held)


def main(argv: Sequence[str] | None = None) -> int:
    parser = CommandParser("Shows how a run is doing.", "python launch/status.py resnet152-seed0")
    parser.add_argument("name", help="the run's name, or its folder")
    parser.add_argument("--runs", default="runs", help="the folder that holds the run folders (default: runs)")
    parser.add_argument("--follow", action="store_true", help=f"again every {FOLLOW_SECONDS:g} s until the run is over")
    parser.add_json_option()
    args = parser.parse_args(argv)
    folder = Path(args.name) if _is_known(Path(args.name)) else Path(args.runs) / args.name
    if not _is_known(folder):
        raise UserError(f"there is no run in {folder}: give its name and --runs, or its folder")
    while True:
        status = read(folder)
        show_status(status)
        if not args.follow or status.over or reader_has_gone():
            break
        time.sleep(FOLLOW_SECONDS)
    if args.json:
        print_json(figures(status))
    return 0


def _is_known(folder: Path) -> bool:
    """Whether `folder` is a run folder, or one that jobs were submitted from."""
    return (folder / CONFIG).exists() or (folder / SLURM).exists()


def read(folder: Path) -> Status:
    """Read a run folder, and ask SLURM about its jobs where there is a SLURM."""
    from pipeline.run.options import load
    from pipeline.tracking.figures import seconds_left
    from pipeline.tracking.journal import read_metrics

    check_entries(folder)
    config = load(folder / CONFIG) if (folder / CONFIG).exists() else None
    records = read_metrics(folder / METRICS) if (folder / METRICS).exists() else []
    training = [record for record in records if record.kind == "train"]
    iteration = max((record.iteration for record in records), default=0)
    rate = training[-1].values.get("images_per_second") if training else None
    left = seconds_left(iteration, config.iterations, config.batch, rate) if config and rate else None
    jobs, restarts = _jobs(folder)
    notes = read_all_notes(folder / LOGS)
    logs = [*(folder / SLURM).glob(job_log("*")), *filter(Path.exists, [rank_log(folder, 0)])]
    return Status(
        name=folder.name,
        jobs=jobs,
        restarts=restarts,
        asked=_asked(folder, list(jobs)),
        iteration=iteration,
        iterations=config.iterations if config else 0,
        images_per_second=rate,
        left_seconds=left,
        slowest=_slowest(folder, training[-1].values) if training else None,
        epoch=_epoch(config, iteration) if config else None,
        errors=[cause(failures) for _, failures in sorted(notes.items(), key=lambda item: item[1][0].time)],
        log=max(logs, key=lambda path: path.stat().st_mtime, default=None),
        usage=usage_of(folder),
        held=is_held(folder),
    )


def show_status(status: Status) -> None:
    columns = ("run", "job", "restarts", "iteration", "images/s", "left")
    job = ", ".join(f"{job_id} {state}" for job_id, state in status.jobs.items()) or "-"
    rate = f"{status.images_per_second:,.0f}" if status.images_per_second else "-"
    left = "-" if status.left_seconds is None or status.over else duration(status.left_seconds)
    progress = f"{status.iteration:,} of {status.iterations:,}"
    progress += f" (epoch {status.epoch})" if status.epoch else ""
    print_table(status.name, columns, [(status.name, job, status.restarts, progress, rate, left)])
    if status.asked:
        print(f"asked of sbatch: {' '.join(status.asked)}")
    if status.slowest and not status.over:
        print(f"slowest: {status.slowest}")
    if status.usage:
        print(f"energy: {status.usage}")
    for failure in status.errors[-3:]:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(failure.time))
        print(f"{when} {failure.who}: {failure.sentence}  (log: {failure.log})")
    if status.log:
        print(f"\nThe end of {status.log}:")
        with open_regular(status.log) as file:
            file.seek(max(0, file.seek(0, 2) - LOG_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
        print("\n".join(f"  {line}" for line in lines[-LOG_LINES:]), flush=True)


def figures(status: Status) -> dict[str, object]:
    values = {**vars(status), "active_jobs": status.active_jobs}
    del values["log"], values["held"], values["usage"]
    used = status.usage.figures() if status.usage else {}
    return {**values, **used, "errors": [failure.sentence for failure in status.errors]}


def duration(seconds: float) -> str:
    days, rest = divmod(round(seconds), 86400)
    clock = f"{rest // 3600}:{rest % 3600 // 60:02d}:{rest % 60:02d}"
    return f"{days} d {clock}" if days else clock


def _epoch(config: Config, iteration: int) -> str | None:
    """Where a dataset on this machine says how many training images it has."""
    from pipeline.data.dataset import Dataset
    from pipeline.data.storage import is_url
    from pipeline.tracking.figures import epoch_of

    with suppress(UserError, OSError, KeyError, ZeroDivisionError):
        if not is_url(config.data):
            images = Dataset(config.data).manifest.splits["train"].samples
            return epoch_of(iteration, config.iterations, config.batch, images)
    return None


def _slowest(folder: Path, values: Mapping[str, float]) -> str | None:
    """In words, from the metrics of a log point; None where there was one rank, or a value is missing."""
    known = [
        values.get(name, math.nan) for name in ("slowest_rank", "slowest_rank_ratio", "slowest_rank_data_wait_share")
    ]
    if not all(map(math.isfinite, known)):
        return None
    rank, ratio, share = int(known[0]), known[1], 100 * known[2]
    note = Note.read(activity_of(folder, rank))
    host = f" ({note.host})" if note else ""
    return f"rank {rank}{host}, {ratio:.2f} times the others' time for an update, {share:.0f}% of it waiting for data"


def _jobs(folder: Path) -> tuple[dict[str, str], int]:
    """The state of every job that was ever submitted for the run, and the restarts of the latest.

    submitit leaves a script of each job.
    """
    numbers = jobs_in(folder)
    if not has_slurm():
        return dict.fromkeys(numbers, "unknown (no SLURM on this machine)"), 0
    states, restarts = {}, 0
    for job_id in numbers:
        job, *_ = show("job", job_id) or [{"JobState": "forgotten by SLURM"}]
        state, reason = job.get("JobState") or "unknown (SLURM's answer names no state)", job.get("Reason", "None")
        restarts = number(job, "Restarts") or restarts
        if reason == "JobLaunchFailure":
            state += f" (a node could not start it: does every node see {folder}?)"
        elif state == "PENDING" and reason != "None":
            state += f" ({reason})"
        states[job_id] = state
    return states, restarts


def _asked(folder: Path, jobs: Sequence[str]) -> list[str]:
    """The options that the latest job's script has for sbatch, but for the names of its logs."""
    try:
        script = job_script(folder / SLURM, jobs[-1]).read_text(errors="replace") if jobs else ""
    except OSError:  # that of another user
        return []
    asked = re.findall(r"^#SBATCH --(.*)$", script, re.MULTILINE)
    return [one for one in asked if not one.startswith(("output=", "error=", "open-mode="))]


if __name__ == "__main__":
    command.run(main, "no longer followed: what runs goes on")
