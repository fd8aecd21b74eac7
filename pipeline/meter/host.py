"""CPU, memory, disk and network of this machine, by psutil, under MLflow's names (mlflow/system_metrics)."""

from __future__ import annotations

import os
from contextlib import suppress

import psutil

TOTALS = ("network_receive_megabytes", "network_transmit_megabytes")  # since the start; the other values are of now


class Host:
    """This machine. `folder`: the disk that counts is the one that holds this folder."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = folder
        psutil.cpu_percent()  # the first call measures from here
        self.first = self._network()

    def read(self) -> dict[str, float]:
        """Per cent since the last call, or now; megabytes (10^6 bytes) now, of the network since the start.

        Leaves out what the machine does not tell, as containers may.
        """
        values: dict[str, float] = {}
        with suppress(OSError, psutil.Error):
            values["cpu_utilization_percentage"] = psutil.cpu_percent()
        with suppress(OSError, psutil.Error):
            memory = psutil.virtual_memory()
            values["system_memory_usage_megabytes"] = memory.used / 1e6
            values["system_memory_usage_percentage"] = 100 * memory.used / memory.total
        with suppress(OSError):
            disk = psutil.disk_usage(os.fspath(self.folder))
            values["disk_usage_percentage"] = disk.percent
            values["disk_usage_megabytes"] = disk.used / 1e6
            values["disk_available_megabytes"] = disk.free / 1e6
        if self.first and (now := self._network()):
            values |= {name: (new - old) / 1e6 for name, new, old in zip(TOTALS, now, self.first, strict=True)}
        return values

    def _network(self) -> tuple[int, int] | None:
        """Bytes received and sent since the machine started."""
        try:
            counters = psutil.net_io_counters()
        except (OSError, psutil.Error):
            return None
        return (counters.bytes_recv, counters.bytes_sent) if counters else None
