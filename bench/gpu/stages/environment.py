"""Versions, what the GPU can do at most, and whether DALI starts on it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import subprocess
import sys
import tarfile
import time

import torch

from bench.gpu.check import Check, LeftOut

PACKAGES = (
    "torch", "torchvision", "triton", "numpy", "nvidia-dali-cuda130", "nvidia-dali-cuda120", "nvidia-nvimgcodec-cu13",
    "nvidia-nvimgcodec-cu12", "nvidia-nvjpeg", "webdataset", "jsonargparse", "pydantic", "timm",
)  # fmt: skip
NEEDED = (
    "torch", "torchvision", "numpy", "rich", "yaml", "PIL", "sklearn", "fsspec", "nvidia.dali", "webdataset", "jsonargparse",
    "typeshed_client", "docstring_parser", "pydantic", "pynvml", "pytest", "hypothesis",
)  # fmt: skip


def run(check: Check) -> None:
    check.note(
        "versions",
        python=sys.version.split()[0],
        cores=len(os.sched_getaffinity(0)),
        packages={name: found for name in PACKAGES if (found := version(name))},
        missing=[name for name in NEEDED if not present(name)],
    )
    check.part("device", lambda: device(check), gpu=True)
    check.part("ceilings", lambda: ceilings(check), gpu=True)
    check.apart({"DALI decodes one image": decode}, 30)
    check.part("hardware JPEG decoder", lambda: jpeg_engines(check), gpu=True)


def version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def present(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # its package is missing
        return False


def device(check: Check) -> None:
    found = torch.cuda.get_device_properties(0)
    check.note(
        "device",
        name=found.name,
        memory_gb=found.total_memory / 1e9,
        multiprocessors=found.multi_processor_count,
        nccl=str(torch.cuda.nccl.version()),
        cudnn=torch.backends.cudnn.version(),
        cuda=torch.version.cuda,
    )
    print(subprocess.run(["nvidia-smi"], capture_output=True, text=True, encoding="utf-8", errors="replace").stdout)


def ceilings(check: Check) -> None:
    """Measure a large bf16 matrix product and a copy: no net reaches more."""
    matrix = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    for what, call, work in (
        ("bf16 matrix product, TFLOP/s", lambda: matrix @ matrix, 2 * 8192**3 / 1e12),
        ("copy on the device, TB/s read and written", lambda: target.copy_(source), 2 * 2**30 / 1e12),
    ):
        for _ in range(3):
            call()
        torch.cuda.synchronize()
        started = time.perf_counter()
        for _ in range(20):
            call()
        torch.cuda.synchronize()
        check.note(what, value=20 * work / (time.perf_counter() - started))


def decode(check: Check) -> None:
    """Decode one whole image with DALI, on the GPU where there is one."""
    import numpy as np
    import nvidia.dali as dali
    from nvidia.dali import fn, types

    from bench.loader import SAMPLES

    if not SAMPLES.is_file():
        raise LeftOut(f"the sample images are not at {SAMPLES} (--images)")
    with tarfile.open(SAMPLES) as tar:
        encoded = next(file.read() for member in tar if (file := tar.extractfile(member)))
    pipeline = dali.Pipeline(batch_size=1, num_threads=2, device_id=0 if check.gpu else None)
    with pipeline:
        source = fn.external_source(lambda: [np.frombuffer(encoded, np.uint8)], dtype=types.UINT8, ndim=1)
        decoder = "mixed" if check.gpu else "cpu"
        pipeline.set_outputs(fn.decoders.image(source, device=decoder, output_type=types.RGB))
    pipeline.build()
    (images,) = pipeline.run()
    check.note(
        "DALI decodes one image", version=dali.__version__, shape=str(images[0].shape()), place=type(images).__name__
    )


def jpeg_engines(check: Check) -> None:
    """Read the use of the hardware JPEG decoder. Raises LeftOut where this GPU has none, or nothing reads it."""
    if not present("pynvml"):
        raise LeftOut("nvidia-ml-py is not installed")
    import pynvml

    pynvml.nvmlInit()
    try:
        use = pynvml.nvmlDeviceGetJpgUtilization(pynvml.nvmlDeviceGetHandleByIndex(0))
    except (pynvml.NVMLError_NotSupported, pynvml.NVMLError_FunctionNotFound) as error:
        raise LeftOut(f"this GPU or its driver tells of no hardware JPEG decoder ({error})") from None
    check.note("hardware JPEG decoder", utilization=use)
