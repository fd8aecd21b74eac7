"""The probe finds the first rung that works, whatever the others do, with emulated decoders; and never blames an image."""

from __future__ import annotations

import pickle
import signal
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch

from pipeline.data.batch import BatchStream
from pipeline.data.dataset import Dataset
from pipeline.data.decoders import RUNGS, Rung
from pipeline.data.graphs import Graph, Normalization
from pipeline.data.order import Presentations
from pipeline.data.probe import CHILD, IMAGES, Ended, Probe, Trial, run_child, trial_of
from pipeline.data.views import centre_views
from tests.images import encode, photograph
from tests.patience import limit
from tests.pipeline.data.emulated_decoders import CPU, REASON, Emulated, Fault
from tests.pipeline.data.small_datasets import replace_table, statistics_of_size

CUDA = torch.device("cuda", 0)
STATISTICS = statistics_of_size(64)
GRAPH = Graph("crop", 64, rung="gpu", normalization=Normalization.of(STATISTICS, 64))
SAID = {"crash": "killed by SIGSEGV", "raise": REASON, "hang": "no answer within"}


def stream_of(dataset: Dataset) -> BatchStream:
    return BatchStream(dataset.split("train"), 8, (), lambda _, shapes: centre_views(shapes, 72, 64))


@pytest.fixture(scope="module")
def trial(varied_jpegs: Dataset) -> Trial:
    return trial_of(stream_of(varied_jpegs), GRAPH)


def emulated(faults: dict[str, Fault]) -> Probe:
    return Probe(limit(60), Emulated(faults))


@pytest.mark.waits
@pytest.mark.parametrize("fault", SAID)
@pytest.mark.parametrize("failing", [RUNGS[:1], RUNGS[:2], RUNGS], ids=lambda rungs: f"{len(rungs)}-rungs")
def test_a_failing_rung_is_passed_over(trial: Trial, failing: tuple[Rung, ...], fault: Fault) -> None:
    few = trial.rows(range(4))
    verdict = emulated(dict.fromkeys(failing, fault)).choose([few], CUDA, RUNGS)
    assert verdict.rung == next((rung for rung in RUNGS if rung not in failing), None)
    assert set(verdict.failed) == set(failing)
    assert all(SAID[fault] in reason and "image0" not in reason for reason in verdict.failed.values())


@pytest.mark.costly("two trials of all images on every rung")
def test_sound_decoders_pass_on_every_rung(trial: Trial) -> None:
    whole = Trial(Graph("five-crops", 64, rung="gpu"), trial.encoded, trial.views)
    for rung in RUNGS:
        assert emulated({}).choose([trial, whole], CUDA, [rung]).failed == {}


def test_all_rungs_are_tried_against_one_reference(trial: Trial) -> None:
    children: list[tuple[str, ...]] = []
    decoders = Emulated({"gpu": "crash"})

    def run(question: bytes, seconds: float) -> Ended:
        children.append(tuple(one.graph.rung for one in pickle.loads(question).trials))
        return decoders(question, seconds)

    few = trial.rows(range(4))
    assert Probe(limit(60), run).faults([few], CUDA, RUNGS) == {
        "gpu": SAID["crash"], "gpu-whole": None, "cpu": None,
    }  # fmt: skip
    assert children == [("cpu",), ("gpu",), ("gpu-whole",)]
    broken = Probe(limit(60), Emulated(dict.fromkeys(RUNGS, "raise"))).faults([few], CUDA, RUNGS)
    assert list(broken) == list(RUNGS) and all(fault and REASON in fault for fault in broken.values())


def test_garbage_is_a_failure(trial: Trial) -> None:
    few = trial.rows(range(6))
    verdict = emulated({"gpu": "garbage"}).choose([few], CUDA, RUNGS)
    assert verdict.rung == "gpu-whole"
    assert "its pixels are not the CPU decoder's: PSNR" in verdict.failed["gpu"]


def test_a_cpu_decoder_that_fails_does_not_take_the_gpu_away(trial: Trial) -> None:
    for fault in ("crash", "raise"):
        verdict = emulated({"cpu": fault}).choose([trial.rows(range(3))], CUDA, RUNGS)
        assert verdict.rung == "gpu" and SAID[fault] in verdict.failed["cpu"]


def test_damaged_images_say_nothing(make_dataset: Callable[..., Dataset]) -> None:
    """One has no header, one another size than the table says: neither is tried. One has nothing that decodes behind it."""
    images = [encode(photograph(number, 90, 120)) for number in range(6)]
    images[1] = b"not an image"
    images[4] = encode(photograph(4, 90, 120), "PNG")
    images[4] = images[4][:60] + bytes(len(images[4]) - 80) + images[4][-20:]
    folder = make_dataset(images).folder
    table = np.load(folder / "train.samples.npy")
    table["height"][2] = 16
    replace_table(folder, "train", table)
    trial = trial_of(stream_of(Dataset(folder)), GRAPH)
    assert [images.index(image) for image in trial.encoded] == [0, 3, 4, 5]
    verdict = emulated({}).choose([trial], CUDA, RUNGS)
    assert (verdict.rung, verdict.failed) == ("gpu", {})


def test_a_trial_has_the_largest_images_and_every_kind(varied_jpegs: Dataset) -> None:
    split = varied_jpegs.split("train")
    trial = trial_of(stream_of(varied_jpegs), GRAPH)
    assert len(trial.encoded) == len(trial.views) == min(IMAGES, len(split)) == len(set(trial.encoded))
    chosen = [sample for sample in range(len(split)) if split.read(sample) in trial.encoded]
    assert chosen == [next(i for i in range(len(split)) if split.read(i) == image) for image in trial.encoded]
    sizes = split.samples["size"].astype(int)
    area = split.samples["height"].astype(int) * split.samples["width"]
    for by in (sizes, area):
        assert set(np.argsort(-by, kind="stable")[:4]) <= set(chosen)
    assert {3, 13, 23, 33} & set(chosen)  # the greyscale ones
    views = stream_of(varied_jpegs).request(Presentations(np.zeros(len(chosen), np.int64), np.array(chosen))).views
    np.testing.assert_array_equal(trial.views.window_start, views.window_start)


def test_a_child_is_ended_at_its_limit_and_its_end_is_told() -> None:
    def ended(program: str, seconds: float = 60) -> Ended:
        return run_child(b"question", limit(seconds), (sys.executable, "-S", "-c", program))

    assert ended("import time; time.sleep(3600)", 0.2) == Ended(None)
    assert ended("import os; os.kill(os.getpid(), 11)").code == -signal.SIGSEGV
    assert ended("import sys; sys.exit('no such decoder')") == Ended(1, b"", "no such decoder\n")
    assert ended("import sys; sys.stdout.write(sys.stdin.read())") == Ended(0, b"question")
    # What a scheduler sends to all processes of a job is not for the child, and is no crash.
    program = "import os, signal; os.kill(os.getpid(), signal.SIGTERM); os.write(1, b'on')"
    assert ended(program) == Ended(0, b"on")
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


@pytest.mark.parametrize(
    "output", [b"", pickle.dumps([["an image"]])[:-3], b"garbage"], ids=["nothing", "a part", "other"]
)
def test_a_child_that_ends_well_without_an_answer(trial: Trial, output: bytes) -> None:
    verdict = Probe(run=lambda question, seconds: Ended(0, output)).choose([trial], CUDA, RUNGS)
    assert verdict.rung is None and set(verdict.failed.values()) == {"ended without an answer"}


@pytest.mark.costly("two processes that import torch and DALI")
def test_the_real_child_decodes_on_this_machine(trial: Trial) -> None:
    """On the CPU, where the rung gpu decodes as a GPU would. The second child's libraries would crash at its end."""
    crash = "import atexit, os; atexit.register(os.abort)"
    last = (sys.executable, "-P", "-c", f"{crash}; from pipeline.data import probing; probing.main()")
    children = iter([CHILD, last])
    verdict = Probe(run=lambda question, seconds: run_child(question, seconds, next(children))).choose(
        [trial], CPU, ["gpu"]
    )
    assert verdict.rung == "gpu" and not verdict.failed and next(children, None) is None


@pytest.mark.gpu
def test_a_real_gpu(varied_jpegs: Dataset) -> None:
    trial = trial_of(stream_of(varied_jpegs), GRAPH)
    faults = Probe().faults([trial], CUDA, RUNGS)
    print(faults)  # what this GPU's decoder can do
    assert faults["cpu"] is None and faults["gpu-whole"] is None
    assert "cpu" not in Probe().choose([trial], CUDA, RUNGS).failed
