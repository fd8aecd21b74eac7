"""The plan with measured rates: which of the stored ones it takes, and what it makes of them, by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from launch.forecast import rates
from launch.forecast.plan import device_of, predict, show_plan
from launch.on_slurm.allocation import Allocation
from pipeline.base.command import UserError
from pipeline.data.augment import AugmentConfig
from pipeline.run.config import Config

GPU = rates.Rate(
    kind="cuda", device="NVIDIA H100 80GB HBM3", arch="resnet50", stride="v1.5", precision="bf16", compile=False, crop=224,
    micro_batch=32, threads=0, processes=1, images_per_second=2000.0, measured="2026-01-31", torch="2.15.0",
)  # fmt: skip
CPU = replace(GPU, kind="cpu", device="a CPU, 4 cores", threads=1, images_per_second=5.0)
LINK = rates.Link(
    kind="cpu", device="a CPU, 4 cores", reduction="tree", ranks=4, bytes_per_second=0.5e9, latency_seconds=0.001,
    measured="2026-01-31", torch="2.15.0",
)  # fmt: skip
RESNET50 = Config(arch="resnet50", stride="v1.5", precision="bf16")
PARAMETERS = 25_557_032  # of torchvision's ResNet-50


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "rates.yaml"
    rates.store([GPU, CPU, replace(CPU, processes=4, images_per_second=4.0), LINK], path)
    return path


def test_measured_rate_is_taken_as_it_is(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    allocation = Allocation(gpus_per_node=8, rates=str(file))
    assert predict(RESNET50, allocation).compute == pytest.approx(256 / 8 / 2000)
    show_plan(RESNET50, allocation, images=1_281_167)
    said = capsys.readouterr().out
    assert "measured on NVIDIA H100 80GB HBM3 (2026-01-31, torch 2.15.0): 2,000 images/s" in said
    assert "600,000 iterations of 256 images, 119.9 epochs" in " ".join(said.split())


def test_other_nets_by_multiply_adds(file: Path) -> None:
    """torchvision's documentation: 4.09 and 11.51 GFLOPS for ResNet-50 and ResNet-152."""
    found = device_of(replace(RESNET50, arch="resnet152"), Allocation(rates=str(file)))
    assert found.images_per_second == pytest.approx(2000 * 4.09 / 11.51, rel=0.01)
    assert "measured" in found.source and "resnet152 by multiply-adds" in found.source


@pytest.mark.parametrize(
    "config",
    [replace(RESNET50, precision="float32"), replace(RESNET50, augment=AugmentConfig(crop=192))],
    ids=["precision", "crop"],
)
def test_what_was_not_measured_is_assumed(file: Path, config: Config) -> None:
    assert device_of(config, Allocation(rates=str(file))).source.startswith("assumed")


def test_device_must_be_the_only_one_or_named(file: Path) -> None:
    rates.store([replace(GPU, device="NVIDIA A100", images_per_second=900.0)], file)
    allocation = Allocation(rates=str(file))
    assert device_of(RESNET50, allocation).source.startswith("assumed")
    assert device_of(RESNET50, replace(allocation, device_name="a100")).images_per_second == 900
    assert device_of(RESNET50, replace(allocation, device_name="H100")).images_per_second == 2000
    assert device_of(RESNET50, replace(allocation, device_name="H200")).source.startswith("assumed")


def test_ranks_of_one_cpu_host(file: Path) -> None:
    """Four processes share the host: their rate is the one measured with four, and nothing hides the reduction."""
    allocation = Allocation(gpus_per_node=0, tasks_per_node=4, cpus_per_gpu=1, rates=str(file))
    step = predict(RESNET50, allocation)
    assert step.compute == pytest.approx(64 / 4.0)
    assert step.all_reduce == pytest.approx(2 * 3 / 4 * 4 * PARAMETERS / 0.5e9 + 0.001)
    assert step.seconds == pytest.approx(step.compute + step.all_reduce)
    alone = predict(RESNET50, replace(allocation, tasks_per_node=1))
    assert (alone.compute, alone.all_reduce) == (pytest.approx(256 / 5.0), 0)


def test_gradients_that_come_at_the_end_hide_no_sum(file: Path) -> None:
    allocation = Allocation(rates=str(file), nodes=2)
    assert predict(RESNET50, allocation).hidden > 0
    assert predict(replace(RESNET50, cuda_graph=True), allocation).hidden == 0
    assert predict(replace(RESNET50, compile=True, compile_by="net"), allocation).hidden == 0
    assert predict(replace(RESNET50, compile=True, compile_by="stages"), allocation).hidden > 0


def test_measuring_again_replaces(file: Path) -> None:
    rates.store([replace(GPU, images_per_second=2100.0, measured="2026-02-01", torch="2.16.0")], file)
    stored = rates.read(file)
    assert len(stored.rates) == 3 and len(stored.links) == 1
    assert device_of(RESNET50, Allocation(rates=str(file))).images_per_second == 2100


@pytest.mark.parametrize("text", ["rates: [", "rates: [{device: x}]", "- a", "rates: 3"])
def test_a_file_that_does_not_fit(tmp_path: Path, text: str) -> None:
    path = tmp_path / "rates.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match="measure again"):
        rates.read(path)
    assert rates.read(tmp_path / "none.yaml") == rates.Rates()
