"""The energy counters of CPU packages and their memory (RAPL), as Linux shows them in /sys/class/powercap.

Intel's and AMD's CPUs have them. Since Linux 5.10 only root may read them, unless the administrator allows it
(`chmod a+r`): power tells other users what is computed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

POWERCAP = Path("/sys/class/powercap")
# `intel-rapl:0` is a package, `intel-rapl:0:1` a part of one. The same counters stand again under `intel-rapl-mmio:`.
_ZONE = re.compile(r"intel-rapl:\d+(:\d+)?")


@dataclass(frozen=True)
class Zone:
    """One counter. `range_joules`: where it goes round."""

    name: str
    file: Path
    range_joules: float

    def read(self) -> float:
        """Joules. Raises OSError or ValueError."""
        return int(self.file.read_text(encoding="utf-8")) / 1e6


def zones(root: Path = POWERCAP) -> list[Zone]:
    """The packages, and the memory (dram) that is not in them. [] where there is none, or no file says so.

    A package holds its cores and its graphics; "psys" is the whole board, packages included.
    """
    return sorted(_zones(root), key=lambda zone: zone.name)


def _zones(root: Path) -> Iterator[Zone]:
    for folder in root.glob("intel-rapl:*"):
        if not _ZONE.fullmatch(folder.name):
            continue
        try:
            name = (folder / "name").read_text(encoding="utf-8").strip()
            range_joules = int((folder / "max_energy_range_uj").read_text(encoding="utf-8")) / 1e6
        except (OSError, ValueError):
            continue
        if name.startswith("package-"):
            yield Zone(name, folder / "energy_uj", range_joules)
        elif name == "dram":
            yield Zone(f"dram-{folder.name.split(':')[1]}", folder / "energy_uj", range_joules)
