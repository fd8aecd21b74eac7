"""Numbers as MLflow shows them, and those that follow from metrics.jsonl."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from launch.status import read
from pipeline.run.config import Config, to_yaml
from pipeline.tracking.figures import derived, rounded, seconds_left, tidy
from pipeline.tracking.journal import Journal


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("train/top1_error", 1.7968749999999998, 1.7969),
        ("val/top1_error", 100 / 3, 33.3333),
        ("train/loss", 0.06928018362959847, 0.0692802),
        ("train/lr", 0.0010000000000000002, 0.001),
        ("train/loss", 1.23456789e-9, 1.23457e-9),
        ("train/substituted_images", 12345678.0, 12345678.0),
        ("train/images_per_second", 12345.678, 12345.7),
        ("train/loss", math.inf, math.inf),
    ],
)
def test_a_metric_as_it_is_shown(name: str, value: float, shown: float) -> None:
    assert rounded(name, value) == shown
    assert math.isnan(rounded(name, math.nan))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("0.30000000000000004", "0.3"),
        ("[0.1, 0.30000000000000004]", "[0.1, 0.3]"),
        ("0.0001", "0.0001"),
        ("1e-05", "1e-05"),
        ("600000", "600000"),
        ("resnet-0.30000000000000004", "resnet-0.30000000000000004"),
        ("null", "null"),
        ("NaN", "NaN"),
    ],
)
def test_a_parameter_as_it_is_shown(text: str, shown: str) -> None:
    assert tidy(text) == shown


def test_what_is_not_known_is_not_shown() -> None:
    assert list(derived(10, 5.0, iterations=None, batch=None, images=100)) == []
    assert list(derived(10, None, iterations=20, batch=2, images=None)) == []
    assert list(derived(10, 5.0, iterations=20, batch=2, images=40)) == [("epoch", 0.5), ("seconds_left", 4.0)]


def test_status_tells_the_same_seconds(tmp_path: Path) -> None:
    config = Config(iterations=1000, batch=64)
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    journal = Journal(tmp_path / "metrics.jsonl")
    journal.append("train", 100, {"images_per_second": 128.0})
    journal.close()
    assert read(tmp_path).left_seconds == seconds_left(100, 1000, 64, 128.0) == 450.0
