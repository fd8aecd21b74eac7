"""Stand-ins for what no test machine has: NVML with known powers, and Linux's folder of RAPL counters."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace


class FakeNvml:
    """As the module pynvml. `watts`: by UUID, the power now; energy is what `joules` says, None for GPUs without a counter.

    Each UUID in `silent` is known and tells nothing but its memory, as a part of a GPU (MIG).
    """

    NVML_TEMPERATURE_GPU = 0

    class NVMLError(Exception):
        pass

    def __init__(self, watts: Callable[[str], float], joules: Callable[[str], float] | None, *uuids: str) -> None:
        self.watts, self.joules, self.uuids = watts, joules, uuids
        self.silent: set[str] = set()
        self.lost = False

    def nvmlInit(self) -> None:  # noqa: N802
        if self.lost:
            raise self.NVMLError("Driver Not Loaded")

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:  # noqa: N802
        if uuid not in self.uuids:
            raise self.NVMLError("Not Found")
        return uuid

    def nvmlDeviceGetIndex(self, handle: str) -> int:  # noqa: N802
        return 3 + self.uuids.index(self._told(handle))

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:  # noqa: N802
        if self.joules is None:
            raise self.NVMLError("Not Supported")
        return round(1000 * self.joules(self._told(handle)))

    def nvmlDeviceGetPowerUsage(self, handle: str) -> int:  # noqa: N802
        return round(1000 * self.watts(self._told(handle)))

    def nvmlDeviceGetEnforcedPowerLimit(self, handle: str) -> int:  # noqa: N802
        return 700_000

    def nvmlDeviceGetUtilizationRates(self, handle: str) -> SimpleNamespace:  # noqa: N802
        self._told(handle)
        return SimpleNamespace(gpu=88, memory=40)

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> SimpleNamespace:  # noqa: N802
        return SimpleNamespace(total=80_000_000_000, used=20_000_000_000, free=60_000_000_000)

    def nvmlDeviceGetTemperature(self, handle: str, sensor: int) -> int:  # noqa: N802
        self._told(handle)
        return 61

    def _told(self, handle: str) -> str:
        if handle in self.silent or self.lost:
            raise self.NVMLError("Not Supported")
        return handle


def make_zone(root: Path, zone: str, name: str, micro_joules: int = 0, range_uj: int = 262_143_328_850) -> Path:
    """One of Linux's counters; its file energy_uj."""
    folder = root / zone
    folder.mkdir(parents=True)
    (folder / "name").write_text(f"{name}\n")
    (folder / "max_energy_range_uj").write_text(f"{range_uj}\n")
    (folder / "energy_uj").write_text(f"{micro_joules}\n")
    return folder / "energy_uj"
