"""`--profile N`: what the trace holds, and that a profiled run computes what any other does."""

from __future__ import annotations

import gzip
import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile, record_function

from pipeline.base.command import UserError
from pipeline.base.layout import profile_trace
from pipeline.loop.profiling import print_profile
from pipeline.loop.trainer import Trainer
from pipeline.process.world import World
from pipeline.run.config import Config, trajectory
from pipeline.training.checkpoint import CheckpointConfig
from pipeline.training.spans import span
from tests.pipeline.small_runs import ITERATIONS, ONE_STAGE, config_of, refusal, series, train_rank, weights
from tests.ranks import run_ranks


def small(digits: Path, runs: Path, name: str, profile: int, iterations: int = ITERATIONS) -> Config:
    config = config_of(digits, runs, name)
    config = replace(config, augment=ONE_STAGE, recompute_bn_images=32, profile=profile)
    return replace(config, iterations=iterations, schedule=replace(config.schedule, steps=(3,)))


def annotations(trace: Path) -> Counter[str]:
    """How often each named block is in a trace."""
    events: list[dict[str, Any]] = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    return Counter(event["name"] for event in events if event.get("cat") == "user_annotation")


@pytest.mark.costly("two whole trainings, one of them under the profiler, compared to the bit")
def test_a_profiled_run_is_the_same_run(digits: Path, tmp_path: Path) -> None:
    plain, profiled = (small(digits, tmp_path, name, n, 18) for name, n in (("plain", 0), ("profiled", 4)))
    for config in (plain, profiled):
        assert run_ranks(1, train_rank, config) == [0]
    assert weights(profiled) == weights(plain) and series(profiled) == series(plain)
    assert trajectory(profiled) == trajectory(plain)
    assert not (plain.run_folder / "profile").exists()
    # 10 updates of warm-up, then those after iterations 10 to 13; 4 groups in each.
    (trace,) = (profiled.run_folder / "profile").iterdir()
    assert trace == profile_trace(profiled.run_folder, 10, 14)
    found = annotations(trace)
    assert {name: found[name] for name in ("waiting for data", "forward", "backward", "optimizer")} == {
        "waiting for data": 4, "forward": 16, "backward": 16, "optimizer": 4,
    }  # fmt: skip
    assert sorted(name for name in found if name.startswith("ProfilerStep")) == [
        f"ProfilerStep#{n}" for n in range(10, 14)
    ]


@pytest.mark.costly("a training under the profiler, whose trace is read")
@pytest.mark.parametrize(("wanted", "begin"), [(4, 2), pytest.param(20, 0, marks=pytest.mark.slow)])
def test_a_run_with_few_iterations_left_has_less_warm_up(digits: Path, tmp_path: Path, wanted: int, begin: int) -> None:
    """Then a shorter profile: of 6 iterations the last 4 are profiled by 4, and all by 20."""
    config = small(digits, tmp_path, "short", wanted, 6)
    assert run_ranks(1, train_rank, config) == [0]
    trace = profile_trace(config.run_folder, begin, 6)
    assert annotations(trace)["optimizer"] == 6 - begin


def test_the_terminal_shows_the_largest_operators_and_the_parts(capsys: pytest.CaptureFixture[str]) -> None:
    """In the order of their own time, per update; shares of parts are of the whole update."""
    images = torch.randn(1024, 1024)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for number in range(2):
            with record_function(f"ProfilerStep#{number}"), span("forward"):
                images = images @ images / 32
                images + 1
    print_profile(profiler, 2, Path("runs/x/profile/trace.json.gz"))
    said = capsys.readouterr().out
    row = re.compile(r"^  (\S.*?) +([\d,]+) +([\d.,]+) +([\d.]+)", re.MULTILINE)
    (first, second, *_), parts = map(row.findall, said.split("parts of"))
    assert first[:2] == ("aten::mm", "1") and float(first[2]) >= float(second[2])
    ((name, calls, _, share),) = parts
    assert (name, calls) == ("forward", "1") and 0 < float(share) <= 100
    assert "runs/x/profile/trace.json.gz" in said
    assert span("forward") is span("optimizer"), "without a profiler, a span costs an object each"


def cut_off(world: World, config: Config, iteration: int) -> str:
    """Train up to an iteration alone."""
    update = Trainer.update

    def cut(trainer: Trainer, *batch: Any) -> None:
        if trainer.progress.iteration == iteration:
            raise UserError("cut off")
        update(trainer, *batch)

    Trainer.update = cut  # type: ignore[method-assign, assignment]
    return refusal(world, config)


@pytest.mark.costly("two trainings of two processes, the second of which continues the first")
def test_a_continued_run_of_two_ranks_is_profiled_by_the_first(digits: Path, tmp_path: Path) -> None:
    config = replace(small(digits, tmp_path, "two", 0, 8), checkpoint=CheckpointConfig(every=4))
    assert run_ranks(2, cut_off, config, 4) == ["cut off"] * 2
    assert run_ranks(2, train_rank, replace(config, profile=3)) == [0, 0]
    (trace,) = (config.run_folder / "profile").iterdir()
    assert trace == profile_trace(config.run_folder, 5, 8)
    found = annotations(trace)
    # The gradients are reduced over ranks.
    assert found["optimizer"] == 3 and any("reduce" in name or "all" in name for name in found)
