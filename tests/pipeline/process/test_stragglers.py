"""The rank that holds the others up is found and named. Real ranks, of which one is stopped again and again."""

from __future__ import annotations

import json
import os
import signal
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipeline.process import stragglers
from pipeline.process.stragglers import Slowest, SumWaits, Watch, slowest
from tests.fleet import Fleet
from tests.helpers import wait_for
from tests.pipeline.small_runs import config_of


def say_it_soon(rank: int) -> None:
    stragglers.SLOW_SECONDS = 0.0


def test_a_rank_that_is_stopped_again_and_again_is_named(digits: Path, tmp_path: Path) -> None:
    config = replace(config_of(digits, tmp_path, "slow"), iterations=1_000_000, recompute_bn_images=0)
    fleet = Fleet(config, 2, tmp_path / "logs", say_it_soon)
    metrics, pid = config.run_folder / "metrics.jsonl", fleet.ranks[1].pid
    assert pid is not None
    wait_for(metrics.exists, "metrics")
    before = len(metrics.read_text().splitlines())

    def named() -> bool:
        os.kill(pid, signal.SIGSTOP)  # 0.2 s of every 0.25 s
        time.sleep(0.2)
        os.kill(pid, signal.SIGCONT)
        time.sleep(0.05)
        return "warning: rank 1 (" in fleet.said(0)

    wait_for(named, "the slow rank's name")
    fleet.kill()
    assert "holds the others up: it takes " in fleet.said(0)
    lines = [json.loads(line) for line in metrics.read_text().splitlines()[before:]]
    seen = [line for line in lines if line["kind"] == "train"]
    assert Counter(line["slowest_rank"] for line in seen).most_common(1)[0][0] == 1
    assert max(line["slowest_rank_ratio"] for line in seen) > stragglers.SLOW_RATIO


def test_the_slowest_is_measured_against_the_others() -> None:
    found = slowest([10.0, 10.0, 15.0, 11.0], [0.0, 0.0, 6.0, 0.0])
    assert found == Slowest(rank=2, ratio=1.5, data_share=0.4)
    assert slowest([2.0, 1.0], [0.0, 0.0]).ratio == 2.0


@pytest.mark.parametrize(
    ("ranks", "ratio", "seconds", "told_at"),
    [
        ([3, 3, 3, 3, 3, 3], 1.5, 20, [2]),  # three in a row, once
        ([3, 3, 3, 3, 3, 3], 1.5, 6, [4]),  # 30 s
        ([3, 2, 3, 2, 3, 2], 1.5, 20, []),
        ([3, 3, 3, 3, 3, 3], 1.1, 20, []),
        ([3, 3, 3, 2, 2, 2], 1.5, 20, [2, 5]),
    ],
)
def test_only_a_rank_that_stays_slow_is_told(
    ranks: list[int], ratio: float, seconds: float, told_at: list[int]
) -> None:
    watch = Watch([f"node{rank}" for rank in range(4)])
    said = [watch.see(Slowest(rank=rank, ratio=ratio, data_share=0.25), seconds) for rank in ranks]
    assert [number for number, sentence in enumerate(said) if sentence] == told_at
    for number in told_at:
        words = "holds the others up: it takes 1.50 times their time for an update, 25% of it waiting for data"
        assert said[number] == f"rank {ranks[number]} (node{ranks[number]}) {words}"


@pytest.mark.gpu
def test_waits_on_a_gpu_are_those_of_its_streams() -> None:
    """The host does not wait: what counts is the time between the events."""
    device = torch.device("cuda")
    waits = SumWaits(device)
    for _ in range(3):
        waits.begin()
        torch.cuda._sleep(100_000_000)  # cycles: 0.05 s at 2 GHz
        waits.end()
    torch.cuda.synchronize()
    assert 0.05 < waits.take() < 3
    assert waits.take() == 0.0
