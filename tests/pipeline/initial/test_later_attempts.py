"""What a run starts from in its later attempts, before and after its first checkpoint. Reference: the first attempt."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import save_file

from pipeline.base.command import UserError
from pipeline.data.dataset import Dataset
from pipeline.initial.start import Start, check_source, settle
from pipeline.models.resnet import build
from pipeline.run.config import Config, to_yaml
from pipeline.run.folder import check_same
from pipeline.training.checkpoint import publish
from tests.pipeline.initial.states import assert_equal, newest


def begun(config: Config) -> Start:
    """What a run starts from whose first attempt has left in the run folder what stands there before the first checkpoint."""
    first = settle(config, Dataset(config.data))
    assert first.point is not None
    config.run_folder.mkdir(parents=True)
    (config.run_folder / "config.yaml").write_text(to_yaml(first.config))
    facts = {"starts_from": first.point.as_fact(), "attempts": []}
    (config.run_folder / "run.json").write_text(json.dumps(facts))
    return first


def goes_on(config: Config, iteration: int = 10) -> None:
    publish(config.run_folder / "checkpoints", iteration, {"iteration": iteration})


def test_the_hash_counts_and_not_the_place(config: Config, source: Path) -> None:
    dataset = Dataset(config.data)
    first = begun(config)
    moved = source.rename(source.with_name("moved"))
    again = settle(replace(config, init=str(moved)), dataset)
    assert again.config.init_sha256 == first.config.init_sha256 and again.weights is not None
    check_same(again.config, dataset)
    iteration, state, path = newest(moved)
    path.unlink()
    state["model"]["fc.bias"][0] += 1
    publish(moved / "checkpoints", iteration, state)
    with pytest.raises(UserError, match=r"other values \(init: .*SHA-256 .* -> .*SHA-256 .*\): use the same values"):
        check_same(settle(replace(config, init=str(moved)), dataset).config, dataset)
    with pytest.raises(UserError, match=r"\(init: .*SHA-256 .* -> random weights\)"):
        check_same(replace(config, init=None), dataset)


def test_a_run_that_goes_on_meanwhile_is_no_other_source(config: Config, source: Path) -> None:
    """An attempt that ended before its first checkpoint is repeated from the checkpoint that it started from."""
    dataset = Dataset(config.data)
    first = begun(config)
    iteration, state, _ = newest(source)
    state = {**state, "iteration": iteration + 1, "model": {n: v + 1 for n, v in state["model"].items()}}
    publish(source / "checkpoints", iteration + 1, state)
    again = settle(config, dataset)
    assert again.config == first.config
    assert first.weights is not None
    assert_equal(again.weights, first.weights)


def test_with_a_checkpoint_of_its_own_a_run_needs_its_init_no_more(
    config: Config, source: Path, tmp_path: Path
) -> None:
    dataset = Dataset(config.data)
    first = begun(config)
    goes_on(config)
    shutil.rmtree(source)
    again = settle(config, dataset)
    assert again.config == first.config and again.weights is None and again.point is None
    check_source(config)
    file = tmp_path / "other.pth"
    torch.save(build("resnet8", classes=10).state_dict(), file)
    other = settle(replace(config, init=str(file), init_preprocessing="ours"), dataset)
    with pytest.raises(UserError, match="was started with other values"):
        check_same(other.config, dataset)


OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "a run that is not there": ({"init": "no/such/run"}, r"and whether --init no/such/run means the same weights"),
    "other weights of what is gone": ({"init_weights": "ema"}, r"means the same.*because they are not there"),
    "torchvision's": ({"init": "torchvision:resnet18"}, r"the weights .* are not those of resnet8"),
    "another run": ({"init": "other"}, r"other values \(init: .*SHA-256 .* -> .*SHA-256"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_a_run_that_goes_on_takes_no_other_init(
    config: Config, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    """Its config.yaml would say that it started from what it never saw."""
    dataset = Dataset(config.data)
    begun(config)
    goes_on(config)
    iteration, state, _ = newest(source)
    for name in ("config.yaml", "run.json"):
        (tmp_path / "other").mkdir(exist_ok=True)
        shutil.copy(source / name, tmp_path / "other" / name)
    state["model"]["fc.bias"][0] += 1
    publish(tmp_path / "other" / "checkpoints", iteration, state)
    shutil.rmtree(source)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    file = tmp_path / "checkpoints" / Path(torchvision.models.ResNet18_Weights.IMAGENET1K_V1.url).name
    file.parent.mkdir()
    torch.save(torchvision.models.resnet18(num_classes=10).state_dict(), file)
    values, sentence = OTHERS[case]
    with pytest.raises(UserError, match=sentence):
        check_same(settle(replace(config, **values), dataset).config, dataset)


def test_a_run_that_goes_on_takes_its_own_weights_from_elsewhere(config: Config, source: Path, tmp_path: Path) -> None:
    """Of a run that was moved and has gone on, and of a file: the content counts, and not how it is named."""
    dataset = Dataset(config.data)
    first = begun(config)
    goes_on(config)
    file = tmp_path / "same.safetensors"
    iteration, state, _ = newest(source)
    save_file({name: value.contiguous() for name, value in state["model"].items()}, file)
    moved = source.rename(source.with_name("moved"))
    state |= {"iteration": iteration + 1, "model": {name: value + 1 for name, value in state["model"].items()}}
    publish(moved / "checkpoints", iteration + 1, state)
    same: list[dict[str, Any]] = [
        {"init": str(moved)},
        {"init": str(file), "init_preprocessing": "ours"},
        {"init": str(moved), "init_weights": "final"},
    ]
    for values in same:
        again = settle(replace(config, **values), dataset)
        assert again.config.init_sha256 == first.config.init_sha256 and again.weights is None
        check_same(again.config, dataset)
        check_source(replace(config, **values))


def test_before_that_a_source_that_is_gone_is_refused(config: Config, source: Path) -> None:
    begun(config)
    shutil.rmtree(source)
    for check in (lambda: settle(config, Dataset(config.data)), lambda: check_source(config)):
        with pytest.raises(UserError, match="nothing is there"):
            check()
