"""The host waits for the device once it is AHEAD updates ahead, and never longer than for the update that is too many."""

from __future__ import annotations

import torch

from pipeline.training.pacing import AHEAD, Pacing, pacing


class Device:
    """Does what is queued only when somebody waits for it."""

    def __init__(self) -> None:
        self.queued = self.done = 0

    def mark(self) -> Mark:
        self.queued += 1
        return Mark(self, self.queued)


class Mark:
    def __init__(self, device: Device, place: int) -> None:
        self.device, self.place = device, place

    def synchronize(self) -> None:
        self.device.done = max(self.device.done, self.place)


def test_the_device_has_a_bounded_number_of_updates_left() -> None:
    device = Device()
    pace = Pacing(device.mark)
    left = []
    for _ in range(6):
        pace.queued()
        left.append(device.queued - device.done)
    assert left == [1, AHEAD, AHEAD, AHEAD, AHEAD, AHEAD]


def test_a_cpu_needs_no_pace() -> None:
    assert pacing(torch.device("cpu")) is None
