"""The config section `tracking.costs`: what makes CO2 and money of a run's energy and GPU hours."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pipeline.base.command import UserError


@dataclass(frozen=True, kw_only=True)
class Costs:
    """What energy and GPUs cost at this site. A launcher takes what is null from the site's file.

    Args:
        co2_g_per_kwh: grams of CO2 equivalent for each kWh, of your grid, times the PUE of your machine room if you know it.
        price_per_kwh: money for each kWh, likewise.
        price_per_gpu_hour: money for each hour of each GPU, as a cluster or a cloud charges it, power included or not.
        currency: the unit of both prices, such as EUR.
    """

    co2_g_per_kwh: float | None = None
    price_per_kwh: float | None = None
    price_per_gpu_hour: float | None = None
    currency: str | None = None

    def __post_init__(self) -> None:
        for name in ("co2_g_per_kwh", "price_per_kwh", "price_per_gpu_hour"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise UserError(f"{name} is {value}: it must be a number of at least 0")
        if self.currency is not None and not (self.currency.isprintable() and 0 < len(self.currency) <= 8):
            raise UserError(f"currency is {self.currency!r}: give its sign or its letters, such as EUR")
