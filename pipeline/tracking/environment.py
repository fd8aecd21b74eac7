"""How processes of ours use MLflow: their environment, and MLflow's errors in few words. Does not import MLflow."""

from __future__ import annotations

import re

from pipeline.base.redaction import without_secrets

# To the feeder: another MLflow than the run's own.
URI_VARIABLE = "PIPELINE_TRACKING_URI"
# With MLflow's defaults a dead server blocked one call for 246 s. Here the loop retries; a metric sent twice is stored once.
ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "OMP_NUM_THREADS": "1",
}


# What urllib3, MLflow and SQLite say where they mean: ask again.
_BUSY = r"(?:429|502|503|504)"
_PASSING = re.compile(
    rf"too many {_BUSY} error|error code {_BUSY}\b|\b{_BUSY} (?:Client|Server) Error|database is locked"
)


def is_passing(error: Exception) -> bool:
    """Whether MLflow is there and only busy, so that it may take at once what it has refused."""
    return _PASSING.search(str(error)) is not None


def sentence(error: Exception) -> str:
    """Shorten an error to a few words for the user, without secrets; the whole error goes to the log."""
    text = without_secrets(" ".join(str(error).split()))
    for sign, words in (
        ("Connection refused", "connection refused"),
        ("NameResolutionError", "unknown host"),
        ("Read timed out", "no answer in time"),
        ("ConnectTimeout", "no answer in time"),
    ):
        if sign in text:
            return words
    return text[:200] or type(error).__name__
