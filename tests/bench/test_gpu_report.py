"""What the check on a GPU makes of its lines: claims, tables, rates for the plan, kernels by kind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench.gpu import claims, rates, report
from bench.gpu.__main__ import main
from bench.limits import KERNELS, bf16_peak, kind_of, milliseconds
from launch.forecast import rates as plan_rates

Line = dict[str, Any]


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
