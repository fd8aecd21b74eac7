"""Tracking: a run writes metrics.jsonl, and MLflow is fed from that file (contract 5). Docs: docs/tracking.md.

journal.py   metrics.jsonl                       process.py   starts and ends the feeder process beside the run
state.py     tracking.json and mlflow.json       feeder.py    that process: delivers, retries, ends with the run
tracker.py   what the training loop calls        delivery.py  brings MLflow up to date with a run folder
store.py     which MLflow a run belongs to       connection.py    ... whose MLflow run it finds or creates
limits.py    what MLflow takes                   system.py        ... with its system metrics and energy
figures.py   epoch, seconds left, rounding       logged_model.py  ... with the model of a finished run
opening.py   the command `open`                  view.py      the first page: columns and charts of an experiment
exporting.py the command `export`                presentation.py, description.py, inputs.py   what a run's page shows
"""

from pipeline.tracking.config import TrackingConfig
from pipeline.tracking.journal import Record, read_metrics
from pipeline.tracking.state import is_concluded, is_delivered, mlflow_model_id, mlflow_run_id
from pipeline.tracking.tracker import Tracker, log_evaluations, log_result_run, now_in_ms, open_tracker

__all__ = [
    "Record",
    "Tracker",
    "TrackingConfig",
    "is_concluded",
    "is_delivered",
    "log_evaluations",
    "log_result_run",
    "mlflow_model_id",
    "mlflow_run_id",
    "now_in_ms",
    "open_tracker",
    "read_metrics",
]
