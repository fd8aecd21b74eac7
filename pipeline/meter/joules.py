"""Energy from what hardware tells: counters that go round or start again, or power alone.

Times are in seconds, by a clock that also counts while the machine sleeps. What happened in a pause too long to be known is
not counted: these sums are never above what was measured.
"""

from __future__ import annotations

LONGEST_GAP_SECONDS = 60.0  # between two readings of a power that are joined by a straight line
MOST_WATTS = 1000.0  # of one CPU package: tells how fast its counter can go round


class Counted:
    """The joules of a counter since the first reading. `range_joules`: where the counter goes round; None: nowhere."""

    def __init__(self, range_joules: float | None = None) -> None:
        self.range_joules = range_joules
        self.joules = 0.0
        self._last: tuple[float, float] | None = None

    def add(self, time: float, reading: float) -> None:
        """Take a reading, in joules.

        A counter without a range that shows less than before has started again at 0. One with a range has gone round once,
        and a pause in which it may have gone round more often counts nothing.
        """
        if self._last is not None:
            before, last = self._last
            grown = reading - last
            if self.range_joules is None:
                self.joules += grown if grown >= 0 else reading
            elif (time - before) * MOST_WATTS < self.range_joules:
                self.joules += grown if grown >= 0 else grown + self.range_joules
        self._last = time, reading


class Integrated:
    """The joules of a power since the first reading, by the trapezoid rule; longer pauses than a minute count nothing."""

    def __init__(self) -> None:
        self.joules = 0.0
        self._last: tuple[float, float] | None = None

    def add(self, time: float, reading: float) -> None:
        """Take a reading, in watts."""
        if self._last is not None:
            before, last = self._last
            if time - before <= LONGEST_GAP_SECONDS:
                self.joules += (time - before) * (last + reading) / 2
        self._last = time, reading
