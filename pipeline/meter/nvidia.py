"""The GPUs of a run on this machine, by NVML, under MLflow's names; numbered as nvidia-smi numbers them.

A part of a GPU (MIG) tells its memory alone: power and energy are those of the whole GPU, which other jobs use too.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from pipeline.meter.joules import Counted, Integrated


@dataclass
class Gpu:
    """One GPU. `energy`: None until NVML has told an energy or a power."""

    name: str
    handle: Any
    energy: Counted | Integrated | None = None


class Gpus:
    """The GPUs with these identities (`pipeline.process.gpus.identity`). `say` is told, once, what is not measured.

    `nvml`: the module pynvml; imported where None.
    """

    def __init__(self, identities: Sequence[str], say: Callable[[str], None], nvml: Any = None) -> None:
        self.gpus: list[Gpu] = []
        if not identities:
            return
        try:
            self.nvml = nvml = nvml or importlib.import_module("pynvml")
            nvml.nvmlInit()
        except Exception as error:  # no package, no driver, another driver
            say(f"NVML does not answer ({error}): nothing of the GPUs is measured")
            return
        found = []
        for identity in identities:
            try:
                found.append(self._handle(identity))
            except nvml.NVMLError as error:
                say(f"NVML does not know the GPU {identity} ({error}): nothing of it is measured")
        self.gpus = [Gpu(f"gpu_{number}", handle) for number, handle in zip(self._numbers(found), found, strict=True)]
        for gpu in self.gpus:
            gpu.energy = self._energy(gpu.handle)
            if gpu.energy is None:
                say(f"the energy of {gpu.name} is not measured: NVML tells neither its energy nor its power")

    def read(self, time: float) -> dict[str, float]:
        """Per cent, megabytes (10^6 bytes), watts and °C now; adds up each GPU's energy. `time` as in joules.py."""
        values: dict[str, float] = {}
        for gpu in self.gpus:
            with suppress(self.nvml.NVMLError):
                self._measure(gpu, time)
            for name, value in self._values(gpu.handle):
                values[f"{gpu.name}_{name}"] = value
        return values

    def joules(self) -> dict[str, float]:
        """The energy of each GPU of which it is measured, since the first reading."""
        return {gpu.name: gpu.energy.joules for gpu in self.gpus if gpu.energy}

    def _handle(self, identity: str) -> Any:
        try:
            return self.nvml.nvmlDeviceGetHandleByUUID(identity)
        except self.nvml.NVMLError:
            # CUDA does not say that a device is a part of a GPU; NVML calls that part by another first word.
            return self.nvml.nvmlDeviceGetHandleByUUID(identity.replace("GPU-", "MIG-", 1))

    def _numbers(self, handles: list[Any]) -> list[int]:
        """nvidia-smi's numbers; 0, 1 ... where NVML does not number all of them, as parts of GPUs."""
        with suppress(self.nvml.NVMLError):
            numbers = [int(self.nvml.nvmlDeviceGetIndex(handle)) for handle in handles]
            if len({*numbers}) == len(numbers):
                return numbers
        return list(range(len(handles)))

    def _energy(self, handle: Any) -> Counted | Integrated | None:
        """How the energy of a GPU can be told: by its counter (Volta and newer), else by its power."""
        for ask, kind in ((self._counter, Counted), (self._power, Integrated)):
            with suppress(self.nvml.NVMLError):
                ask(handle)
                return kind()
        return None

    def _measure(self, gpu: Gpu, time: float) -> None:
        if gpu.energy:
            reading = self._counter if isinstance(gpu.energy, Counted) else self._power
            gpu.energy.add(time, reading(gpu.handle))

    def _counter(self, handle: Any) -> float:
        """Joules since the driver was loaded."""
        return float(self.nvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1000

    def _power(self, handle: Any) -> float:
        """Watts."""
        return float(self.nvml.nvmlDeviceGetPowerUsage(handle)) / 1000

    def _values(self, handle: Any) -> Iterator[tuple[str, float]]:
        """Each figure that NVML tells of this GPU."""
        nvml = self.nvml
        with suppress(nvml.NVMLError):
            yield "utilization_percentage", nvml.nvmlDeviceGetUtilizationRates(handle).gpu
        with suppress(nvml.NVMLError):
            memory = nvml.nvmlDeviceGetMemoryInfo(handle)
            yield "memory_usage_megabytes", memory.used / 1e6
            yield "memory_usage_percentage", 100 * memory.used / memory.total
        with suppress(nvml.NVMLError):
            watts = self._power(handle)
            yield "power_usage_watts", watts
            yield "power_usage_percentage", 100_000 * watts / nvml.nvmlDeviceGetEnforcedPowerLimit(handle)
        with suppress(nvml.NVMLError):
            yield "temperature_celsius", nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)
