"""Snapshots of a state: equal to it at the moment they were taken, whatever happens to it afterwards."""

from __future__ import annotations

import pytest
import torch

from pipeline.training.snapshot import Snapshots
from tests.patience import limit

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def state(device: str, number: int) -> dict:
    generator = torch.Generator().manual_seed(number)
    weights = torch.randn(256, 128, 3, 3, generator=generator).to(memory_format=torch.channels_last)
    counter = torch.tensor(number)
    return {"w": weights.to(device), "rest": [counter.to(device), {"lr": 0.1, "names": ("a", "b"), 3: None}]}


@pytest.mark.parametrize("device", DEVICES)
def test_later_updates_do_not_reach_it(device: str) -> None:
    snapshots = Snapshots()
    for number in range(3):  # the buffers are used again
        source, expected = state(device, number), state("cpu", number)
        taken = snapshots.take(source)
        source["w"].mul_(0)  # queued right behind, as the next update is
        source["rest"][0].add_(5)
        snapshots.wait()
        assert torch.equal(taken["w"], expected["w"]) and taken["w"].stride() == expected["w"].stride()
        assert taken["w"].device.type == "cpu" and taken["rest"][0].item() == number
        assert taken["rest"][1] == {"lr": 0.1, "names": ["a", "b"], 3: None}


@pytest.mark.gpu
def test_the_host_does_not_wait_for_the_device() -> None:
    snapshots, source = Snapshots(), state("cuda", 0)
    snapshots.take(source)  # pins the buffers
    snapshots.wait()
    torch.cuda._sleep(int(limit(2_000_000_000)))  # cycles: a second on a quiet machine
    snapshots.take(source)
    assert not torch.cuda.current_stream().query()
    snapshots.wait()


@pytest.mark.gpu
def test_a_snapshot_is_ordered_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not once a tensor: a state has 500 to 1,400."""
    waits: list[torch.cuda.Stream] = []
    wait = torch.cuda.Stream.wait_stream
    monkeypatch.setattr(torch.cuda.Stream, "wait_stream", lambda own, other: (waits.append(own), wait(own, other)))
    snapshots = Snapshots()
    for count in (1, 2):
        snapshots.take(state("cuda", 0))
        snapshots.wait()
        assert len(waits) == count
