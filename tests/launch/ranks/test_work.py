"""The work of a launcher: the device that its ranks compute on."""

from __future__ import annotations

from pathlib import Path

import pytest

from launch.ranks.work import Evaluation, Training
from pipeline.evaluation.request import EvaluationRequest
from pipeline.run.config import Config


@pytest.mark.parametrize(("asked", "settled"), [("auto", "cuda"), ("cpu", "cpu"), ("cuda", "cuda")])
def test_the_device_is_settled_where_it_was_left_open(asked: str, settled: str) -> None:
    request = EvaluationRequest(model=Path("runs/run"), directory=Path("/here"), protocols=("ten-crop",), device=asked)
    evaluation = Evaluation(request, Path("/here/runs/run"), "data").settled("cuda")
    assert (evaluation.device, evaluation.request.protocols, evaluation.data) == (settled, ("ten-crop",), "data")
    training = Training(Config(device=asked, batch=64)).settled("cuda")
    assert (training.device, training.config.batch) == (settled, 64)
