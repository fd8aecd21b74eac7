"""The end of an attempt on SLURM that did not finish its work: what failed first, and whether the job starts again.

The batch script runs this when its srun has ended with an error: python -m launch.on_slurm.ending FOLDER --code N
--limit N. A rank that was killed could note nothing itself; srun knows, and says so in the job's log.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from launch.on_slurm.attempt import restarts
from launch.on_slurm.scheduler import scontrol
from launch.ranks.failure import NO_RANK, Failure, cause, note, read_notes
from pipeline.base import command
from pipeline.base.exits import EXIT_FAILED, EXIT_FENCED, EXIT_INTERRUPTED, EXIT_PREEMPTED, EXIT_USER_ERROR
from pipeline.base.json_text import parse_json
from pipeline.base.layout import CHECKPOINTS, JOB_FAILURES, LOGS, job_log, newest_checkpoint
from pipeline.base.parsing import CommandParser
from pipeline.base.stopping import ASKING

EXAMPLE = "python -m launch.on_slurm.ending runs/resnet152-seed0/slurm --code 137 --limit 3"
# How long a controller that does not answer (a restart, a failover) is asked again; the job's nodes wait with it.
PATIENCE_SECONDS, PAUSE_SECONDS = 300.0, 5.0
# A rank that was asked to stop before it could answer (its imports take seconds) ends so: preempted, not crashed.
REQUESTED = (EXIT_PREEMPTED, *(128 + number for number in ASKING if number != signal.SIGINT))
# "srun: error: node1: task 0: Killed", "srun: error: node2: tasks 1-3: Exited with exit code 1"
_SRUN = re.compile(r"^srun: error: (\S+): tasks? (\d+)[\d,-]*: (.+)$", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How one attempt of a job ended. `time`: Unix seconds; `checkpoint`: iteration of the newest there was, 0 for none."""

    attempt: int
    time: float
    code: int
    sentence: str
    checkpoint: int
    requeued: bool


def batch_script_lines(folder: Path, limit: int) -> list[str]:
    """Shell lines that run this module when the batch script ends. `folder`: submitit's, of one run."""
    quoted = shlex.quote(str(folder))
    command = f"{shlex.quote(sys.executable)} -m launch.on_slurm.ending {quoted} --limit {limit}"
    return [
        f'log_start=$(cat {quoted}/"{job_log("${SLURM_JOB_ID}")}" 2>/dev/null | wc -c)',
        "after_the_end() {",
        "  code=$?",
        "  kill %1 2>/dev/null",
        f'  [ "$code" -eq 0 ] || {command} --code "$code" --log-start "$log_start"',
        "}",
        "trap after_the_end EXIT",
    ]


def run(argv: Sequence[str] | None = None) -> int:
    parser = CommandParser("Notes why an attempt of a SLURM job failed, and may start the job again.", EXAMPLE)
    parser.add_argument("folder", type=Path, help="submitit's folder in the run folder")
    parser.add_argument("--code", type=int, required=True, help="exit code of srun")
    parser.add_argument("--limit", type=int, required=True, help="failures in a row, without a newer checkpoint")
    parser.add_argument("--log-start", type=int, default=0, help="size of the job's log when this attempt began, bytes")
    args = parser.parse_args(argv)
    job, attempt = os.environ["SLURM_JOB_ID"], restarts()
    try:
        # Else it was cancelled, requeued or preempted already, or a node that was cut off came back late.
        if is_running(job, attempt):
            close_attempt(args.folder, job, attempt, args.code, args.log_start, args.limit)
    except ControllerError as error:
        print(f"error: {error}: unless launch/status.py shows the job, start the same command again", file=sys.stderr)
        return EXIT_FAILED
    return 0


def close_attempt(folder: Path, job: str, attempt: int, code: int, log_start: int, limit: int) -> None:
    """Say what ended this attempt, note it where it was a crash, and put the job back into the queue where that may help.

    Arguments as on the command line. Raises ControllerError.
    """
    logs = folder.parent / LOGS
    log = folder / job_log(job)
    first = explain(logs, f"{job}.{attempt}", log, log_start, code)
    if first.code == EXIT_INTERRUPTED:  # SIGINT is its user's wish, as Ctrl-C is: the scheduler sends other signals
        print(
            f"attempt {attempt} was interrupted; the job ends here: submit it again to go on",
            file=sys.stderr,
            flush=True,
        )
        return
    if first.code in REQUESTED:
        print(f"attempt {attempt} was asked to stop; the job is requeued", file=sys.stderr, flush=True)
        requeue(job, attempt)
        return
    history = folder / f"{job}{JOB_FAILURES}"
    earlier = read_endings(history)
    checkpoint, _ = newest_checkpoint(folder.parent / CHECKPOINTS) or (0, None)
    code, sentence = first.code, f"{first.who}: {first.sentence}"
    again = starts_again(code, checkpoint, earlier, limit)
    now = time.time()
    ending = Ending(attempt=attempt, time=now, code=code, sentence=sentence, checkpoint=checkpoint, requeued=again)
    # First: the requeueing ends the batch script, and this process with it.
    try:
        with open(history, "a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(ending)) + "\n")
    except OSError as error:  # a full disk: without the record, the attempts themselves are counted
        print(f"warning: {history} was not written ({error.strerror or error})", file=sys.stderr, flush=True)
        again = again and attempt < limit
    outcome = "the job is requeued" if again else "the job ends here"
    print(f"error: attempt {attempt} failed, {sentence}; {outcome}", file=sys.stderr, flush=True)
    if again:
        requeue(job, attempt)


def read_endings(history: Path) -> list[Ending]:
    """The attempts that ended so far. A line that is torn, by a kill or a full disk, counts as none."""
    endings = []
    for line in history.read_bytes().splitlines() if history.exists() else []:
        with suppress(ValueError, TypeError):
            endings.append(Ending(**parse_json(line)))
    return endings


def explain(logs: Path, attempt_name: str, log: Path, start: int, code: int) -> Failure:
    """What failed first in an attempt: as a rank noted it, or as srun saw it, which is then noted in that rank's name."""
    notes = read_notes(logs, attempt_name)
    with open(log, "rb") as file:
        file.seek(start)
        text = file.read().decode(errors="replace")
    seen = first_failure(text)
    if seen is None or (code == EXIT_USER_ERROR and not notes):
        # What ran before the ranks says its error as every command does.
        said = re.search(r"^error: (.+)$", text, re.MULTILINE)
        sentence = said[1] if said else f"ended with exit code {code}"
        seen = Failure(rank=NO_RANK, time=time.time(), code=code, sentence=sentence)
    if seen.code in (*REQUESTED, EXIT_INTERRUPTED):  # no failure to note: what other ranks say of it is its consequence
        return seen
    # A rank whose end srun saw first and that says itself why knows better; the others' ends may be its consequence.
    if notes and not seen.killed:
        return next((noted for noted in notes if noted.rank == seen.rank), cause(notes))
    job = attempt_name.partition(".")[0]
    note(seen, logs, attempt_name, str(log.with_name(job_log(job, max(seen.rank, 0)))))
    return seen


def first_failure(text: str) -> Failure | None:
    """The first end of a rank that srun reports in `text`, its log of one attempt; what it ended itself comes later."""
    if (found := _SRUN.search(text)) is None:
        return None
    node, rank, words = found[1], int(found[2]), found[3].removesuffix(" (core dumped)")
    signals = {signal.strsignal(number): number for number in signal.Signals}
    code, sentence = 1, f"{words[0].lower()}{words[1:]} on {node}"
    if number := signals.get(words):
        reason = " (the kernel does that when memory runs out)" if number == signal.SIGKILL else ""
        code, sentence = 128 + number, f"was killed by {number.name} on {node}{reason}"
    elif words == "Out Of Memory":
        code, sentence = 128 + signal.SIGKILL, f"ran out of memory on {node}: ask for more by mem_gb"
    elif exited := re.fullmatch(r"Exited with exit code (\d+)", words):
        code = int(exited[1])
    return Failure(rank=rank, time=time.time(), code=code, sentence=sentence)


def starts_again(code: int, checkpoint: int, earlier: Sequence[Ending], limit: int) -> bool:
    """Whether another attempt may help: at most `limit` in a row that saved nothing new.

    Not after 2 (a mistake of its user) and 76 (a later attempt has taken over). SLURM itself requeues a job whose node is
    lost.
    """
    without_progress = sum(ending.checkpoint == checkpoint for ending in earlier)
    return code not in (EXIT_USER_ERROR, EXIT_FENCED) and without_progress < limit


class ControllerError(Exception):
    """SLURM's controller has not answered, or not done what it was asked, for PATIENCE_SECONDS."""


def is_running(job: str, attempt: int) -> bool:
    """Whether SLURM takes this attempt for the job's present one, and for running. Raises ControllerError."""
    end = time.monotonic() + PATIENCE_SECONDS
    while True:
        shown = scontrol("show", "job", job, "--oneliner")
        if shown.stdout.strip() or "Invalid job id" in shown.stderr:
            return {"JobState=RUNNING", f"Restarts={attempt}"} <= set(shown.stdout.split())
        _pause(end, f"SLURM's controller did not say what job {job} does", shown)


def requeue(job: str, attempt: int) -> None:
    """Put the job back into the queue, from this attempt and from no later one. Raises ControllerError."""
    end = time.monotonic() + PATIENCE_SECONDS
    while is_running(job, attempt):  # asked again each time: a request without an answer may have been heard
        done = scontrol("requeue", job)
        if done.returncode == 0:
            return
        _pause(end, f"SLURM did not requeue job {job}", done)


def _pause(end: float, what: str, done: subprocess.CompletedProcess[str]) -> None:
    """Wait before the next try; raises ControllerError where it would be after `end` (of time.monotonic)."""
    if time.monotonic() + PAUSE_SECONDS > end:
        reason = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
        raise ControllerError(f"{what} for {PATIENCE_SECONDS:g} s ({reason})")
    time.sleep(PAUSE_SECONDS)


if __name__ == "__main__":
    command.run(run, kept=True)
