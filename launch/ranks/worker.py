"""One rank of launch/local.py: python -m launch.ranks.worker OPTIONS, with torchrun's names in the environment.

The launcher leaves everything that needs torch to its ranks, so that all of them import it side by side, in 5 s.
"""

from __future__ import annotations

from pipeline.base.output import prepare
from pipeline.base.stopping import end_on_request

if __name__ == "__main__":
    prepare()
    # Until the trainer receives these itself there is nothing to save: the same command goes on where it was.
    end_on_request()

import faulthandler
import os
import signal
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from launch.local import COMMAND_LINE
from launch.ranks.command_line import read_work
from launch.ranks.failure import attempt, failure_of_hang
from launch.ranks.follow import send_output_to
from launch.ranks.supervisor import tell_launcher, tell_launcher_of_notes
from launch.ranks.work import Training
from pipeline.base.exits import EXIT_USER_ERROR
from pipeline.base.layout import activity_of, rank_log
from pipeline.base.leaving import leave
from pipeline.process.watchdog import Hang

PATIENCE = 20  # times 0.1 s


def main(argv: Sequence[str]) -> int:
    """Work as rank RANK; the exit code. The launcher is told of a failure, and this rank's log has its traceback."""
    rank = int(os.environ["RANK"])
    faulthandler.enable()
    faulthandler.register(signal.SIGQUIT, all_threads=True)
    log: Path | None = None
    made: list[Path] = []  # folders that this start makes

    def work_as_rank() -> int:
        nonlocal log
        asked = read_work(argv, COMMAND_LINE)
        assert asked, "the launcher itself answers --print-config"
        work, args = asked
        log = rank_log(work.folder, rank)
        made.extend(folder for folder in (log.parent, *log.parent.parents) if not folder.exists())
        log.parent.mkdir(parents=True, exist_ok=True)
        if rank > 0:
            send_output_to(log)
        tell_launcher_of_notes(activity_of(work.folder, rank))

        def on_hang(hang: Hang) -> None:
            tell_launcher(failure_of_hang(hang, str(rank_log(work.folder, hang.ranks[0]))))

        code = work(on_hang)
        if rank == 0 and isinstance(work, Training) and args.json:  # pipeline.evaluate has a --json of its own
            work.print_summary(code)
        return code

    code, failure = attempt(rank, work_as_rank)
    if failure and code == EXIT_USER_ERROR and log:
        leave_nothing(log, made)
    if failure:
        if log and failure.detail:
            with suppress(OSError), open(log, "a", encoding="utf-8") as file:  # the launcher is told all the same
                file.write(failure.detail)
        tell_launcher(replace(failure, log=str(log or "")))
    return code


def leave_nothing(log: Path, made: Iterable[Path]) -> None:
    """Remove what a start that was refused has made: this rank's log and the folders, innermost first, where empty."""
    with suppress(OSError):
        if log.stat().st_size == 0:
            log.unlink()
    for _ in range(PATIENCE):  # another rank's log may still be there
        with suppress(OSError):
            for folder in made:
                if folder.exists():
                    folder.rmdir()
            return
        time.sleep(0.1)


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
