"""Finds the fastest of many settings from a few noisy measurements, in a limited time. Knows nothing of loaders.

One axis after another: its changes race, all other keys as they are. Keys of which one's best depends on the other's are one
axis. In a round of a race every setting still in it is measured once, and the present one before and after every few of them:
a speed counts by its ratio to the present one's at that time, so that a busy machine slows both alike. After each round the
settings leave that are slower than the fastest by more than chance explains; a new one takes the present one's place where it
was faster by more than the noise. A race at the end decides between what was found and the start, which wins a draw.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

NOISE = 0.02  # a smaller gain is taken for noise: the present value stays
_CHANCE = (0.15, 0.08, 0.05, 0.03)  # after each round of a race: the gap to the fastest that may be chance
_KEPT = 4  # settings at most after the first round
_BETWEEN = 4  # settings at most between two measurements of the present one
_LAST_ROUNDS = 5  # of the race between what was found and the start
_LAST_SHARE = 0.2  # of the time, kept for that race

Setting = Mapping[str, Any]
Axis = Sequence[Setting]  # changes of one key, or of several that belong together


@dataclass(frozen=True)
class Found:
    """The fastest setting, its speed and that of the start (medians of the last race), and how often was measured."""

    setting: dict[str, Any]
    speed: float
    start_speed: float
    measurements: int


class _TimeUp(Exception):  # noqa: N818 - no error
    """What is left of the time is the last race's."""


class Search:
    """measure: returns a setting's speed, any unit. left: the share of the time that is left, 1..0 and below."""

    def __init__(self, measure: Callable[[Setting], float], left: Callable[[], float]) -> None:
        self._measure, self.left = measure, left
        self.measurements = 0

    def find(self, axes: Sequence[Axis], start: Setting) -> Found:
        """Search `axes`, the most important first, from `start`, which has every key.

        The axes are gone through until a whole pass changes nothing, or the time is up.
        """
        present, before = dict(start), None
        try:
            while present != before:
                before = present
                for axis in axes:
                    changed = [{**present, **change} for change in axis]
                    present = self._race(present, [setting for setting in changed if setting != present])
        except _TimeUp:
            pass
        return self._decide(present, dict(start))

    def _race(self, present: dict[str, Any], challengers: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """The fastest; `present` unless a challenger was faster by more than the noise in two rounds at least."""
        ratios: list[list[float]] = [[] for _ in challengers]
        running = list(range(len(challengers)))
        for chance in _CHANCE:
            if not running:
                break
            for i, ratio in zip(running, self._round(present, [challengers[i] for i in running]), strict=True):
                ratios[i].append(ratio)
            fastest = max(1.0, *(median(ratios[i]) for i in running))
            order = sorted(running, key=lambda i: -median(ratios[i]))[:_KEPT]
            running = [i for i in order if median(ratios[i]) >= (1 - chance) * fastest]
            if len(running) == 1 and len(ratios[running[0]]) > 1 and fastest > 1 + chance:
                break  # nothing else comes near
            if fastest == 1.0 and len(ratios[order[0]]) > 1:
                break  # the present one is as good
        gains = {i: median(ratios[i]) for i in running if len(ratios[i]) > 1}
        best = max(gains, key=gains.__getitem__, default=None)
        return present if best is None or gains[best] <= 1 + NOISE else challengers[best]

    def _round(self, present: Setting, settings: Sequence[Setting]) -> list[float]:
        """The ratio of each setting's speed to that of `present`, measured before and after it."""
        ratios: list[float] = []
        before = self._speed(present)
        for start in range(0, len(settings), _BETWEEN):
            if self.left() <= _LAST_SHARE:
                raise _TimeUp
            speeds = [self._speed(setting) for setting in settings[start : start + _BETWEEN]]
            after = self._speed(present)
            for place, speed in enumerate(speeds, start=1):
                ratios.append(speed / (before + (after - before) * place / (len(speeds) + 1)))
            before = after
        return ratios

    def _decide(self, found: dict[str, Any], start: dict[str, Any]) -> Found:
        """The last race, which always has one round."""
        firsts = [self._speed(start)]
        lasts: list[float] = []
        while found != start and (not lasts or (len(lasts) < _LAST_ROUNDS and self.left() > 0)):
            lasts.append(self._speed(found))
            firsts.append(self._speed(start))
        ratios = [2 * last / (firsts[i] + firsts[i + 1]) for i, last in enumerate(lasts)]
        if lasts and median(ratios) > 1 + NOISE:
            return Found(found, median(lasts), median(firsts), self.measurements)
        return Found(start, median(firsts), median(firsts), self.measurements)

    def _speed(self, setting: Setting) -> float:
        self.measurements += 1
        return self._measure(setting)
