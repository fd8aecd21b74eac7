"""Ways to train a net on synthetic images, and how they are timed."""

from __future__ import annotations

import gc
import importlib.util
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from torch._dynamo.utils import counters

from bench.gpu.check import Check, LeftOut
from bench.limits import bf16_peak, flops_per_image, kernels
from bench.training import CLASSES, alone, our_step, synchronize, synthetic
from pipeline.training.replay import cuda_graphs
from pipeline.training.step import StepConfig

Update = Callable[[], Any]
DRY_ARCH = "resnet8"  # compiled in seconds on a CPU
WINDOW_SECONDS, WINDOWS = 0.6, 3  # a rate is the median of these


def device() -> torch.device:
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


@dataclass(frozen=True)
class Way:
    """A way to train: its update, and what `measure` adds to its line, such as why its net is not compiled."""

    update: Update
    facts: dict[str, Any]


@dataclass(frozen=True)
class Nets:
    """Makes ways to train `arch` on images of `crop` pixels, and measures them as lines of `check`."""

    check: Check
    arch: str
    crop: int

    def ours(self, batch: int, group: int, *, graph: bool = False, compiled: bool = False, **config: Any) -> Way:
        """Return our step in bf16. group: images of a normalization group. config: more values of StepConfig."""
        where = device()
        asked = StepConfig(batch=batch, precision="bf16", compile_crop=self.crop if compiled else None, **config)
        step = our_step(self.arch, asked, min(group, batch), alone(where), cuda_graphs(graph, alone(where)))
        images, labels = synthetic(batch, self.crop, where, step.images_dtype)
        facts: dict[str, Any] = {"not_compiled": step.not_compiled} if step.not_compiled else {}
        if where.type == "cuda" and not graph:  # what the plan knows rates by (bench/gpu/rates.py)
            facts |= {"device": torch.cuda.get_device_name(where), "crop": self.crop, "torch": str(torch.__version__)}
            facts |= {"micro_batch": step.plan.micro_batch, "compiled": compiled and not step.not_compiled}
        return Way(lambda: step.step(images, labels, 1e-3), facts)

    def plain(
        self, batch: int, *, channels_last: bool = False, compiled: bool = False, source: str = "torchvision"
    ) -> Way:
        """Return torchvision's or timm's net under bf16 autocast, in the loop that its users write."""
        where = device()
        layout = torch.channels_last if channels_last else torch.contiguous_format
        net = _net(source, "resnet18" if self.check.dry else self.arch).to(where).train().to(memory_format=layout)
        images, labels = synthetic(batch, self.crop, where)
        images = images.permute(0, 3, 1, 2).contiguous(memory_format=layout)
        optimizer = torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4, fused=True)
        # Inductor takes a CPU minutes, for a speed that nobody asks for.
        called = torch.compile(net, backend="eager" if self.check.dry else "inductor") if compiled else net

        def update() -> None:
            optimizer.zero_grad()
            with torch.autocast(where.type, torch.bfloat16):
                loss = F.cross_entropy(called(images), labels)
            loss.backward()
            optimizer.step()

        return Way(update, {})

    def measure(
        self, what: str, batch: int, make: Callable[[], Way], *, gpu: bool = False, seconds: float = 0.0, **facts: Any
    ) -> None:
        """Measure one way as a part of the stage. seconds: how long it takes at least, see `Check.part`."""
        self.check.part(
            f"{what}, {batch} rows", lambda: self._measure(what, batch, make, facts), gpu=gpu, seconds=seconds
        )

    def _measure(self, what: str, batch: int, make: Callable[[], Way], facts: dict[str, Any]) -> None:
        where, dry = device(), self.check.dry
        forget()
        started = time.perf_counter()
        way = make()
        for _ in range(1 if dry else 5):  # a CUDA graph is recorded at the fourth
            way.update()
        synchronize(where)
        start_up = time.perf_counter() - started
        rate, host = speed(way.update, batch, where, 0.0 if dry else WINDOW_SECONDS, 1 if dry else WINDOWS)
        peak = bf16_peak(torch.cuda.get_device_name(where)) if where.type == "cuda" else None
        self.check.note(
            what,
            arch=self.arch,
            rows=batch,
            images_per_second=rate,
            ms_per_update=1000 * batch / rate,
            host_share=host,
            peak_share=rate * flops_per_image(self.arch, self.crop) / peak if peak else None,
            memory_gb=torch.cuda.max_memory_allocated() / 1e9 if where.type == "cuda" else None,
            start_up_seconds=start_up,
            graphs=counters["stats"].get("unique_graphs", 0),
            **facts,
            **way.facts,
        )

    def profile(self, what: str, batch: int, make: Callable[[], Way]) -> None:
        """Measure the time that the GPU computes in one update, by kind of kernel."""

        def work() -> None:
            forget()
            way = make()
            for _ in range(5):
                way.update()
            synchronize(device())
            number, parts = kernels(way.update, device())
            self.check.note(
                f"kernels of {what}",
                arch=self.arch,
                rows=batch,
                kernels=number,
                kernel_ms=sum(parts.values()),
                parts=parts,
            )

        self.check.part(f"kernels of {what}, {batch} rows", work, gpu=True, seconds=15)


def forget() -> None:
    """Forget the way before: its graphs, its compiled code and its memory."""
    torch._dynamo.reset()
    counters.clear()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def speed(update: Update, rows: int, where: torch.device, seconds: float, windows: int) -> tuple[float, float]:
    """Return images/s, the median of windows of about `seconds`, and the host's share of it: 1 is bound by launches."""
    synchronize(where)
    started = time.perf_counter()
    update()
    synchronize(where)
    count = max(3, min(500, int(seconds / (time.perf_counter() - started)))) if seconds else 1
    rates, shares = [], []
    for _ in range(windows):
        started = time.perf_counter()
        for _ in range(count):
            update()
        host = time.perf_counter() - started
        synchronize(where)
        took = time.perf_counter() - started
        rates.append(count * rows / took)
        shares.append(host / took)
    return statistics.median(rates), statistics.median(shares)


def _net(source: str, arch: str) -> torch.nn.Module:
    """Return a net of another library. Raises LeftOut where timm is not installed."""
    torch.manual_seed(0)
    if source == "torchvision":
        return torchvision.models.get_model(arch, weights=None, num_classes=CLASSES)
    if importlib.util.find_spec("timm") is None:
        raise LeftOut("timm is not installed")
    import timm  # type: ignore[import-not-found]

    net: torch.nn.Module = timm.create_model(arch, pretrained=False, num_classes=CLASSES)
    return net
