"""What a run has used, over all its machines and attempts, from the files in system/ of its folder.

Energy is that of GPUs and of CPU packages with their memory, as their own counters tell it: without fans, disks, network,
power supplies and cooling. A package's energy counts by the ranks' share of the machine's cores. What was not measured is
not there: no figure is 0 for want of a counter.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

from pipeline.meter.costs import Costs
from pipeline.meter.records import read_sums

JOULES_PER_KWH = 3.6e6


@dataclass(frozen=True, kw_only=True)
class Usage:
    """The sums of one run.

    gpu_joules, cpu_joules: None where none was measured. gpu_gaps, cpu_gaps: some machine or attempt lacks its part. costs:
    the newest attempt's.
    """

    gpu_joules: float | None
    cpu_joules: float | None
    gpu_gaps: bool
    cpu_gaps: bool
    gpu_hours: float
    costs: Costs

    @property
    def energy_kwh(self) -> float | None:
        known = [joules for joules in (self.gpu_joules, self.cpu_joules) if joules is not None]
        return sum(known) / JOULES_PER_KWH if known else None

    @property
    def co2_g(self) -> float | None:
        kwh, factor = self.energy_kwh, self.costs.co2_g_per_kwh
        return kwh * factor if kwh is not None and factor is not None else None

    @property
    def cost(self) -> float | None:
        """Money for energy, plus money for GPU hours, as far as there are prices; None where a part of it is not known."""
        kwh, costs = self.energy_kwh, self.costs
        if costs.price_per_kwh is None:
            return None if costs.price_per_gpu_hour is None or not self.gpu_hours else self._gpu_cost
        return None if kwh is None else kwh * costs.price_per_kwh + self._gpu_cost

    @property
    def _gpu_cost(self) -> float:
        return self.gpu_hours * (self.costs.price_per_gpu_hour or 0.0)

    def figures(self) -> dict[str, float]:
        """energy_kwh, co2_g and cost, those that are known, to six digits."""
        found = {"energy_kwh": self.energy_kwh, "co2_g": self.co2_g, "cost": self.cost}
        return {name: float(f"{value:.6g}") for name, value in found.items() if value is not None}

    def __str__(self) -> str:
        """In words: `1.24 kWh (GPUs; CPUs not measured), 471 g CO2, 0.38 EUR`."""
        known = self.figures()
        words = [f"{number(known['energy_kwh'])} kWh ({self._covers()})" if "energy_kwh" in known else "not measured"]
        if "co2_g" in known:
            words.append(f"{number(known['co2_g'])} g CO2")
        if "cost" in known:
            words.append(f"{number(known['cost'])} {self.costs.currency or '(price without a currency)'}")
        return ", ".join(words)

    def _covers(self) -> str:
        parts = []
        if self.gpu_joules is not None or self.gpu_gaps:
            parts.append(_part("GPUs", self.gpu_joules, self.gpu_gaps))
        parts.append(_part("CPUs", self.cpu_joules, self.cpu_gaps))
        return "; ".join(parts)


def _part(what: str, joules: float | None, gaps: bool) -> str:
    if joules is None:
        return f"{what} not measured"
    return f"{what} in part" if gaps else what


def number(value: float) -> str:
    """Three digits, without an exponent."""
    return f"{value:.0f}" if value >= 100 else f"{float(f'{value:.3g}'):.10f}".rstrip("0").rstrip(".")


def usage_of(folder: Path) -> Usage | None:
    """The sums of the run in `folder`; None where nothing was sampled."""
    sums = list(read_sums(folder))
    if not sums:
        return None
    gpu = cpu = gpu_hours = 0.0
    gpu_known = cpu_known = gpu_gaps = cpu_gaps = False
    for about, last in sums:
        gpus = [joules for name, joules in last.joules.items() if name.startswith("gpu_")]
        cpus = [joules for name, joules in last.joules.items() if not name.startswith("gpu_")]
        gpu, cpu = gpu + sum(gpus), cpu + sum(cpus) * about.cpu_share
        gpu_known, cpu_known = gpu_known or bool(gpus), cpu_known or bool(cpus)
        gpu_gaps, cpu_gaps = gpu_gaps or len(gpus) < about.gpus, cpu_gaps or not cpus
        gpu_hours += last.seconds / 3600 * about.gpus
    newest, _ = sums[-1]
    names = {key.name for key in fields(Costs)}
    return Usage(
        gpu_joules=gpu if gpu_known else None,
        cpu_joules=cpu if cpu_known else None,
        gpu_gaps=gpu_gaps,
        cpu_gaps=cpu_gaps,
        gpu_hours=gpu_hours,
        costs=Costs(**{name: value for name, value in newest.costs.items() if name in names}),
    )
