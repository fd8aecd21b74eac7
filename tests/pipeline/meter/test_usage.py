"""The sums of a run over machines and attempts, from files with known contents."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.base.command import UserError
from pipeline.base.layout import system_file
from pipeline.meter.costs import Costs
from pipeline.meter.records import About, Sample
from pipeline.meter.usage import number, usage_of

KWH = 3.6e6


def write(folder: Path, about: About, *sums: tuple[float, dict[str, float]]) -> Path:
    """A file as a sampler writes it: a line for each (seconds, joules)."""
    path = system_file(folder, about.host, about.attempt)
    path.parent.mkdir(exist_ok=True)
    lines = [Sample(time=1, seconds=seconds, values={"x": 1.0}, joules=joules) for seconds, joules in sums]
    path.write_bytes(about.to_line() + b"".join(line.to_line() for line in lines))
    return path


def test_machines_and_attempts_are_added_up(tmp_path: Path) -> None:
    """Two machines of two GPUs, the second shared with other jobs; a second attempt on one of them."""
    costs = {"co2_g_per_kwh": 400.0, "price_per_kwh": 0.5, "price_per_gpu_hour": 2.0, "currency": "EUR"}
    both = {"gpu_0": KWH, "gpu_1": 2 * KWH, "package-0": KWH, "dram-0": KWH}
    halves = {name: value / 2 for name, value in both.items()}
    write(tmp_path, About(host="a", rank=0, attempt=1, gpus=2), (1800, halves), (3600, both))
    write(tmp_path, About(host="b", rank=2, attempt=1, gpus=2, cpu_share=0.25), (1800, halves), (3600, both))
    write(tmp_path, About(host="b", rank=0, attempt=2, gpus=2, costs=costs), (1800, halves))
    usage = usage_of(tmp_path)
    assert usage is not None
    assert usage.gpu_joules == (3 + 3 + 1.5) * KWH
    assert usage.cpu_joules == (2 + 0.25 * 2 + 1) * KWH
    assert usage.gpu_hours == 5.0
    assert usage.figures() == {"energy_kwh": 11, "co2_g": 4400, "cost": 11 * 0.5 + 5 * 2}
    assert str(usage) == "11 kWh (GPUs; CPUs), 4400 g CO2, 15.5 EUR"


def test_what_has_no_counter_is_not_measured_and_not_0(tmp_path: Path) -> None:
    assert usage_of(tmp_path) is None
    costs = {"co2_g_per_kwh": 400.0, "price_per_kwh": 0.5}
    write(tmp_path, About(host="a", rank=0, attempt=1, costs=costs), (60, {}))
    usage = usage_of(tmp_path)
    assert usage is not None and usage.figures() == {} and str(usage) == "not measured"


def test_what_is_measured_in_part_says_so(tmp_path: Path) -> None:
    write(tmp_path, About(host="a", rank=0, attempt=1, gpus=2), (60, {"gpu_0": 0.5 * KWH}))
    assert str(usage_of(tmp_path)) == "0.5 kWh (GPUs in part; CPUs not measured)"
    write(tmp_path, About(host="a", rank=0, attempt=2, gpus=1), (60, {"gpu_0": KWH, "package-0": KWH}))
    assert str(usage_of(tmp_path)) == "2.5 kWh (GPUs in part; CPUs in part)"
    alone = tmp_path / "alone"
    alone.mkdir()
    write(alone, About(host="a", rank=0, attempt=1, gpus=1), (60, {"package-0": KWH}))
    assert str(usage_of(alone)) == "1 kWh (GPUs not measured; CPUs)"
    write(alone, About(host="a", rank=0, attempt=1), (60, {"package-0": KWH}))
    assert str(usage_of(alone)) == "1 kWh (CPUs)"


@pytest.mark.parametrize(
    ("costs", "gpus", "joules", "expected"),
    [
        ({}, 1, {"gpu_0": KWH}, None),
        ({"price_per_kwh": 0.5}, 1, {"gpu_0": KWH}, 0.5),
        ({"price_per_kwh": 0.5}, 1, {}, None),
        ({"price_per_gpu_hour": 2.0}, 3, {}, 6.0),  # needs no counter
        ({"price_per_gpu_hour": 2.0}, 0, {"package-0": KWH}, None),  # a run on CPUs
        ({"price_per_gpu_hour": 2.0, "price_per_kwh": 0.5}, 0, {"package-0": KWH}, 0.5),
        ({"price_per_gpu_hour": 2.0, "price_per_kwh": 0.5}, 1, {}, None),  # a part of it is not known
        ({"price_per_gpu_hour": 0.0, "price_per_kwh": 0.5}, 1, {"gpu_0": KWH}, 0.5),
    ],
)
def test_money(
    tmp_path: Path, costs: dict[str, float], gpus: int, joules: dict[str, float], expected: float | None
) -> None:
    write(tmp_path, About(host="a", rank=0, attempt=1, gpus=gpus, costs=costs), (3600, joules))
    usage = usage_of(tmp_path)
    assert usage is not None and usage.cost == expected


def test_torn_and_foreign_files_cost_nothing_else(tmp_path: Path) -> None:
    path = write(tmp_path, About(host="a-b", rank=0, attempt=1, gpus=1), (10, {"gpu_0": KWH}), (20, {"gpu_0": 2 * KWH}))
    path.write_bytes(path.read_bytes()[:-7])
    (path.parent / "note.txt").write_text("mine")
    (path.parent / "c-0001.jsonl").write_text('{"host": "c", "ra')
    (path.parent / "d-0001.jsonl").write_text("")
    usage = usage_of(tmp_path)
    assert usage is not None and usage.energy_kwh == 1.0


def test_the_last_line_of_a_long_file_counts(tmp_path: Path) -> None:
    sums = [(float(i), {"gpu_0": i * KWH}) for i in range(5000)]
    write(tmp_path, About(host="a", rank=0, attempt=1, gpus=1), *sums)
    usage = usage_of(tmp_path)
    assert usage is not None and usage.energy_kwh == 4999


def test_numbers_for_people() -> None:
    assert [number(value) for value in (0.0, 0.0001234, 1.0, 1.2345, 12.345, 1234.5, 1e9)] == [
        "0", "0.000123", "1", "1.23", "12.3", "1234", "1000000000"
    ]  # fmt: skip


@pytest.mark.parametrize(
    "values", [{"co2_g_per_kwh": -1.0}, {"price_per_kwh": float("nan")}, {"currency": ""}, {"currency": "a\nb"}]
)
def test_costs_that_cannot_be(values: dict[str, float | str]) -> None:
    with pytest.raises(UserError, match=next(iter(values))):
        Costs(**values)  # type: ignore[arg-type]
