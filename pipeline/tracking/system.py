"""System metrics and energy in MLflow, from the files in system/ of a run folder (pipeline/meter).

A sample's values are the metrics `system/NAME` where rank 0 was, as MLflow's own monitor names them, so that its tab "System
metrics" shows them; on the other machines `system/HOST/NAME`. Their step is the seconds since the run began. The sums over
the run are the metrics `energy_kwh`, `co2_g` and `cost`, as far as they are known, and the tag `energy` in words.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.base.layout import METRICS, plain_host, system_files
from pipeline.meter.records import About, Sample, read_about, read_sample
from pipeline.meter.usage import usage_of
from pipeline.tracking.journal import last_iteration, unsent_lines
from pipeline.tracking.limits import send_metrics

ENERGY_TAG = "energy"


def send_system(
    client: Any, run_id: str, folder: Path, started: int, sent: Mapping[str, int]
) -> Iterator[dict[str, int]]:
    """Send the lines in system/ that MLflow lacks; yields, after each batch, what MLflow has now.

    started: of the run, ms since 1970. sent: the bytes of each file, by its name, that MLflow has. A batch that is sent again
    carries the same time stamps and steps, so that MLflow stores it once. The sums, for which every file is read, are sent
    once, behind all lines and before the last batch counts as sent.
    """
    from mlflow.entities import Metric

    newest, ahead = 0, dict(sent)  # what MLflow has once the present batch counts as sent
    for path in system_files(folder):
        for about, samples, position in _unsent(path, sent.get(path.name, 0)):
            if ahead != sent:
                yield dict(ahead)
            points = [
                Metric(_metric(about, name), value, sample.time, max(0, sample.time - started) // 1000)
                for sample in samples
                for name, value in sample.values.items()
            ]
            send_metrics(client, run_id, points)
            newest = max([newest, *(sample.time for sample in samples)])
            ahead[path.name] = position
    if newest:
        _send_sums(client, run_id, folder, newest)
    if ahead != sent:
        yield ahead


def energy_in_words(folder: Path) -> str:
    """What the tag `energy` says of the run in `folder`; "" where nothing was measured."""
    usage = usage_of(folder)
    return str(usage) if usage is not None and usage.figures() else ""


def _unsent(path: Path, position: int) -> Iterator[tuple[About, list[Sample], int]]:
    """Yield the samples behind `position` in batches, each with the position after it; none of a file whose start is lost."""
    with open(path, "rb") as file:
        about = read_about(file.readline())
        if about is None:
            return
        for lines, after in unsent_lines(file, position):
            yield about, [sample for line in lines if (sample := read_sample(line))], after


def _metric(about: About, name: str) -> str:
    return f"system/{name}" if about.rank == 0 else f"system/{plain_host(about.host)}/{name}"


def _send_sums(client: Any, run_id: str, folder: Path, time: int) -> None:
    """The energy of the whole run up to `time`, at the step of the newest metrics, as a reader of curves expects."""
    from mlflow.entities import Metric, RunTag

    usage = usage_of(folder)
    if usage is None:
        return
    step = last_iteration(folder / METRICS)
    points = [Metric(name, value, time, step) for name, value in usage.figures().items()]
    client.log_batch(run_id, metrics=points, tags=[RunTag(ENERGY_TAG, str(usage))])
