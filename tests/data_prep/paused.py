"""data_prep/shard_imagenet.py that stands still in the middle of a shard: python -m tests.data_prep.paused GO COUNT ...

Once COUNT shards are finished, every worker waits between two images of its next one until the file GO is there. So a
test can kill, interrupt or overtake a preparation that is known to be at work, however fast or slow the machine is.
Where the environment has PAUSED_START, the second worker waits in its first imports until the file GO.started is there.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from data_prep import prepare, shard_imagenet
from data_prep.record import RECORDS
from data_prep.shard import ShardTask, Unreadable
from data_prep.workers import Advance
from pipeline.base.command import KEEPS, run

GO, COUNT, START = "PAUSED_UNTIL", "PAUSED_AFTER", "PAUSED_START"  # environment variables: the workers inherit them
work = prepare.shard_or_unreadable


def finished(workspace: Path) -> list[Path]:
    """The records of the finished shards in the working folder."""
    return list((workspace / RECORDS).glob("*/*.npz"))


def shard_or_unreadable(workspace: Path, task: ShardTask, advance: Advance) -> tuple[Unreadable, ...]:
    """What a worker does with a task."""

    def advance_and_wait(images: int, size: int) -> None:
        advance(images, size)
        while len(finished(workspace)) >= int(os.environ[COUNT]) and not Path(os.environ[GO]).exists():
            advance(0, 0)  # ends this worker where the preparation is being stopped
            time.sleep(0.01)

    return work(workspace, task, advance_and_wait)


def wait_if_second() -> None:
    """Called in a worker's first imports."""
    go = Path(os.environ[GO])
    try:
        go.with_suffix(".first").touch(exist_ok=False)
    except FileExistsError:
        go.with_suffix(".second").touch()
        while not go.with_suffix(".started").exists():
            time.sleep(0.01)


if __name__ == "__mp_main__" and START in os.environ:
    wait_if_second()

if __name__ == "__main__":
    from tests.data_prep import paused  # this module by the name that workers import it by

    os.environ |= {GO: sys.argv[1], COUNT: sys.argv[2]}
    prepare.shard_or_unreadable = paused.shard_or_unreadable
    run(lambda: shard_imagenet.main(sys.argv[3:]), KEEPS)
