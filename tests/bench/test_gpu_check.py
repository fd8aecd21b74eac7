"""The check on a GPU: its stages are processes with limits, and whatever happens in one is a line of the results."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pynvml
import pytest
import torch
import torch.distributed as dist

from bench.gpu import claims
from bench.gpu.__main__ import chosen
from bench.gpu.check import Check
from bench.gpu.registry import STAGES, Stage
from bench.gpu.runner import LEAST, Runner
from bench.gpu.runs import Run
from bench.gpu.stages import environment, gpu_tests, ranks
from pipeline.base.command import UserError
from pipeline.process import gpus
from pipeline.training import reduction
from tests.bench import fake_stages
from tests.helpers import ROOT
from tests.patience import limit

Line = dict[str, Any]


def lines_of(folder: Path) -> list[Line]:
    return [json.loads(text) for text in (folder / "results.jsonl").read_text().splitlines()]


def of_stage(lines: list[Line], stage: str) -> dict[str, Line]:
    return {line["what"]: line for line in lines if line["stage"] == stage}


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a check whose stages fail in every way."""
    folder = tmp_path_factory.mktemp("check")
    seconds = limit(30)
    stages = [
        Stage("fails", seconds, "tests.bench.fake_stages", ""),
        Stage("hangs", limit(3), "tests.bench.fake_stages", ""),
        Stage("crashes", seconds, "tests.bench.fake_stages", ""),
        Stage("missing", seconds, "tests.bench.no_such_stage", ""),
        Stage("works", seconds, "tests.bench.fake_stages", ""),
    ]
    runner = Runner(
        out=folder, work=folder / "work", dry=False, budget=1000, environment={"CUDA_VISIBLE_DEVICES": ""}, least=0
    )
    runner.run(stages)
    return folder


def test_a_failing_part_does_not_stop_the_next(ran: Path) -> None:
    found = of_stage(lines_of(ran), "fails")
    assert list(found) == ["first", "broken", "last", "stage"]
    assert found["broken"]["failed"].startswith("IndexError: ")
    assert "failed" not in found["stage"]


def test_a_hanging_stage_is_stopped_and_keeps_what_it_had(ran: Path) -> None:
    found = of_stage(lines_of(ran), "hangs")
    assert list(found) == ["first", "stage"]
    assert found["stage"]["failed"] == f"stopped at its limit of {limit(3):.0f} s"
    assert found["stage"]["seconds"] < limit(60)  # it would sleep for ten minutes


def test_a_crash_and_a_missing_module_are_noted(ran: Path) -> None:
    lines = lines_of(ran)
    assert of_stage(lines, "crashes")["stage"]["failed"] == "its process ended with SIGSEGV"
    assert of_stage(lines, "missing")["stage"]["failed"] == "its process ended with exit code 1"
    log = (ran / "log.txt").read_text()
    assert "before the crash" in log and "Segmentation fault" in log and "no_such_stage" in log


def test_what_cannot_be_measured_here_is_left_out(ran: Path) -> None:
    found = of_stage(lines_of(ran), "works")
    reasons = {what: line["left_out"] for what, line in found.items() if "left_out" in line}
    assert reasons == {
        "needs a GPU": "no GPU",
        "needs more time": "no time left",
        "is not here": "nothing is installed",
    }
    assert not any("failed" in line for line in found.values())


def test_the_tables_name_what_was_not_measured(ran: Path) -> None:
    table = (ran / "table.md").read_text()
    assert "| crashes | stage | its process ended with SIGSEGV |" in table
    assert "| works | needs a GPU | no GPU |" in table
    assert table.count("| not measured |") == len(claims.CLAIMS)
    assert "fails        FAILED broken: failed IndexError" in (ran / "summary.txt").read_text()


def test_no_stage_starts_when_the_budget_is_spent(tmp_path: Path) -> None:
    runner = Runner(out=tmp_path, work=tmp_path / "work", dry=False, budget=10, environment={})
    runner.run([Stage("works", 5, "tests.bench.fake_stages", "")])
    assert lines_of(tmp_path) == [{"stage": "works", "what": "stage", "left_out": "no time left"}]


def test_files_of_an_earlier_call_are_replaced(tmp_path: Path) -> None:
    (tmp_path / "results.jsonl").write_text('{"stage": "old", "what": "old"}\n')
    Runner(out=tmp_path, work=tmp_path / "work", dry=False, budget=0, environment={}).run([STAGES[0]])
    assert [line["stage"] for line in lines_of(tmp_path)] == [STAGES[0].name]


def test_parts_apart_crash_fail_and_hang_alone(tmp_path: Path) -> None:
    ends = time.monotonic() + limit(60)
    check = Check(stage="one", results=tmp_path / "results.jsonl", work=tmp_path, dry=False, ends=ends)
    parts = {
        "crash": fake_stages.crashes,
        "failure": fake_stages.raises,
        "hang": fake_stages.hangs,
        "sound": fake_stages.notes,
    }
    assert check.apart(parts, limit(5)) == {"sound"}
    found = of_stage(lines_of(tmp_path), "one")
    assert found["crash"]["failed"] == "its process ended with SIGSEGV"
    assert found["failure"]["failed"] == "ValueError: the part's own words"
    assert found["hang"]["failed"].startswith("stopped after")
    assert found["apart"]["value"] == 3.0


def test_no_time_starts_no_process(tmp_path: Path) -> None:
    ends = time.monotonic() + 4
    check = Check(stage="one", results=tmp_path / "results.jsonl", work=tmp_path, dry=False, ends=ends)
    assert check.apart({"sound": fake_stages.notes, "other": fake_stages.notes}, 60) == set()
    reasons = {what: line.get("left_out") for what, line in of_stage(lines_of(tmp_path), "one").items()}
    assert reasons == {"sound": "no time left", "other": "no time left"}


def test_a_gpu_without_hardware_decoder_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As V100 and T4."""

    def unsupported(handle: object) -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)

    monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByIndex", lambda number: number)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetJpgUtilization", unsupported)
    ends = time.monotonic() + 60
    check = Check(stage="one", results=tmp_path / "results.jsonl", work=tmp_path, dry=False, ends=ends)
    check.part("hardware JPEG decoder", lambda: environment.jpeg_engines(check))
    line = of_stage(lines_of(tmp_path), "one")["hardware JPEG decoder"]
    assert "no hardware JPEG decoder" in line["left_out"] and "failed" not in line


def test_two_ranks_of_the_check_may_share_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name in ((gpus, "check_places"), (dist, "init_process_group"), (reduction, "tree_all_reduce_nccl")):
        monkeypatch.setattr(module, name, getattr(module, name))  # as it was, after the test
    shared = [("GPU-1", "host"), ("GPU-1", "host")]
    with pytest.raises(UserError, match="share one GPU"):
        gpus.check_places(shared)
    ranks.share_the_gpu()
    gpus.check_places(shared)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_trainings_of_the_check_get_its_device(device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The device auto is refused where the machine has a GPU that torch cannot use; the check then runs on the CPU."""
    started = Mock()
    monkeypatch.setattr(subprocess, "Popen", started)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: device == "cuda")
    Run(name="one", runs=tmp_path, data=tmp_path, config="configs/demo.yaml", options={"arch": "resnet8"}).start()
    command = started.call_args.args[0]
    assert command[command.index("--device") + 1] == device


PROGRAM = """
import os, sys, time
print("tests/a.py::one[gpu] PASSED [ 25%]\\ntests/a.py::two FAILED [ 50%]\\ntests/a.py::three ", end="", flush=True)
"""


@pytest.mark.parametrize(
    ("end", "said"),
    [("time.sleep(600)", "was stopped after"), ("os.kill(os.getpid(), 11)", "ended with SIGSEGV")],
    ids=["stopped", "crashed"],
)
@pytest.mark.waits
def test_outcomes_before_a_crash_or_a_stop_are_kept(end: str, said: str, tmp_path: Path) -> None:
    ends = time.monotonic() + 5 + limit(5)
    check = Check(stage="tests", results=tmp_path / "results.jsonl", work=tmp_path, dry=False, ends=ends)
    check.part("tests/a.py", lambda: gpu_tests.test(check, [sys.executable, "-S", "-c", PROGRAM + end]))
    found = of_stage(lines_of(tmp_path), "tests")
    assert {name: line.get("outcome") for name, line in found.items()} == {
        "tests/a.py::one[gpu]": "passed", "tests/a.py::two": "failed", "tests/a.py": None,
    }  # fmt: skip
    assert said in found["tests/a.py"]["failed"] and ", in tests/a.py::three" in found["tests/a.py"]["failed"]


def test_stages_are_modules_and_chosen_by_name() -> None:
    for stage in STAGES:
        file = ROOT / f"{stage.module.replace('.', '/')}.py"
        assert "\ndef run(check: Check) -> None:" in file.read_text(), file
    assert [stage.name for stage in chosen("ranks,step")] == ["ranks", "step"]
    assert chosen(None) == list(STAGES)
    with pytest.raises(UserError, match="there is no stage 'stepp': did you mean 'step'"):
        chosen("stepp")


def test_the_two_calls_of_an_offline_machine_fit_into_its_time() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    seconds = [float(words.split()[0]) for words in text.split("--budget ")[1:]]
    assert seconds == [330, 470]  # and 100 s to start the machine and for transfers make 900
    longest = {stage.name: stage.seconds for stage in STAGES}
    assert longest["step"] + longest["ranks"] + LEAST <= 330  # the first call has time for all of its stages


@pytest.mark.costly("imports torch in a process of its own, which finds no package that the machine lacks")
def test_stages_of_the_first_call_need_few_packages() -> None:
    lacking = [
        "pynvml",
        "pydantic",
        "jsonargparse",
        "nvidia.dali",
        "webdataset",
        "mlflow",
        "ray",
        "submitit",
        "docstring_parser",
    ]
    modules = [stage.module for stage in STAGES if stage.name in ("step", "ranks", "compiling", "deep")]
    code = (
        "import sys\n"
        f"sys.modules.update(dict.fromkeys({lacking}))\n"  # importing any of them raises ModuleNotFoundError
        "import bench.gpu.__main__\n" + "".join(f"import {module}\n" for module in modules)
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
