"""Copies of metrics.jsonl for other programs: one CSV table of several runs, or TensorBoard's event files.

    exported/metrics.csv                 run,kind,iteration,time,metric,value    a line for each value
    exported/tensorboard/RUN/events...   the tag KIND/METRIC at the step `iteration`

Both are made anew by every export. Times are those at which the training logged.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from pipeline.base.command import UserError
from pipeline.base.files import write_text
from pipeline.base.layout import METRICS
from pipeline.tracking.journal import Record, read_metrics

COLUMNS = ("run", "kind", "iteration", "time", "metric", "value")
SUFFIX = ".metrics"  # ends the names of event files that are ours, which the next export replaces

Runs = dict[str, list[Record]]  # by the run's name


def export_metrics(folders: Sequence[Path], out: Path, format: str) -> tuple[Path, dict[str, int]]:
    """Write the metrics of run folders into `out`: (what was made, the values of each run). Raises UserError.

    format: one of FORMATS.
    """
    runs: Runs = {}
    for folder in folders:
        if not (folder / METRICS).is_file():
            raise UserError(f"{folder} holds no {METRICS}: give a run folder like runs/resnet50-seed0")
        name = folder.resolve().name
        if name in runs:
            raise UserError(f"two of the runs are named {name}: export them into separate folders, by two commands")
        runs[name] = read_metrics(folder / METRICS)
    out.mkdir(parents=True, exist_ok=True)
    made = FORMATS[format](runs, out)
    return made, {name: sum(len(record.values) for record in records) for name, records in runs.items()}


def write_csv(runs: Runs, out: Path) -> Path:
    """One table of all runs; `time` in UTC, as ISO 8601 has it; `value` with all its digits."""
    path, text = out / "metrics.csv", io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(COLUMNS)
    lines.writerows(_rows(runs))
    write_text(path, text.getvalue())
    return path


def write_tensorboard(runs: Runs, out: Path) -> Path:
    """A folder of event files for each run. TensorBoard keeps values as float32."""
    from tensorboardX import SummaryWriter

    place = out / "tensorboard"
    for name, records in runs.items():
        for earlier in (place / name).glob(f"events.out.tfevents.*{SUFFIX}"):
            earlier.unlink()
        with SummaryWriter(str(place / name), filename_suffix=SUFFIX, write_to_disk=True) as writer:
            for record in records:
                for metric, value in record.values.items():
                    writer.add_scalar(f"{record.kind}/{metric}", value, record.iteration, record.time / 1000)
    return place


FORMATS: dict[str, Callable[[Runs, Path], Path]] = {"csv": write_csv, "tensorboard": write_tensorboard}


def _rows(runs: Runs) -> Iterator[tuple[object, ...]]:
    for name, records in runs.items():
        for record in records:
            moment = datetime.fromtimestamp(record.time / 1000, UTC).isoformat(timespec="milliseconds")
            for metric, value in record.values.items():
                yield name, record.kind, record.iteration, moment, metric, repr(value)
