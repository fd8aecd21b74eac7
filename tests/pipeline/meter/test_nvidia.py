"""The figures of GPUs, by a stand-in for NVML with known counters: no GPU has run this yet."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest

from pipeline.meter.nvidia import Gpus
from tests.pipeline.meter.machines import FakeNvml

A, B = "GPU-aaaa", "GPU-bbbb"


def gpus(nvml: FakeNvml, *identities: str) -> tuple[Gpus, list[str]]:
    said: list[str] = []
    return Gpus(identities, said.append, nvml), said


def test_the_runs_gpus_alone_under_mlflows_names_and_nvidia_smis_numbers() -> None:
    nvml = FakeNvml(lambda uuid: {A: 300.0, B: 350.0}[uuid], lambda uuid: 0.0, A, B)
    found, said = gpus(nvml, B)
    assert said == []
    assert found.read(0.0) == pytest.approx(
        {
            "gpu_4_utilization_percentage": 88,
            "gpu_4_memory_usage_megabytes": 20_000,
            "gpu_4_memory_usage_percentage": 25,
            "gpu_4_power_usage_watts": 350,
            "gpu_4_power_usage_percentage": 50,
            "gpu_4_temperature_celsius": 61,
        }
    )


def test_mlflow_gives_them_these_names() -> None:
    """But for the temperature, which MLflow's monitor does not take."""
    from mlflow.system_metrics.metrics import gpu_monitor

    nvml = FakeNvml(lambda uuid: 300.0, lambda uuid: 0.0, A)
    monitor = gpu_monitor.GPUMonitor.__new__(gpu_monitor.GPUMonitor)
    monitor._metrics, monitor.gpu_handles = defaultdict(list), [A]  # its __init__ asks for a driver
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu_monitor, "pynvml", nvml)
        monitor.collect_metrics()
    ours = {name.replace("gpu_3", "gpu_0"): value for name, value in gpus(nvml, A)[0].read(0.0).items()}
    assert ours.pop("gpu_0_temperature_celsius") == 61
    assert ours == pytest.approx({name: values[0] for name, values in monitor._metrics.items()})


def test_the_counter_is_taken_where_there_is_one_else_the_power() -> None:
    times = np.arange(0.0, 301.0, 7.0)
    watts = 200 + 100 * np.sin(times / 20)
    at = [0]  # the index of now

    def energy(uuid: str) -> float:
        return float(1e6 + 5.0 * times[at[0]])

    def power(uuid: str) -> float:
        return float(watts[at[0]])

    for counter in (energy, None):
        found, said = gpus(FakeNvml(power, counter, A, B), A, B)
        for at[0], time in enumerate(times):
            found.read(time)
        expected = 5.0 * times[-1] if counter else np.trapezoid(watts, times)
        assert said == [] and found.joules() == pytest.approx({"gpu_3": expected, "gpu_4": expected}, rel=1e-5)


def test_a_part_of_a_gpu_tells_its_memory_alone() -> None:
    nvml = FakeNvml(lambda uuid: 300.0, lambda uuid: 7.0, "MIG-aaaa")
    nvml.silent = {"MIG-aaaa"}
    found, said = gpus(nvml, A)
    assert found.read(0.0) == {"gpu_0_memory_usage_megabytes": 20_000, "gpu_0_memory_usage_percentage": 25}
    assert found.joules() == {}
    assert said == ["the energy of gpu_0 is not measured: NVML tells neither its energy nor its power"]


def test_without_a_driver_and_with_an_unknown_gpu_one_sentence_is_said() -> None:
    nvml = FakeNvml(lambda uuid: 300.0, lambda uuid: 7.0, A)
    nvml.lost = True
    found, said = gpus(nvml, A)
    assert (found.read(0.0), found.joules(), len(said)) == ({}, {}, 1) and "Driver Not Loaded" in said[0]
    nvml.lost = False
    found, said = gpus(nvml, A, "cuda:0 of a-jetson")
    assert list(found.joules()) == ["gpu_3"] and len(said) == 1 and "a-jetson" in said[0]
    assert gpus(nvml)[0].read(0.0) == {}  # a run on CPUs does not ask


def test_a_gpu_that_is_lost_during_the_run_keeps_its_sum() -> None:
    readings = iter((10.0, 10.0, 3010.0))  # the first is asked for to see whether there is a counter
    nvml = FakeNvml(lambda uuid: 300.0, lambda uuid: next(readings), A)
    found, _ = gpus(nvml, A)
    found.read(0.0)
    found.read(10.0)
    nvml.lost = True
    assert "gpu_3_power_usage_watts" not in found.read(20.0)
    assert found.joules() == {"gpu_3": 3000.0}


def test_on_this_machine_nvml_is_asked_and_its_absence_is_said() -> None:
    pynvml = pytest.importorskip("pynvml")
    try:
        pynvml.nvmlInit()
        pytest.skip("this machine has a driver")
    except pynvml.NVMLError:
        pass
    said: list[str] = []
    assert Gpus([A], said.append).read(0.0) == {}
    assert len(said) == 1 and said[0].startswith("NVML does not answer")
