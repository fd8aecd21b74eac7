"""Runs tasks in parallel processes with one progress bar. The results do not depend on the number of processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from ctypes import c_bool, c_int64
from itertools import islice
from multiprocessing import forkserver, resource_tracker, util
from typing import TypeVar

from pipeline.base.command import UserError
from pipeline.base.output import prepare
from pipeline.base.progress import Progress
from pipeline.base.stopping import blocked
from pipeline.base.temporary import short_temporary_folder

POLL_SECONDS = 0.2
SOCKET_ROOM = len("/pymp-12345678/listener-12345678")  # multiprocessing's names below the temporary folder

Advance = Callable[[int, int], None]  # counts (images, bytes) of work done
Task = TypeVar("Task")
Result = TypeVar("Result")


class StoppedError(Exception):
    """A worker was asked to stop between two images."""


class Counters:
    """The workers' progress, shared between processes, and whether they should stop.

    Only workers take the lock: one that is killed never gives it back.
    """

    def __init__(self, context: multiprocessing.context.BaseContext) -> None:
        self.images, self.bytes = context.RawValue(c_int64), context.RawValue(c_int64)
        self.stop = context.RawValue(c_bool)
        self._lock = context.Lock()

    def advance(self, images: int, size: int) -> None:
        """Count work done. Raises StoppedError when the run is being stopped."""
        if self.stop.value:
            raise StoppedError
        with self._lock:
            self.images.value += images
            self.bytes.value += size


_counters: Counters | None = None  # of this worker process, set once when it starts


def _start_worker(counters: Counters) -> None:
    global _counters
    prepare()
    _counters = counters
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)  # so that no worker goes on writing after its parent was killed

    threading.Thread(target=follow, daemon=True).start()


def _call(work: Callable[[Task, Advance], Result], task: Task) -> Result:
    assert _counters is not None
    return work(task, _counters.advance)


def run_tasks(
    work: Callable[[Task, Advance], Result],
    tasks: Iterable[Task],
    *,
    workers: int,
    total: int,
    description: str,
    preload: list[str],
) -> list[Result]:
    """Return `work(task, advance)` of every task, in the order in which they finish, computed by `workers` processes.

    One worker runs the tasks in this process; with several, at most two tasks per worker are held at once. `total`: images
    in the progress bar. `preload`: modules that the workers share from their start. An exception of `work` ends the run,
    after the other workers have stopped; UserError where the memory ran out.
    """
    with Progress(total, description, "images") as progress:
        try:
            if workers == 1:
                return _in_this_process(work, tasks, progress)
            return _in_a_pool(work, tasks, workers, preload, progress)
        except BrokenProcessPool:
            problem = "a worker process was killed, probably because the memory ran out"
        except MemoryError:
            problem = "the memory ran out"
    raise UserError(f"{problem}: start the same command again with fewer --workers")


def _in_this_process(
    work: Callable[[Task, Advance], Result], tasks: Iterable[Task], progress: Progress
) -> list[Result]:
    size = 0

    def advance(images: int, more_bytes: int) -> None:
        nonlocal size
        size += more_bytes
        _show(progress, progress.done + images, size)

    return [work(task, advance) for task in tasks]


def _in_a_pool(
    work: Callable[[Task, Advance], Result],
    tasks: Iterable[Task],
    workers: int,
    preload: list[str],
    progress: Progress,
) -> list[Result]:
    # forkserver: a fork of this process could copy a lock that a thread holds, and with spawn each worker would import.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(preload)
    _start_server()
    counters = Counters(context)
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=(counters,))
    remaining = iter(tasks)
    running: set[Future[Result]] = set()
    results: list[Result] = []
    try:
        while True:
            running |= {pool.submit(_call, work, task) for task in islice(remaining, 2 * workers - len(running))}
            if not running:
                return results
            finished, running = wait(running, timeout=POLL_SECONDS, return_when=FIRST_COMPLETED)
            _show(progress, counters.images.value, counters.bytes.value)
            results += [future.result() for future in finished]
    finally:
        counters.stop.value = True
        pool.shutdown(wait=True, cancel_futures=True)


def _start_server() -> None:
    """Start the process that forks the workers. Neither receives Ctrl-C, which a terminal sends to the whole group.

    This process stops its workers. One that ended by itself would break the pool, which would then kill the others in the
    middle of a shard.
    """
    _make_socket_folder()
    resource_tracker.ensure_running()  # first: its start unblocks the signal
    with blocked({signal.SIGINT}):
        forkserver.ensure_running()


def _make_socket_folder() -> None:
    """Have multiprocessing make its folder for sockets, once for this process, where their paths are short enough."""
    usual = tempfile.tempdir
    tempfile.tempdir = str(short_temporary_folder(SOCKET_ROOM))
    try:
        util.get_temp_dir()
    finally:
        tempfile.tempdir = usual


def _show(progress: Progress, images: int, size: int) -> None:
    seconds = max(time.monotonic() - progress.started, 1e-9)
    progress.advance(images - progress.done, **{"MB/s": f"{size / 1e6 / seconds:,.1f}"})
