"""The process that feeds MLflow beside a run: python -m pipeline.tracking.feeder FOLDER CLOSE_SECONDS PARENT

It is a process, not a thread: while a thread imports MLflow (5 s of Python), every operator of a training step waits for
the interpreter lock (bench/tracking.py). When its standard input closes, or its parent, the process PARENT, is gone, the
feeder delivers the rest, for at most CLOSE_SECONDS, and ends: MLflow then shows a killed run as KILLED. An MLflow that is
only busy is asked again within that time; one that is dead or refuses is not.
Messages for the user go to standard output; everything else, MLflow's own output included, goes to the log, without secrets.
Another MLflow than the run's comes by the environment, where others do not see it (`ps`).
"""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from pipeline.base.lease import is_held
from pipeline.base.lock import NoLocksError, lock
from pipeline.base.output import prepare
from pipeline.base.redaction import without_secrets
from pipeline.tracking.delivery import Delivery
from pipeline.tracking.environment import ENVIRONMENT, URI_VARIABLE, is_passing, sentence

POLL_SECONDS = 2.0
LONGEST_PAUSE_SECONDS = 60.0
# The user hears of an outage only after so many failures: shorter ones (a busy database, a server's restart) pass unnoticed.
FAILURES_BEFORE_NOTICE = 3


def main(folder: Path, close_seconds: float, parent: int, uri: str | None = None) -> int:
    """Feed MLflow until standard input closes or the process `parent` is gone; return 0 if everything was delivered."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    os.nice(5)  # never run before a training thread on a busy CPU
    notify, closing = _claim_stdout(), threading.Event()
    threading.Thread(target=_watch_parent, args=(closing, close_seconds, parent), daemon=True).start()
    _lock(closing)
    delivery, failures, seen = Delivery(folder, notify, uri), 0, ""
    while True:
        last = closing.is_set()
        try:
            delivery.deliver(killed=last and not is_held(folder))
            if failures >= FAILURES_BEFORE_NOTICE:
                notify("MLflow responds again and has all metrics")
            failures = 0
        except Exception as error:
            failures += 1
            text = sentence(error)
            again = is_passing(error)
            _log(text if text == seen else traceback.format_exc())
            seen = text
            if failures == FAILURES_BEFORE_NOTICE:
                notify(f"MLflow does not accept the metrics ({text}): they are kept, and sent when it does")
        pause = min(POLL_SECONDS * 2 ** min(failures, 10), LONGEST_PAUSE_SECONDS)
        if not last:
            closing.wait(pause)
        elif failures and again:
            time.sleep(pause)  # the alarm ends it in time
        else:
            return min(failures, 1)


def _claim_stdout() -> Callable[[str], None]:
    """Reserve standard output for messages to the user; send what libraries print to the log, which is standard error."""
    stdout = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1, encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def notify(text: str) -> None:
        try:
            stdout.write(without_secrets(text) + "\n")
        except OSError:  # the reader is gone
            _log(text)

    return notify


def _watch_parent(closing: threading.Event, close_seconds: float, parent: int) -> None:
    """Set `closing` when standard input has data or ends, or `parent` is gone; end this process `close_seconds` later."""
    # The pipe alone is not enough: a forked sibling may hold it open. The parent passes its process id, because it may be
    # gone before this process can ask for it.
    while os.getppid() == parent:
        if select.select([sys.stdin], [], [], POLL_SECONDS)[0]:
            break
    closing.set()
    signal.setitimer(signal.ITIMER_REAL, max(close_seconds, 1e-3))  # SIGALRM ends the process wherever it hangs


def _lock(closing: threading.Event) -> None:
    """Wait until no other process feeds MLflow from this folder: the feeder of the last attempt may still be delivering."""
    with suppress(NoLocksError):
        while not lock(sys.stderr):
            if closing.wait(POLL_SECONDS):
                time.sleep(POLL_SECONDS)


def _log(text: str) -> None:
    print(time.strftime("%Y-%m-%d %H:%M:%S"), text.rstrip(), file=sys.stderr, flush=True)


if __name__ == "__main__":
    prepare()
    sys.exit(main(Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]), os.environ.pop(URI_VARIABLE, None)))
