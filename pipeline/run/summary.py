"""The line of JSON that ends a training (`--json`), from the run's files."""

from __future__ import annotations

from typing import Any

from pipeline.base.layout import METRICS
from pipeline.meter.usage import usage_of
from pipeline.run.config import Config
from pipeline.tracking.journal import read_metrics


def summary(config: Config, code: int) -> dict[str, Any]:
    """name, run_folder, exit_code, iteration, and the latest value of each metric: `train/loss`, `val/top1_error` ...

    Beside them energy_kwh, co2_g and cost, those that are known.
    """
    path = config.run_folder / METRICS
    records = read_metrics(path) if path.exists() else []
    usage = usage_of(config.run_folder)
    latest = {f"{record.kind}/{name}": value for record in records for name, value in record.values.items()}
    return {
        "name": config.run_name,
        "run_folder": str(config.run_folder),
        "exit_code": code,
        "iteration": max((record.iteration for record in records), default=0),
        **latest,
        **(usage.figures() if usage else {}),
    }
