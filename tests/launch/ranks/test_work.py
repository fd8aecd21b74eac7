"""The work of a launcher: the device that its ranks compute on, and the weights that a training starts from."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from launch import ray_train, slurm
from launch.ranks.work import Evaluation, Training
from pipeline.base.command import UserError
from pipeline.evaluation.request import EvaluationRequest, TestedRun
from pipeline.run.config import Config
from tests.helpers import ROOT


@pytest.mark.parametrize(("asked", "settled"), [("auto", "cuda"), ("cpu", "cpu"), ("cuda", "cuda")])
def test_the_device_is_settled_where_it_was_left_open(asked: str, settled: str) -> None:
    model = TestedRun(target=Path("runs/run"))
    request = EvaluationRequest(model=model, directory=Path("/here"), protocols=("ten-crop",), device=asked)
    evaluation = Evaluation(request, Path("/here/runs/run"), "data").settled("cuda")
    assert (evaluation.device, evaluation.request.protocols, evaluation.data) == (settled, ("ten-crop",), "data")
    training = Training(Config(device=asked, batch=64)).settled("cuda")
    assert (training.device, training.config.batch) == (settled, 64)


def test_the_places_of_a_training_are_the_same_from_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = Training(Config(init="runs/x", data="data/own")).absolute().config
    assert (config.init, config.data, config.runs) == tuple(
        str(tmp_path / one) for one in ("runs/x", "data/own", "runs")
    )
    published = Config(init="torchvision:resnet50")
    assert Training(published).absolute().config.init == published.init
    assert Training(Config(data="s3://bucket/own")).absolute().config.init is None


@pytest.mark.parametrize("launcher", [slurm, ray_train])
def test_weights_that_are_not_there_are_refused_before_anything_starts(
    launcher: ModuleType, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def started(*_: object) -> None:
        raise AssertionError("something was started")

    for name in ("submit", "ray_cluster"):
        monkeypatch.setattr(launcher, name, started, raising=False)
    count = ["--nodes", "1", "--gpus-per-node", "1"] if launcher is slurm else ["--workers", "1"]
    words = ["--config", str(ROOT / "configs/demo.yaml"), "--data", str(digits), "--runs", str(tmp_path / "runs")]
    with pytest.raises(UserError, match="init is 'runs/none', and nothing is there"):
        launcher.main([*words, "--init", "runs/none", *count])
    assert not (tmp_path / "runs").exists()
