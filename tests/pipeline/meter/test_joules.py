"""Energy from counters and powers with known integrals, against NumPy and closed forms."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from pipeline.meter.joules import LONGEST_GAP_SECONDS, Counted, Integrated

TIMES = np.sort(np.random.default_rng(0).uniform(0, 600, 200))


def sawtooth(t: np.ndarray) -> np.ndarray:
    return 100 + 400 * ((t / 37) % 1)


POWERS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "constant": lambda t: np.full_like(t, 350.0),
    "ramp": lambda t: 50 + 1.5 * t,
    "sawtooth": sawtooth,
}


@pytest.mark.parametrize("name", POWERS)
def test_a_power_is_integrated_as_numpy_does(name: str) -> None:
    energy, watts = Integrated(), POWERS[name](TIMES)
    for time, value in zip(TIMES, watts, strict=True):
        energy.add(time, value)
    assert energy.joules == pytest.approx(np.trapezoid(watts, TIMES), rel=1e-12)


def test_constants_and_ramps_have_their_exact_integral() -> None:
    for name, expected in (("constant", 350.0 * 600), ("ramp", 50 * 600 + 1.5 * 600**2 / 2)):
        energy = Integrated()
        for time in np.linspace(0, 600, 61):
            energy.add(time, float(POWERS[name](np.array([time]))[0]))
        assert energy.joules == pytest.approx(expected, rel=1e-12)


def test_nobody_knows_the_power_in_a_long_pause() -> None:
    """300 W for 100 s, an hour's pause, 300 W for 50 s."""
    energy = Integrated()
    for time in (*range(0, 101, 10), *range(3700, 3751, 10)):
        energy.add(time, 300.0)
    assert energy.joules == 300 * 150
    energy.add(3750 + LONGEST_GAP_SECONDS, 300.0)
    assert energy.joules == 300 * (150 + LONGEST_GAP_SECONDS)


@pytest.mark.parametrize("range_joules", [65_532.61, 262_143.32885])  # AMD's, Intel's
def test_a_counter_that_goes_round_many_times(range_joules: float) -> None:
    """A package at 50 to 400 W for two days, read every 10 s."""
    times = np.arange(0, 172_800, 10.0)
    watts = np.random.default_rng(1).uniform(50, 400, len(times) - 1)
    true = 1234.5 + np.concatenate([[0], np.cumsum(watts * 10)])
    energy = Counted(range_joules)
    for time, reading in zip(times, true % range_joules, strict=True):
        energy.add(time, reading)
    assert (true // range_joules)[-1] > 100
    assert energy.joules == pytest.approx(true[-1] - true[0], rel=1e-9)


def test_a_pause_in_which_a_counter_may_have_gone_round_twice_counts_nothing() -> None:
    energy = Counted(65_532.0)
    for time, reading in ((0, 1000.0), (10, 3000.0), (7210, 2500.0), (7220, 4500.0)):
        energy.add(time, reading)
    assert energy.joules == 2000 + 2000


def test_nvidias_counter_starts_at_0_with_the_driver_and_counts_through_pauses() -> None:
    energy = Counted()
    for time, reading in ((0, 5e6), (10, 5e6 + 3000), (20, 500.0), (30, 3500.0), (7230, 1_003_500.0)):
        energy.add(time, reading)
    assert energy.joules == 3000 + 500 + 3000 + 1_000_000


def test_one_reading_is_no_energy() -> None:
    for energy in (Counted(), Counted(65_532.0), Integrated()):
        energy.add(0, 4321.0)
        assert energy.joules == 0
