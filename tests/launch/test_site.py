"""What energy and GPUs cost at a site reaches the runs of every launcher; what a user gives stands above it."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from launch import local, ray_train, site, slurm
from launch.on_slurm.allocation import resolve
from launch.ranks.command_line import read_work
from launch.ranks.work import Training
from pipeline.base.command import UserError
from pipeline.meter.costs import Costs


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "site.yaml"
    path.write_text("partition: gpu\nco2_g_per_kwh: 380\nprice_per_kwh: 0.25\ncurrency: EUR\n")
    return path


def costs(launcher: ModuleType, *words: str) -> Costs:
    asked = read_work(list(words), launcher.COMMAND_LINE)
    assert asked is not None and isinstance(asked[0], Training)
    return asked[0].config.tracking.costs


@pytest.mark.parametrize("launcher", [local, slurm, ray_train])
def test_every_launcher_hands_the_sites_costs_on(launcher: ModuleType, file: Path) -> None:
    words = ["--arch", "resnet18", "--site", str(file)]
    assert costs(launcher, *words) == Costs(co2_g_per_kwh=380, price_per_kwh=0.25, currency="EUR")
    given = costs(launcher, *words, "--tracking.costs.price_per_kwh", "0", "--tracking.costs.price_per_gpu_hour", "2")
    assert given == Costs(co2_g_per_kwh=380, price_per_kwh=0, price_per_gpu_hour=2, currency="EUR")


def test_the_sites_own_file_is_read_without_an_option(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site, "configs", lambda: file.parent)
    assert costs(local, "--arch", "resnet18").co2_g_per_kwh == 380
    file.unlink()
    assert costs(local, "--arch", "resnet18") == Costs()


def test_both_kinds_of_keys_stand_side_by_side(file: Path) -> None:
    assert resolve({}, site.read_site(file)).partition == "gpu"


@pytest.mark.parametrize(
    ("line", "sentence"),
    [("co2_g_per_kwh: -1", "at least 0"), ("price_per_kw: 1", "price_per_kwh"), ("price_per_kwh: cheap", "a number")],
)
def test_costs_that_do_not_fit_name_the_file(file: Path, line: str, sentence: str) -> None:
    file.write_text(f"{line}\n")
    with pytest.raises(UserError, match=sentence) as raised:
        site.read_site(file)
    assert str(file) in str(raised.value)
