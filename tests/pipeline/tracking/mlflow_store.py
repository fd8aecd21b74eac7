"""What MLflow holds, read by MLflow's own client."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mlflow import MlflowClient

Point = tuple[int, float, int]  # step, value, time in ms


def store_uri(runs: Path) -> str:
    return f"sqlite:///{runs / 'mlflow.db'}"


def runs_in(uri: str, experiment: str = "resnet") -> list[Any]:
    client = MlflowClient(uri)
    found = client.get_experiment_by_name(experiment)
    return [] if found is None else list(client.search_runs([found.experiment_id]))


def only_run(uri: str, experiment: str = "resnet") -> Any:
    (run,) = runs_in(uri, experiment)
    return run


def shown(value: float) -> float:
    """A metric as MLflow shows it: six significant digits."""
    return float(f"{value:.6g}")


def points(uri: str, run_id: str, key: str) -> list[Point]:
    """Every stored point of a metric, duplicates included, by step."""
    history = MlflowClient(uri).get_metric_history(run_id, key)
    return sorted((one.step, one.value, one.timestamp) for one in history)
