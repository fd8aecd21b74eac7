"""Layer responses against NumPy's std of outputs computed by hand; the same on any number of ranks; the command."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pipeline import responses
from pipeline.base.command import UserError
from pipeline.base.layout import RESPONSES
from pipeline.data.dataset import Dataset
from pipeline.evaluation.responses import measure, moments, read, standard_deviation
from pipeline.models.pairs import response_layers
from pipeline.models.resnet import build
from pipeline.tracking import TrackingConfig, open_tracker
from pipeline.tracking.state import Wanted
from tests.pipeline.evaluation.nets_and_images import (
    changed_copy,
    decoded,
    normalized,
    resized,
    settings,
    write_run,
)  # fmt: skip
from tests.pipeline.evaluation.responding_ranks import net_of, respond
from tests.ranks import ALONE, run_ranks


def outputs_by_hand(state: Mapping[str, torch.Tensor], images: torch.Tensor) -> dict[str, np.ndarray]:
    """Each 3x3 layer's output after BN of a ResNet-8 with option A, layer by layer; images [N, 3, H, W]."""
    found = {}

    def layer(x: torch.Tensor, name: str, stride: int = 1) -> torch.Tensor:
        x = F.conv2d(x, state[f"{name}.weight"], stride=stride, padding=1)
        mean, variance, gamma, beta = (
            state[f"{name.replace('conv', 'bn')}.{part}"][:, None, None]
            for part in ("running_mean", "running_var", "weight", "bias")
        )
        x = (x - mean) / (variance + 1e-5).sqrt() * gamma + beta
        found[name] = x.numpy().copy()
        return x

    x = layer(images, "conv1").clamp(min=0)
    for stage, stride in ((1, 1), (2, 2), (3, 2)):
        out = layer(layer(x, f"layer{stage}.0.conv1", stride).clamp(min=0), f"layer{stage}.0.conv2")
        added = (out.shape[1] - x.shape[1]) // 2
        x = (out + F.pad(x[:, :, ::stride, ::stride], (0, 0, 0, 0, added, added))).clamp(min=0)
    return found


@torch.no_grad()
def test_std_is_numpys_of_all_outputs(ten_classes: Dataset) -> None:
    net = net_of(ten_classes)
    for number, module in enumerate(net.modules()):  # scales and shifts of their own, as after training
        if isinstance(module, torch.nn.BatchNorm2d):
            module.weight.mul_(1 + number / 20)
            module.bias.add_(3)
    images = []
    for image in decoded(ten_classes):
        image = resized(image, 36)
        left, top = (round((side - 32) / 2) for side in image.size)
        images.append(normalized(image.crop((left, top, left + 32, top + 32)), ten_classes.statistics.mean_image))
    outputs = outputs_by_hand(net.state_dict(), torch.cat(images))
    expected = {name: out.std(dtype=np.float64) for name, out in outputs.items()}

    found = measure(net, ten_classes.split("train"), settings(36, 32, ten_classes.statistics), world=ALONE)
    assert found is not None and list(found) == list(expected)
    # DALI's and Pillow's pixels differ by a grey level here and there.
    np.testing.assert_allclose(list(found.values()), list(expected.values()), rtol=2e-3)
    assert max(expected.values()) > 1.2 * min(expected.values()), "a layer must not pass for another"


def test_merged_moments_are_numpys_std_of_the_whole() -> None:
    """Also where the mean is a million times the deviation: sums of squares would cancel."""
    values = (1e6 + np.random.default_rng(0).normal(size=10_000)).astype(np.float64)
    parts = np.stack([moments(torch.from_numpy(part)).numpy() for part in np.split(values, [1, 700, 7000])])
    assert standard_deviation(parts) == pytest.approx(values.std(), rel=1e-9)
    assert standard_deviation(parts[::-1]) == standard_deviation(parts)


@pytest.mark.parametrize("size", [2, pytest.param(3, marks=pytest.mark.slow), pytest.param(4, marks=pytest.mark.slow)])
def test_the_same_on_any_number_of_ranks(ten_classes: Dataset, size: int) -> None:
    """Of two ranks one has a block more, of four one has none."""
    results = run_ranks(size, respond, ten_classes.folder)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as each rank has
    assert results == [respond(ALONE, ten_classes.folder), *[None] * (size - 1)]
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("arch", "count"), [("resnet20", 19), ("plain56", 55), ("resnet110", 109), ("resnet34", 32), ("resnet50", 16)]
)
def test_3x3_layers_of_each_family(arch: str, count: int) -> None:
    """6n + 1 of a CIFAR net, every layer of a basic block, the middle one of a bottleneck."""
    with torch.device("meta"):
        names = list(response_layers(build(arch, classes=10)))
    assert len(names) == count
    assert (names[0] == "conv1") == (arch in ("resnet20", "plain56", "resnet110"))
    assert not any("downsample" in name for name in names)


def test_the_command_writes_the_run_folder(
    ten_classes: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "runs", "one", ten_classes)
    open_tracker(run, TrackingConfig(mlflow=False), name="one", params={}, tags={}).close()
    assert responses.main([str(run), "--split", "train", "--threads", "1", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    stored = json.loads((run / RESPONSES).read_text())
    assert figures["std"] == stored["std"] and len(stored["layers"]) == 7
    assert (stored["split"], stored["images"], stored["iteration"]) == ("train", 150, 100)
    assert (run / "checkpoints" / stored["checkpoint"]).is_file()
    assert (run / "responses.svg").read_text().startswith("<svg ")
    wanted = Wanted.read(run)
    assert wanted is not None and wanted.artifacts == [["responses.json", "responses"], ["responses.svg", "responses"]]


def test_another_dataset_leaves_the_runs_own_figures_alone(ten_classes: Dataset, tmp_path: Path) -> None:
    run = write_run(tmp_path / "runs", "one", ten_classes)
    open_tracker(run, TrackingConfig(mlflow=False), name="one", params={}, tags={}).close()
    other = changed_copy(ten_classes, tmp_path / "other", lambda manifest: manifest.update(seed=1))
    measuring = [str(run), "--split", "train", "--threads", "1"]
    assert responses.main(measuring) == 0
    own = (run / RESPONSES).read_bytes()
    assert responses.main([*measuring, "--data", str(other.folder)]) == 0
    trial = json.loads((run / f"responses-data{other.sha256[:8]}.json").read_text())
    assert trial["dataset_sha256"] == other.sha256 and trial["std"] == json.loads(own)["std"], "the same images"
    assert (run / RESPONSES).read_bytes() == own
    assert (run / f"responses-data{other.sha256[:8]}.svg").is_file()


def test_a_damaged_file_is_said(tmp_path: Path) -> None:
    assert read(tmp_path) is None
    (tmp_path / RESPONSES).write_text('{"arch": "resnet8"}')
    with pytest.raises(UserError, match=r"responses\.json cannot be read"):
        read(tmp_path)
