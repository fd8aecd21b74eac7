"""`--profile N`: torch's profiler over N updates of rank 0, as a trace for Perfetto or Chrome and a table on the terminal.

Recording reads clocks alone: the run computes the same bits. docs/performance.md says how to read what comes out.
"""

from __future__ import annotations

import gzip
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from torch.profiler import ProfilerActivity, profile, schedule

from pipeline.base.files import replacing
from pipeline.base.layout import profile_trace
from pipeline.base.tables import print_table
from pipeline.data.batch import Batch
from pipeline.data.loader import BatchIterator
from pipeline.loop.trainer import Trainer
from pipeline.training.spans import Span, span

# Updates before the first that is traced: they compile, choose kernels, record CUDA graphs and fill the loader.
WARM_UP = 10
ROWS = 10  # of the table


def profiled(batches: BatchIterator, trainer: Trainer) -> Iterator[Batch]:
    """The batches as they are. Where the config asks for it, and on rank 0, the updates made with some of them are traced.

    The caller makes one update with each batch before it asks for the next. Where fewer updates are left than warm-up and
    profile take, there is less warm-up, then a shorter profile. A loop that ends within the profile leaves no trace.
    """
    first, left = trainer.progress.iteration, trainer.config.iterations - trainer.progress.iteration
    traced = min(trainer.config.profile, left)
    if not traced or not trainer.world.is_main:
        yield from batches
        return
    warm_up = min(WARM_UP, left - traced)

    def publish(profiler: Any) -> None:
        trainer.world.watchdog.note("writing the profile", trainer.progress.iteration)
        with trainer.clock.paused():
            begin = first + warm_up
            trace = profile_trace(trainer.config.run_folder, begin, begin + traced)
            write_trace(profiler, trace)
            print_profile(profiler, traced, trace)

    on = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if trainer.world.device.type == "cuda" else [])
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else it tells of its own start, and of GPUs that are not there
    # The last update of the warm-up runs under the profiler, whose own start it contains.
    plan = schedule(wait=max(0, warm_up - 1), warmup=min(1, warm_up), active=traced, repeat=1)
    with profile(activities=on, schedule=plan, on_trace_ready=publish) as profiler:
        while True:
            with span("waiting for data"):
                batch = next(batches, None)
            if batch is None:
                return
            try:
                yield batch
            except GeneratorExit:  # a stop, or an error: the run folder may be another attempt's by now
                profiler.on_trace_ready = None
                raise
            profiler.step()


def write_trace(profiler: Any, path: Path) -> None:
    """Write Chrome's JSON, compressed."""
    path.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        plain = os.path.join(folder, "trace.json")
        profiler.export_chrome_trace(plain)
        with open(plain, "rb") as source, replacing(path) as file, gzip.GzipFile("", "wb", 6, file, 0) as target:
            shutil.copyfileobj(source, target)


def print_profile(profiler: Any, updates: int, trace: Path) -> None:
    """Print the operators that took most time of their own, on the GPU where there is one, and the parts of an update."""
    events = [event for event in profiler.key_averages() if not event.key.startswith("ProfilerStep")]
    parts = {event.key: event for event in events if event.key in get_args(Span)}
    operators = [event for event in events if event.key not in parts]
    on_gpu = any(event.self_device_time_total for event in operators)
    name = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    total = sum(getattr(event, name) for event in operators) or 1.0
    largest = sorted(operators, key=lambda event: getattr(event, name), reverse=True)[:ROWS]
    rows = [
        (event.key[:60], f"{event.count / updates:,.0f}", *_time(getattr(event, name), updates, total))
        for event in largest
    ]
    place = "the GPU" if on_gpu else "a thread of the CPU"
    print_table(
        f"operators of {updates} updates, their own time on {place}", ("operator", "calls", "ms", "share %"), rows
    )
    whole = (
        sum(event.cpu_time_total for event in profiler.key_averages() if event.key.startswith("ProfilerStep")) or 1.0
    )
    rows = [
        (key, f"{event.count / updates:,.0f}", *_time(event.cpu_time_total, updates, whole))
        for key, event in parts.items()
    ]
    print_table(f"parts of an update, of {whole / updates / 1000:,.1f} ms", ("part", "calls", "ms", "share %"), rows)
    print(f"trace: {trace}, for ui.perfetto.dev or chrome://tracing", flush=True)


def _time(microseconds: float, updates: int, total: float) -> tuple[str, str]:
    """Milliseconds per update, and the share in `total` microseconds."""
    return f"{microseconds / updates / 1000:,.2f}", f"{100 * microseconds / total:.1f}"
