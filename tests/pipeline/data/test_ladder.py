"""Which rung every rank takes: one for all, the run's last attempt's where it still holds, and what the log says of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

from pipeline.base.command import UserError
from pipeline.data import ladder, tuned
from pipeline.data.augment import AugmentConfig
from pipeline.data.batch import LoaderConfig, Queues
from pipeline.data.dataset import Dataset
from pipeline.data.decoders import Rung
from pipeline.data.ladder import Record, with_decoder
from pipeline.data.plans import Plan, evaluation_plan, training_plan
from pipeline.data.probe import Probe, Verdict
from pipeline.data.probing import Trial
from pipeline.data.tuned import Machine, Tuned
from pipeline.data.views import CenterCrop, TenCrop
from pipeline.process.world import World
from tests.patience import limit
from tests.pipeline.data.emulated_decoders import Emulated
from tests.pipeline.data.small_datasets import statistics_of_size
from tests.ranks import ALONE, run_ranks

GPU, DECODER = "NVIDIA H100 80GB HBM3", "nvImageCodec 0.9.0 on NVIDIA H100 80GB HBM3"
ON_GPU = replace(ALONE, device=torch.device("cuda", 0))
STATISTICS = statistics_of_size(64)
RECORD = Record(rung="gpu-whole", hw_decoder_load=0.0, device=GPU, nvimgcodec="0.9.0", dali="2.4.0")


@dataclass(frozen=True)
class Scripted(Probe):
    """A probe that gives a verdict, and notes what it was asked."""

    verdict: Verdict = field(default_factory=lambda: Verdict("gpu"))
    asked: list[tuple[Rung, ...]] = field(default_factory=list)
    loads: list[float] = field(default_factory=list)

    def choose(self, trials: Sequence[Trial], device: torch.device, rungs: Sequence[Rung]) -> Verdict:
        self.asked.append(tuple(rungs))
        self.loads.extend(trial.graph.hw_decoder_load for trial in trials)
        return self.verdict


def with_a_gpu(exclusive: bool = False) -> Any:
    """What asks the driver, answered."""
    names = {"model_name": lambda _: GPU, "decoder_name": lambda _: DECODER, "is_exclusive": lambda _: exclusive}
    return patch.multiple(ladder, **names, decoder_version=lambda: "0.9.0", dali_version=lambda: "2.4.0")


@pytest.fixture(autouse=True)
def _machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(tuned, "FILE", tmp_path / "loader.yaml")
    monkeypatch.setattr(tuned, "model_name", lambda _: GPU)
    with with_a_gpu():
        yield


@pytest.fixture(scope="module")
def plans(varied_jpegs: Dataset) -> list[Plan]:
    return plans_of(varied_jpegs)


def plans_of(dataset: Dataset) -> list[Plan]:
    split = dataset.split("train")
    training = training_plan(split, 3, AugmentConfig(short_side=(72, 96), crop=64), STATISTICS, 8)
    return [training, evaluation_plan(split, CenterCrop(short_side=72, crop=64), STATISTICS)]


def test_the_first_rung_that_works_is_taken_and_said(plans: list[Plan], capsys: pytest.CaptureFixture[str]) -> None:
    probe = Scripted()
    assert with_decoder(LoaderConfig(), ON_GPU, plans, probe=probe) == LoaderConfig(
        decode_on="gpu", hw_decoder_load=0.0
    )
    assert probe.asked == [("gpu", "gpu-whole", "cpu")] and probe.loads == [0.0, 0.0]
    assert capsys.readouterr().err.startswith(f"decoding on the GPU ({DECODER}, host ")


def test_a_real_probe_says_why_a_rung_was_passed_over(plans: list[Plan], capsys: pytest.CaptureFixture[str]) -> None:
    probe = Probe(limit(60), Emulated({"gpu": "crash"}))
    assert with_decoder(LoaderConfig(), ON_GPU, plans, probe=probe).decode_on == "gpu-whole"
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"decoding on the GPU, whole images ({DECODER}, host ")
    assert line.endswith("): region decoding on the GPU failed (killed by SIGSEGV), see docs/performance.md")


def test_insisting_fails_with_a_sentence(plans: list[Plan]) -> None:
    probe = Scripted(verdict=Verdict(None, {"gpu": "killed by SIGSEGV"}))
    with pytest.raises(UserError, match=r"decode_on is gpu, and that fails .*H100.*killed by SIGSEGV.* to auto"):
        with_decoder(LoaderConfig(decode_on="gpu"), ON_GPU, plans, record=RECORD, probe=probe)
    assert probe.asked == [("gpu",)]


def test_nothing_works(plans: list[Plan]) -> None:
    verdict = Verdict(None, {"cpu": "killed by SIGILL", "gpu": "exit code 1", "gpu-whole": "exit code 1"})
    with pytest.raises(
        UserError, match=r"no decoder works .* decoding on the CPU failed \(killed by SIGILL\); .*make setup"
    ):
        with_decoder(LoaderConfig(), ON_GPU, plans, probe=Scripted(verdict=verdict))


def test_no_probe_where_there_is_nothing_to_choose(plans: list[Plan], tiny_images: Dataset) -> None:
    probe = Scripted()
    assert with_decoder(LoaderConfig(), ALONE, plans, probe=probe).decode_on == "auto"
    assert with_decoder(LoaderConfig(decode_on="cpu"), ON_GPU, plans, probe=probe).decode_on == "cpu"
    kept = training_plan(
        tiny_images.split("train"), 0, AugmentConfig(kind="pad-crop", crop=32), statistics_of_size(32), 8
    )
    assert kept.in_memory(LoaderConfig())
    assert with_decoder(LoaderConfig(), ON_GPU, [kept], probe=probe).decode_on == "cpu"
    assert not probe.asked


def attempt(**changes: Any) -> dict[str, Any]:
    """An attempt as run.json has it."""
    facts = {"decode_on": "gpu-whole", "hw_decoder_load": 0.0, "nvimgcodec": "0.9.0", "dali": "2.4.0"}
    return {"device": GPU, **facts, **changes}


def test_a_record_is_that_of_the_last_attempt_on_a_gpu() -> None:
    assert Record.of([attempt(decode_on="gpu"), attempt()]) == RECORD
    assert Record.of([]) is None
    assert Record.of([attempt(), attempt(device="cpu", decode_on="cpu", hw_decoder_load=None)]) is None
    early: Mapping[str, Any] = {"device": GPU}  # it ended before it chose, or is of a version that recorded no rung
    assert Record.of([early]) is None and Record.of([attempt(), early]) == RECORD


def test_a_requeue_goes_on_as_recorded_and_tries_nothing(plans: list[Plan], capsys: pytest.CaptureFixture[str]) -> None:
    probe = Scripted()
    config = with_decoder(LoaderConfig(), ON_GPU, plans, record=RECORD, probe=probe)
    assert (config.decode_on, config.hw_decoder_load) == ("gpu-whole", 0.0)
    assert not probe.asked and "as in the run's last attempt" in capsys.readouterr().err


@pytest.mark.parametrize("changed", [{"device": "NVIDIA A100"}, {"nvimgcodec": "0.8.0"}, {"dali": "2.3.0"}])
def test_another_machine_or_decoder_starts_at_the_recorded_rung(plans: list[Plan], changed: dict[str, str]) -> None:
    probe = Scripted(verdict=Verdict("gpu-whole"))
    with_decoder(LoaderConfig(), ON_GPU, plans, record=replace(RECORD, **changed), probe=probe)
    assert probe.asked == [("gpu-whole", "cpu")]


def test_a_record_does_not_cover_other_graphs(plans: list[Plan]) -> None:
    probe = Scripted(verdict=Verdict("gpu-whole"))
    ten_crop = evaluation_plan(plans[0].stream.split, TenCrop(short_side=72, crop=64), STATISTICS)
    with_decoder(LoaderConfig(), ON_GPU, [ten_crop], record=RECORD, probe=probe)
    assert probe.asked == [("gpu-whole", "cpu")]


def test_only_a_new_run_starts_as_tuned(plans: list[Plan]) -> None:
    found = Tuned(
        machine=Machine.of(ON_GPU.device, 1),
        decode_on="gpu-whole",
        queues=Queues(threads=1),
        images_per_second=2.0,
        untuned_images_per_second=1.0,
        measured="2026-11-27",
    )
    tuned.store(found)
    probe = Scripted(verdict=Verdict("gpu-whole"))
    config = with_decoder(LoaderConfig(), ON_GPU, plans, new=True, probe=probe)
    assert (config.hw_decoder_load, probe.asked, probe.loads) == (0.0, [("gpu-whole", "cpu")], [0.0, 0.0])
    explicit = LoaderConfig(hw_decoder_load=1.0)
    probe.loads.clear()
    assert with_decoder(explicit, ON_GPU, plans, new=True, probe=probe).hw_decoder_load == 1.0
    assert probe.loads == [1.0, 0.0]  # evaluation's share is 0
    kept = replace(RECORD, hw_decoder_load=1.0)
    assert with_decoder(LoaderConfig(), ON_GPU, plans, record=kept, probe=probe).hw_decoder_load == 1.0
    probe.asked.clear()
    assert with_decoder(LoaderConfig(), ON_GPU, plans, probe=probe).hw_decoder_load == 0.0
    assert probe.asked == [("gpu", "gpu-whole", "cpu")]


@pytest.mark.parametrize(
    ("wanted", "record", "rung"),
    [
        ("gpu", None, "gpu"),
        ("gpu", RECORD, "gpu"),
        ("auto", replace(RECORD, dali="2.3.0"), "gpu-whole"),
        ("auto", RECORD, "gpu-whole"),
        ("auto", None, "cpu"),
    ],
)
def test_nothing_is_tried_on_a_gpu_of_one_process(
    plans: list[Plan], wanted: Any, record: Record | None, rung: Rung, capsys: pytest.CaptureFixture[str]
) -> None:
    probe = Scripted(verdict=Verdict(None))
    with with_a_gpu(exclusive=True):
        config = with_decoder(LoaderConfig(decode_on=wanted), ON_GPU, plans, record=record, probe=probe)
    assert (config.decode_on, probe.asked) == (rung, [])
    said = capsys.readouterr().err
    assert ("in compute mode EXCLUSIVE_PROCESS" in said) == (record is not RECORD or wanted == "gpu")
    assert ("nvidia-smi --compute-mode=DEFAULT" in said) == (rung == "cpu")


def on_one_host(world: World, folder: Path, verdicts: list[Verdict]) -> tuple[str, int]:
    """What a rank ends with, and how often it tried its GPU."""
    probe = Scripted(verdict=verdicts[world.rank])
    with with_a_gpu():
        try:
            plans = plans_of(Dataset(folder))
            config = with_decoder(LoaderConfig(), replace(world, device=ON_GPU.device), plans, probe=probe)
            return config.decode_on, len(probe.asked)
        except UserError as error:
            return str(error), len(probe.asked)


def on_two_hosts(world: World, folder: Path, verdicts: list[Verdict]) -> tuple[str, int]:
    return on_one_host(replace(world, local_rank=0, local_size=1), folder, verdicts)


def test_all_ranks_take_the_lowest_rung_that_any_host_needs(varied_jpegs: Dataset) -> None:
    verdicts = [Verdict("gpu"), Verdict("cpu", {"gpu": "killed by SIGSEGV", "gpu-whole": "no answer within 120 s"})]
    assert run_ranks(2, on_two_hosts, varied_jpegs.folder, verdicts) == [("cpu", 1), ("cpu", 1)]
    nothing = [Verdict("gpu"), Verdict(None, {"cpu": "killed by SIGILL"})]
    (first, _), (second, _) = run_ranks(2, on_two_hosts, varied_jpegs.folder, nothing)
    assert first == second and "no decoder works" in first


@dataclass(frozen=True)
class Broken(Probe):
    def choose(self, trials: Sequence[Trial], device: torch.device, rungs: Sequence[Rung]) -> Verdict:
        raise OSError("no more processes")


def on_a_broken_host(world: World, folder: Path) -> str:
    with with_a_gpu():
        try:
            with_decoder(
                LoaderConfig(), replace(world, device=ON_GPU.device), plans_of(Dataset(folder)), probe=Broken()
            )
        except Exception as error:
            return f"{type(error).__name__}: {error}"
    return "went on"


def test_whatever_fails_on_a_rank_that_tries_ends_the_others_too(varied_jpegs: Dataset) -> None:
    first, second = run_ranks(2, on_a_broken_host, varied_jpegs.folder)
    assert first == "OSError: no more processes"
    assert second.startswith("UserError: trying the decoders failed on host ") and "no more processes" in second


def test_ranks_of_one_host_wait_for_their_main_rank(varied_jpegs: Dataset) -> None:
    verdicts = [Verdict("gpu-whole"), Verdict("gpu")]
    assert run_ranks(2, on_one_host, varied_jpegs.folder, verdicts) == [("gpu-whole", 1), ("gpu-whole", 0)]
