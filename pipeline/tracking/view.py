"""What MLflow's page shows first: the shared view "Errors" of an experiment, as MLflow's front end (3.17) reads it from a tag.

The view is the state of MLflow's runs page: which columns the table has, in which order and how wide, and which charts
stand in which section. It has a key of its own, `errors`: a view that a user saves has another key and stays as it is.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Iterator
from typing import Any

KEY = "errors"
TAG = f"mlflow.sharedViewState.{KEY}"
# Raise it whenever the state below changes: experiments with an older one, as we wrote it, then get this one.
VERSION = 1
# The view for machine learning; without it MLflow opens in its view for traces of language models.
KIND = {"mlflow.experimentKind": "custom_model_development"}

PROTOCOLS = ("ten-crop", "center", "multi-scale")
SPLITS = ("val", "test")
WEIGHTS = ("", "-ema", "-recomputed-bn")
EVALUATIONS = [f"{protocol}-{split}{weights}" for split in SPLITS for weights in WEIGHTS for protocol in PROTOCOLS]

# Columns that no run has a value for do not appear.
ERRORS = [f"{protocol}-val/top1_error" for protocol in PROTOCOLS] + ["val/top1_error", "train/top1_error"]
ERRORS_TOP5 = [f"{protocol}-val/top5_error" for protocol in PROTOCOLS] + ["val/top5_error"]
# MLflow's own columns, by the ids of its table. Widths in pixels: beside MLflow's assistant, which opens by itself on the
# first visit, a window of 1000 pixels leaves 490 for the table, and the first errors must be among them.
NAME, CREATED, DURATION = "attributes.`Run Name`", "runDateAndNestInfo", "duration"
ARCH = "params.`arch`"
WIDTHS = {NAME: 140, CREATED: 80, DURATION: 80, ARCH: 100}
ERROR_WIDTH = 90

# Sections stand in the order of their names, sections that MLflow makes for other metrics behind them, system metrics last.
LEARNING, EVALUATED, TIMING = "1. Learning curves", "2. Evaluations", "3. Timing"
MLFLOWS_OWN = ("Model metrics", "System metrics")
LINE: dict[str, Any] = {
    "type": "LINE",
    "lineSmoothness": 0,
    "xAxisScaleType": "linear",
    "scaleType": "linear",
    "range": {},
    "xAxisKey": "step",
    "selectedXAxisMetricKey": "",
    "yAxisKey": "metric",
    "yAxisExpressions": [],
    "ignoreOutliers": False,
    "useGlobalXaxisKey": True,
    "useGlobalLineSmoothing": True,
}
BAR: dict[str, Any] = {"type": "BAR"}


def link(address: str, experiment_id: str) -> str:
    """The page of an experiment, with the view "Errors", on the MLflow server at `address`."""
    query = f"workflowType=machine_learning&viewStateShareKey={KEY}"
    return f"{address.rstrip('/')}/#/experiments/{experiment_id}/runs?{query}"


def artifacts_link(address: str, experiment_id: str, run_id: str) -> str:
    """The files of a run, on the MLflow server at `address`."""
    return f"{address.rstrip('/')}/#/experiments/{experiment_id}/runs/{run_id}/artifacts?workflowType=machine_learning"


def shared_view() -> str:
    """The value of TAG."""
    packed = base64.b64encode(zlib.compress(json.dumps(state()).encode(), 9)).decode()
    return json.dumps({"name": "Errors", "createdAt": 1, "updatedAt": VERSION, "state": f"deflate;{packed}"})


def state() -> dict[str, Any]:
    """The state of MLflow's runs page. Keys that are not named here have MLflow's defaults."""
    errors, errors_top5 = ([f"metrics.`{name}`" for name in names] for names in (ERRORS, ERRORS_TOP5))
    sections = [LEARNING, EVALUATED, TIMING, *MLFLOWS_OWN]
    return {
        "searchFilter": "tags.arch != 'report'",  # the report is a run for its artifacts alone
        "orderByKey": "attributes.start_time",
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": [*errors, ARCH, *errors_top5],
        "columnOrder": [NAME, CREATED, *errors, ARCH, *errors_top5, DURATION],
        "columnWidths": {**WIDTHS, **dict.fromkeys([*errors, *errors_top5], ERROR_WIDTH)},
        "runsHiddenMode": "FIRST_20_RUNS",
        "hideEmptyCharts": True,
        "isAccordionReordered": False,
        "compareRunSections": [
            {
                "uuid": _section_id(name),
                "name": name,
                "display": name != "System metrics",  # there are many
                "columns": 2,
                "isReordered": False,
                "deleted": False,
                "isGenerated": name in MLFLOWS_OWN,
            }
            for name in sections
        ],
        "compareRunCharts": [
            {"uuid": f"errors-{number}", "runsCountToCompare": 10, "deleted": False, "isGenerated": False, **chart}
            for number, chart in enumerate(_charts())
        ],
    }


def _charts() -> Iterator[dict[str, Any]]:
    both = ["train/top1_error", "val/top1_error"]
    yield _chart(LEARNING, LINE, both[0]) | {"selectedMetricKeys": both}
    for name in (
        "train/loss",
        "train/lr",
        "val/top1_error",
        "val/top5_error",
        "val_ema/top1_error",
        "val_ema/top5_error",
    ):
        yield _chart(LEARNING, LINE, name)
    for k in (1, 5):
        for kind in (*EVALUATIONS, "val_recomputed_bn"):
            yield _chart(EVALUATED, BAR, f"{kind}/top{k}_error")  # a line would show a single point
    for name in ("images_per_second", "data_wait_share", "slowest_rank_ratio", "slowest_rank"):
        yield _chart(TIMING, LINE, f"train/{name}")
    for name in ("checkpoint_stall_seconds", "substituted_images"):
        yield _chart(TIMING, LINE, f"train/{name}")
    for name in ("seconds_left", "epoch"):
        yield _chart(TIMING, LINE, name)


def _chart(section: str, kind: dict[str, Any], metric: str) -> dict[str, Any]:
    return {**kind, "metricKey": metric, "metricSectionId": _section_id(section)}


def _section_id(name: str) -> str:
    return f"section-{name}"
