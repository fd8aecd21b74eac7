"""Which of Linux's energy counters are added up, on trees as machines have them."""

from __future__ import annotations

from pathlib import Path

from pipeline.meter import rapl
from pipeline.meter.sampler import Packages
from tests.pipeline.meter.machines import make_zone


def test_packages_and_their_memory_are_counted_once(tmp_path: Path) -> None:
    """Two sockets with cores and memory as parts; the board; the same package again behind another interface."""
    make_zone(tmp_path, "intel-rapl:0", "package-0", 5_000_000)
    make_zone(tmp_path, "intel-rapl:0:0", "core", 3_000_000)
    make_zone(tmp_path, "intel-rapl:0:1", "dram", 1_000_000)
    make_zone(tmp_path, "intel-rapl:1", "package-1", 7_000_000)
    make_zone(tmp_path, "intel-rapl:1:0", "dram", 2_000_000)
    make_zone(tmp_path, "intel-rapl:2", "psys", 90_000_000)
    make_zone(tmp_path, "intel-rapl-mmio:0", "package-0", 5_000_000)
    (tmp_path / "intel-rapl").mkdir()
    found = {zone.name: zone.read() for zone in rapl.zones(tmp_path)}
    assert found == {"package-0": 5.0, "dram-0": 1.0, "package-1": 7.0, "dram-1": 2.0}


def test_a_counter_goes_round_where_its_own_file_says(tmp_path: Path) -> None:
    said: list[str] = []
    file = make_zone(tmp_path, "intel-rapl:0", "package-0", 65_000_000_000, 65_532_610_987)
    packages = Packages(rapl.zones(tmp_path), said.append)
    for time, reading in ((0.0, 65_000_000_000), (10.0, 65_532_000_000), (20.0, 1_467_389_013)):
        file.write_text(f"{reading}\n")
        packages.read(time)
    assert packages.joules() == {"package-0": 532.0 + 0.610987 + 1467.389013} and not said


def test_what_cannot_be_read_is_said_once_and_is_not_0(tmp_path: Path) -> None:
    """As for every user but root; tests run as root, so the file is replaced by a folder, which nobody can read either."""
    said: list[str] = []
    file = make_zone(tmp_path, "intel-rapl:0", "package-0")
    file.unlink()
    file.mkdir()
    packages = Packages(rapl.zones(tmp_path), said.append)
    for time in range(3):
        packages.read(float(time))
    assert packages.joules() == {}
    assert len(said) == 1 and said[0].endswith(f"(root may allow it: chmod a+r {file})")


def test_a_machine_without_counters(tmp_path: Path) -> None:
    said: list[str] = []
    for root in (tmp_path, tmp_path / "missing"):
        assert Packages(rapl.zones(root), said.append).joules() == {}
    assert said == ["the energy of the CPUs is not measured: this machine shows no RAPL counters"] * 2


def test_a_counter_that_fails_for_a_while_loses_nothing(tmp_path: Path) -> None:
    file = make_zone(tmp_path, "intel-rapl:0", "package-0", 1_000_000)
    packages = Packages(rapl.zones(tmp_path), lambda text: None)
    packages.read(0.0)
    file.write_text("")
    packages.read(10.0)
    file.write_text("9000000\n")
    packages.read(20.0)
    assert packages.joules() == {"package-0": 8.0}
