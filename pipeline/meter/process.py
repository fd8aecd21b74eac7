"""A rank's side of the sampler process (sampler.py): starts it, and ends it in bounded time."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from subprocess import DEVNULL, Popen, TimeoutExpired

from pipeline.base.children import ask_to_end, start_child
from pipeline.base.layout import sampler_log, system_file
from pipeline.meter.records import About, Task

CLOSE_SECONDS = 2.0


@contextmanager
def metering(folder: Path, about: About, every: float, gpus: tuple[str, ...]) -> Iterator[None]:
    """Sample this machine every `every` seconds while the block runs; the samples go into system/ of the run in `folder`.

    gpus: identities of the GPUs that count. Nothing here ends a run: a sampler that cannot start or does not end is left.
    """
    try:
        process = _start(folder.resolve(), about, every, gpus)
    except OSError as error:
        print(f"warning: no system metrics of {about.host} ({error})", file=sys.stderr)
        yield
        return
    try:
        yield
    finally:
        _end(process)


def _start(folder: Path, about: About, every: float, gpus: tuple[str, ...]) -> Popen[bytes]:
    log = sampler_log(folder, about.host)
    log.parent.mkdir(exist_ok=True)
    file = system_file(folder, about.host, about.attempt)
    task = Task(folder=str(folder), file=str(file), parent=os.getpid(), every=every, gpus=gpus, about=about)
    command = [sys.executable, "-P", "-m", "pipeline.meter.sampler", json.dumps(asdict(task))]
    with open(log, "a", encoding="utf-8") as errors:
        return start_child(command, stdout=DEVNULL, stderr=errors)


def _end(process: Popen[bytes]) -> None:
    """Let the sampler write its last line, and wait for that as long as CLOSE_SECONDS."""
    ask_to_end(process)
    with suppress(TimeoutExpired):
        process.wait(CLOSE_SECONDS)
        return
    process.kill()
    with suppress(TimeoutExpired):
        process.wait(CLOSE_SECONDS)  # in vain where the driver hangs in the kernel
