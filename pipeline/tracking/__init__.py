"""Tracking: metrics.jsonl first, MLflow from it (contract 5). Docs: docs/tracking.md.

journal.py   metrics.jsonl                       process.py   starts and ends the process beside the run
state.py     tracking.json and mlflow.json       feeder.py    that process: delivers, retries, ends with the run
tracker.py   what the trainer holds              delivery.py  MLflow brought up to date from a run folder
"""

from pipeline.tracking.config import TrackingConfig
from pipeline.tracking.journal import Record, read_metrics
from pipeline.tracking.tracker import (
    Tracker,
    is_concluded,
    is_delivered,
    log_evaluations,
    log_result_run,
    mlflow_run_id,
    open_tracker,
)

__all__ = [
    "Record",
    "Tracker",
    "TrackingConfig",
    "is_concluded",
    "is_delivered",
    "log_evaluations",
    "log_result_run",
    "mlflow_run_id",
    "open_tracker",
    "read_metrics",
]
