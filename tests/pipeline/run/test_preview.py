"""The first line of a training, which is made without the config's own reader."""

from __future__ import annotations

from pipeline.run.config import Config
from pipeline.run.preview import DEFAULTS


def test_the_defaults_are_those_of_the_config() -> None:
    assert {key: getattr(Config(), key) for key in DEFAULTS} == DEFAULTS
