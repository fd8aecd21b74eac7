"""What MLflow takes: how many values in a batch, how long they may be, which names (mlflow/utils/validation.py)."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

METRICS_PER_BATCH, PARAMS_PER_BATCH = 1000, 100
PARAM_LENGTH, TAG_LENGTH = 6000, 8000


def send_metrics(client: Any, run_id: str, points: Sequence[Any]) -> None:
    """Send metrics (mlflow.entities.Metric) in as few batches as MLflow takes them."""
    for start in range(0, len(points), METRICS_PER_BATCH):
        client.log_batch(run_id, metrics=points[start : start + METRICS_PER_BATCH])


def clean(name: str) -> str:
    """Turn a name into one that MLflow accepts for a metric, parameter or tag: plain characters, no relative path parts."""
    parts = [part for part in re.sub(r"[^/\w.\- ]", "_", name)[:250].split("/") if part not in ("", ".", "..")]
    return "/".join(parts) or "_"


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Turn nested settings into MLflow parameters: dotted names, values as text."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value if isinstance(value, str) else json.dumps(value)
    return flat
