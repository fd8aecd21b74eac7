"""One rank of launch/local.py: python -m launch.ranks.worker OPTIONS, with torchrun's names in the environment.

The launcher leaves everything that needs torch to its ranks, so the 5 s of that import are paid once, side by side.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from launch.ranks.failure import attempt, failure_of_hang
from launch.ranks.supervisor import report, report_activity
from launch.ranks.work import Training, Work, evaluation, split_arguments
from pipeline.base.command import print_json
from pipeline.base.layout import activity_of, rank_log
from pipeline.process.signals import end_on_request
from pipeline.process.watchdog import Hang


def run(argv: Sequence[str]) -> int:
    """Work as rank RANK; the exit code. What goes wrong is told to the supervisor and written to this rank's log."""
    rank = int(os.environ["RANK"])
    # Until the trainer receives these itself there is nothing to save: the same command goes on where it was.
    end_on_request()
    faulthandler.enable()
    faulthandler.register(signal.SIGQUIT, all_threads=True)
    log: Path | None = None

    def main() -> int:
        nonlocal log
        work, as_json = _work(argv)
        log = rank_log(work.folder, rank)
        log.parent.mkdir(parents=True, exist_ok=True)
        if rank > 0:
            _write_to(log)
        report_activity(activity_of(work.folder, rank))

        def on_hang(hang: Hang) -> None:
            report(failure_of_hang(hang, str(rank_log(work.folder, hang.ranks[0]))))

        code = work(on_hang)
        if as_json and rank == 0 and isinstance(work, Training):
            from pipeline.run.summary import summary

            print_json(summary(work.config, code))
        return code

    code, failure = attempt(rank, main)
    if failure:
        if log and failure.detail:
            with open(log, "a") as file:
                file.write(failure.detail)
        report(replace(failure, log=str(log or "")))
    return code


def _work(argv: Sequence[str]) -> tuple[Work, bool]:
    """What the command line asks for, and whether with --json. Imports torch."""
    from launch.local import options
    from pipeline.run.options import parse

    words, testing = split_arguments(argv)
    if testing is not None:
        return evaluation(testing), False  # pipeline.evaluate has a --json of its own
    config, own = parse(options(), words)
    return Training(config), own.json


def _write_to(log: Path) -> None:
    """From here on this rank's output, also that of machine code, goes to its log."""
    sys.stdout.flush()
    sys.stderr.flush()
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, sys.stdout.fileno())
    os.dup2(descriptor, sys.stderr.fileno())
    os.close(descriptor)


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
