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

from bench.gpu import claims, rates, report
from bench.gpu.__main__ import chosen, main
from bench.gpu.check import Check
from bench.gpu.registry import STAGES, Stage
from bench.gpu.runner import LEAST, Runner
from bench.gpu.runs import Run
from bench.gpu.stages import environment, gpu_tests, ranks
from bench.limits import KERNELS, bf16_peak, kind_of, milliseconds
from launch.forecast import rates as plan_rates
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


# Tables and claims


def way(what: str, rows: int, rate: float, **more: Any) -> Line:
    fixed = {"ms_per_update": 1000 * rows / rate, "host_share": 0.5, "start_up_seconds": 9.0, "graphs": 1}
    sizes = {"peak_share": rate / 10_000, "memory_gb": 20.0}
    return {
        "stage": "step", "what": what, "arch": "resnet50", "rows": rows, "images_per_second": rate, **fixed, **sizes, **more
    }  # fmt: skip


MADE_UP: list[Line] = [
    way("torchvision AMP NCHW eager", 256, 1000.0),
    way("timm AMP channels_last compiled", 256, 2000.0),
    way("ours compiled", 256, 2400.0),
    way("ours compiled, one group", 256, 2500.0),
    way("ours compiled, compile_by stages", 256, 2160.0),
    way("ours eager", 32, 1000.0),
    way("ours CUDA graph", 32, 2000.0),
    {"stage": "step", "what": "kernels of ours compiled", "arch": "resnet50", "rows": 32, "kernels": 300, "kernel_ms": 11.0,
     "parts": {"convolutions, classifier": 8.25, "other": 2.75}},
    {"stage": "tests", "what": "tests/a.py::one", "outcome": "passed"},
    {"stage": "tests", "what": "tests/a.py::two", "outcome": "failed", "failed": "failed"},
    {"stage": "loader", "what": "images/s", "decode_on": "gpu", "threads": 16, "value": 7000.0, "cpu_ms_per_image": 0.3,
     "jpeg_engine_percent": 80.0, "device_gb": 2.0},
    {"stage": "loader", "what": "images/s", "decode_on": "cpu", "threads": 16, "value": 3000.0, "cpu_ms_per_image": 4.0,
     "jpeg_engine_percent": None, "device_gb": 1.0},
    {"stage": "tuning", "what": "tuned against the grid", "ratio": 0.97, "tuned": 6790.0, "best": 7000.0},
    {"stage": "resume", "what": "the same command twice", "arch": "resnet8", "deterministic": True, "equal_bits": True,
     "largest": 0.0},
    {"stage": "decoding", "what": "140 at once against 7 x 20", "independence": True, "rung": "gpu", "hw_decoder_load": 1.0,
     "equal_bits": True, "images": 140, "images_equal": 140, "psnr_least": 300.0, "psnr_median": 300.0, "largest": 0.0},
    {"stage": "decoding", "what": "GPU against CPU", "rung": "gpu", "hw_decoder_load": 1.0, "equal_bits": False, "images": 140,
     "images_equal": 3, "psnr_least": 47.3, "psnr_median": 52.0, "largest": 6.0},
    {"stage": "end_to_end", "what": "checkpoint, seconds", "stall_share": 0.08},
    {"stage": "full_cifar", "what": "run", "name": "resnet20", "ended": True, "seconds": 240.0, "val/top1_error": 8.61},
]  # fmt: skip


def test_claims_are_answered_from_the_lines() -> None:
    measured = {what: answer for what, _, _, answer in claims.rows(MADE_UP)}
    expected = {
        "tests marked gpu": "1 passed, 1 failed",
        "ResNet-50, bf16, compiled, synthetic: images/s, share of the bf16 peak": "2,500; 25.0% of the peak",
        "ours / torchvision AMP NCHW; ours / timm compiled channels_last": "torchvision 2.50; timm 1.25",
        "loader alone, images/s: best of the grid; the tuner's choice": "7,000; tuned / best 0.97",
        "a rank of 32 and of 8 rows: ms an update": "32 rows: eager 32.00, CUDA graph 16.00, kernels of compiled 11.00",
        "140 images at once = 7 x 20, by rung and hardware share": "gpu, load 1.0: equal",
        "GPU graphs against the CPU's: least PSNR, largest difference": "gpu: 47.3 dB, at most 6.0 grey levels",
        "checkpoint stall / update": "0.08",
        "ResNet-20 on CIFAR-10: images/s; 64,000 iterations, test error": "to the end in 4.0 min, 8.61%",
        "`compile_by` stages (configs/imagenet.yaml) / net, ResNet-50 on one GPU": "256 rows 0.90",
        "ResNet-101, ResNet-152: images/s": "not measured",
    }
    assert {what: measured[what] for what in expected} == expected


def test_a_part_that_failed_answers_no_claim() -> None:
    failed = {"stage": "resume", "what": "the same command twice", "failed": "RuntimeError: no", "seconds": 3.0}
    measured = dict((what, answer) for what, _, _, answer in claims.rows([failed]))
    assert set(measured.values()) == {"not measured"}


def test_tables_are_markdown() -> None:
    environment = {"stage": "environment", "what": "versions", "cores": 16, "packages": {"torch": "2.11.0"}}
    device = {"stage": "environment", "what": "device", "name": "NVIDIA H100 80GB HBM3"}
    text = report.tables([environment, device, *MADE_UP])
    assert text.startswith("NVIDIA H100 80GB HBM3, 16 cores, torch 2.11.0\n\n### What must come out\n")
    assert report.tables([{**environment, "dry": True}]).startswith("Of a dry run: its figures mean nothing.\n")
    assert "| resnet50 | ours compiled | 256 | 2,400 | 106.7 | 24.0% | 20.0 | 0.50 | 9.0 | 1 |" in text
    assert "| resnet50 | ours compiled | 32 | 300 | 11.00 | convolutions, classifier 75%, other 25% |" in text
    assert "| decode_on gpu, threads 16 | 7,000 | 0.30 | 80 |" in text
    assert "| GPU against CPU | gpu, hw_decoder_load 1.0 | no | 3 of 140 | 47.3 | 6.0 |" in text
    for block in text.split("### ")[1:]:
        rows = [line for line in block.splitlines() if line.startswith("|")]
        assert len({row.replace("\\|", "").count("|") for row in rows}) == 1, block
    assert report.cell("a | b\nc") == "a \\| b c"


def test_several_results_make_one_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [tmp_path / "one.jsonl", tmp_path / "two.jsonl"]
    for file, lines in zip(files, (MADE_UP[:4], MADE_UP[4:]), strict=True):
        file.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    code = main(["--out", str(tmp_path / "out"), "--report", *map(str, files), "--json"])
    assert code == 1  # of MADE_UP one failed
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["failed"] == 1
    assert (tmp_path / "out/table.md").read_text() == report.tables(MADE_UP)


def test_rates_of_the_plan_come_from_the_lines(tmp_path: Path) -> None:
    facts = {"device": "NVIDIA H100 80GB HBM3", "crop": 224, "torch": "2.11.0", "micro_batch": 32}
    lines = [
        way("ours eager", 256, 1900.0, compiled=False, **facts),
        way("ours compiled, compile_by stages", 256, 2800.0, compiled=True, **facts),
        way("ours compiled, compile_by stages", 32, 2500.0, compiled=True, **facts),
        way("ours eager, cudnn_benchmark", 256, 2000.0, compiled=False, **facts),
        way("torchvision AMP NCHW eager", 256, 1200.0),
    ]
    rates.store(lines, tmp_path / "rates.yaml")
    found = plan_rates.matching(plan_rates.read(tmp_path / "rates.yaml"), "cuda", "H100")
    shape = {"arch": "resnet50", "precision": "bf16", "crop": 224, "micro_batch": 32, "threads": 0, "processes": 1}
    for compiled, speed in ((False, 1900.0), (True, 2800.0)):
        rate = plan_rates.find_rate(found, compile=compiled, **shape)  # type: ignore[arg-type]
        assert rate is not None and (rate.images_per_second, rate.compile) == (speed, compiled)
    rates.store([way("torchvision AMP NCHW eager", 256, 1200.0)], tmp_path / "none.yaml")
    assert not (tmp_path / "none.yaml").exists()


def test_kernels_are_told_apart() -> None:
    names = {
        "triton_poi_fused__native_batch_norm_legit_convolution_relu_3": "batch norm, elementwise",
        "sm90_xmma_fprop_implicit_gemm_bf16bf16_bf16f32_f32_nhwckrsc_nhwc": "convolutions, classifier",
        "cutlass::Kernel2<cutlass_80_wmma_tensorop_bf16_s161616gemm_bf16_32x32_128x2_tn_align8>": "convolutions, classifier",
        "void at::native::(anonymous namespace)::multi_tensor_apply_kernel<FusedSgdMathFunctor>": "optimizer",
        "void cudnn::ops::nchwToNhwcKernel<float, float>": "copies, casts",
        "Memcpy DtoD (Device -> Device)": "copies, casts",
        "void at::native::vectorized_elementwise_kernel<4>": "batch norm, elementwise",
        "ncclDevKernel_AllReduce_Sum_f32_RING_LL": "sums over ranks",
        "something_new": "other",
    }
    assert {name: kind_of(name, KERNELS) for name in names} == names
    found = milliseconds([("Memcpy HtoD", 500.0), ("Memset (Device)", 250.0), ("gemm", 1000.0)])
    assert found["copies, casts"] == 0.75 and found["convolutions, classifier"] == 1.0 and found["optimizer"] == 0
    assert bf16_peak("NVIDIA H100 80GB HBM3") == 989e12 and bf16_peak("NVIDIA T4") is None
