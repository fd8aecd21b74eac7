"""The search for the fastest setting, on surfaces whose best is known, with the noise of a busy machine and its own clock."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from pipeline.data.search import Found, Search, Setting

SPACE = {"mode": ("a", "b", "c", "d"), "threads": (1, 2, 4, 8, 16), "ahead": (1, 2, 3, 4), "reads": (4, 16, 64)}
AXES = [
    [{"mode": mode, "threads": threads} for mode in SPACE["mode"] for threads in SPACE["threads"]],
    [{"ahead": ahead} for ahead in SPACE["ahead"]],
    [{"reads": reads} for reads in SPACE["reads"]],
]
START = {"mode": "a", "threads": 8, "ahead": 2, "reads": 16}
SECONDS, SLICE = 60.0, 0.6  # in all, and of a measurement: time for 100, and there are 240 settings


def surface(number: int) -> Callable[[Setting], float]:
    """A rate with a best number of threads, diminishing returns of both depths, and a mode that shifts the best threads."""
    random = np.random.default_rng(number)
    modes = dict(zip(SPACE["mode"], random.uniform(0.4, 1.0, 4), strict=True))
    best = dict(zip(SPACE["mode"], random.uniform(0.5, 4.0, 4), strict=True))  # log2 of threads
    width, ahead, reads = random.uniform(1.5, 4.0), random.uniform(0.1, 1.5), random.uniform(0.2, 6.0)

    def rate(setting: Setting) -> float:
        threads = np.exp(-(((np.log2(setting["threads"]) - best[setting["mode"]]) / width) ** 2))
        depth = setting["ahead"] / (setting["ahead"] + ahead)
        return float(3000 * modes[setting["mode"]] * threads * depth * setting["reads"] / (setting["reads"] + reads))

    return rate


def best_of_grid(rate: Callable[[Setting], float]) -> float:
    return max(rate(dict(zip(SPACE, values, strict=True))) for values in itertools.product(*SPACE.values()))


def search(rate: Callable[[Setting], float], seed: int, noise: float, seconds: float = SECONDS) -> Found:
    """Search where each measurement is off by `noise`, and all of them by a load that comes and goes over 30 of them."""
    random, measured = np.random.default_rng(seed), itertools.count()
    clock = 0.0

    def measure(setting: Setting) -> float:
        nonlocal clock
        clock += SLICE
        load = 1 + 0.5 * np.sin(next(measured) / 30 * np.pi) ** 2
        return rate(setting) / load * float(np.exp(noise * random.standard_normal()))

    return Search(measure, lambda: 1 - clock / seconds).find(AXES, START)


@pytest.mark.parametrize("seed", range(12))
def test_it_comes_within_5_percent_of_the_best(seed: int) -> None:
    rate = surface(seed)
    found = search(rate, seed, noise=0.03)
    assert rate(found.setting) >= 0.95 * best_of_grid(rate)
    assert found.measurements <= SECONDS / SLICE + 2  # a speed, and the start's after it


def test_without_a_difference_the_start_stays() -> None:
    changed = [seed for seed in range(20) if search(lambda _: 1000.0, seed, noise=0.01).setting != START]
    assert len(changed) <= 4  # by chance; a faster setting is never refused for being near


def test_the_result_is_hardly_worse_than_the_start_on_a_very_noisy_machine() -> None:
    for seed in range(12):
        rate = surface(seed)
        assert rate(search(rate, seed, noise=0.15).setting) >= 0.9 * rate(START)


def test_no_time_leaves_the_start() -> None:
    found = search(surface(0), 0, noise=0.0, seconds=1e-9)
    assert found == Found(START, found.speed, found.speed, found.measurements) and found.measurements <= 2


def test_speeds_are_those_of_the_last_race() -> None:
    def rate(setting: Setting) -> float:
        return {"a": 100.0, "b": 150.0}.get(setting["mode"], 50.0)

    clock: list[Any] = []

    def measure(setting: Setting) -> float:
        clock.append(setting)
        return rate(setting)

    found = Search(measure, lambda: 1 - len(clock) / 60).find(AXES, START)
    assert (found.setting["mode"], found.speed, found.start_speed) == ("b", 150.0, 100.0)
    assert found.measurements == len(clock)
