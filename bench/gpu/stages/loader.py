"""Images/s of the loader alone, over the rungs of `decode_on`, the hardware share, threads and queues."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from bench.gpu import folders
from bench.gpu.check import Check
from bench.gpu.nets import device
from bench.training import synchronize
from pipeline.base.cores import available_cores
from pipeline.data.augment import AugmentConfig
from pipeline.data.dataset import Dataset
from pipeline.data.loader import LoaderConfig, training_batches
from pipeline.data.order import Order
from pipeline.training.precision import images_dtype

SECONDS, FILL = 1.5, 8  # a measurement, and the batches before it, in which queues empty or fill to their steady state


def run(check: Check) -> None:
    if check.part("sample images", partial(folders.samples, check)) is None:
        return
    # One after the other, since each takes the machine; apart, since a decoder may crash.
    for rung in ("gpu", "gpu-whole", "cpu") if check.gpu else ("cpu",):
        check.apart({f"grid of {rung}": partial(grid, rung=rung)}, 60)


def grid(check: Check, *, rung: str) -> None:
    cases = list(settings(rung, available_cores()))
    for case in cases[:2] if check.dry else cases:
        check.part(str(case), partial(measure, check, case), seconds=4)


def settings(rung: str, cores: int) -> Iterator[dict[str, Any]]:
    """Yield what is measured of one rung, the most likely best first."""
    base: dict[str, Any] = {"decode_on": rung, "threads": cores}
    yield base
    if rung == "cpu":
        yield base | {"read_ahead": 4, "ready": 4, "decode_ahead": 4, "read_threads": 32}
        return
    for load in (1.0, 0.65) if rung == "gpu-whole" else (1.0, 0.5, 0.65, 0.8, 0.9):
        yield base | {"hw_decoder_load": load}
    if rung == "gpu-whole":
        return
    for load in (0.0, 1.0, 0.65):
        yield base | {"hw_decoder_load": load, "threads": max(1, cores // 2)}
        yield base | {"hw_decoder_load": load, "decode_ahead": 3}
    for load in (0.0, 1.0):
        yield base | {"hw_decoder_load": load, "fancy_upsampling": False}
    yield base | {"read_ahead": 4, "ready": 4, "decode_ahead": 4, "read_threads": 32}


def measure(check: Check, case: dict[str, Any]) -> float:
    """Note the rate of one setting, and return it: images/s that an idle consumer gets."""
    dataset, where = Dataset(folders.samples(check)), device()
    split, (batch, seconds) = dataset.split("train"), ((16, 0.3) if check.dry else (256, SECONDS))
    order, rows = Order(len(split), batch, seed=3), slice(0, batch)
    utilization = jpeg_utilization()
    with training_batches(
        split, order, AugmentConfig(), dataset.statistics, rows, 0, 1 << 40, where, LoaderConfig(**case),
        dtype=images_dtype("bf16", where),
    ) as batches:  # fmt: skip
        for _ in range(2 if check.dry else FILL):
            next(batches)
        synchronize(where)
        started, cpu, count, engines = time.perf_counter(), time.process_time(), 0, []
        while time.perf_counter() - started < seconds:
            next(batches)
            count += 1
            if utilization and count % 3 == 0:
                engines.append(utilization())
        synchronize(where)
        took, cpu = time.perf_counter() - started, time.process_time() - cpu
        used = [total - free for free, total in [torch.cuda.mem_get_info()]] if where.type == "cuda" else [0]
    rate = count * batch / took
    check.note(
        "images/s",
        **case,
        value=rate,
        cpu_ms_per_image=1000 * cpu / count / batch,
        jpeg_engine_percent=statistics.mean(engines) if engines else None,
        device_gb=used[0] / 1e9,
    )
    return rate


def jpeg_utilization() -> Callable[[], float] | None:
    """Return what reads the use of the hardware JPEG decoder in percent, None where nothing does."""
    with contextlib.suppress(Exception):
        import pynvml

        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(0)
        pynvml.nvmlDeviceGetJpgUtilization(handle)
        return lambda: float(pynvml.nvmlDeviceGetJpgUtilization(handle)[0])
    return None
