"""The stages, their limits and order."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Stage:
    """A stage: `module` has a function `run(check)`; `seconds` is the most that it may take; `about` is for people."""

    name: str
    seconds: float
    module: str
    about: str


# In the order of their value. A stage also ends where the budget does.
STAGES = (
    Stage(
        "environment", 45, "bench.gpu.stages.environment", "versions, what the GPU can do at most, whether DALI starts"
    ),
    Stage("step", 250, "bench.gpu.stages.step", "ResNet-50 on synthetic images, against torchvision and timm"),
    Stage("ranks", 65, "bench.gpu.stages.ranks", "two ranks on one GPU against one; NCCL with a group of one"),
    Stage("decoding", 150, "bench.gpu.stages.decoding", "pixels of each rung of decode_on, the probe, normalization"),
    Stage("tests", 110, "bench.gpu.stages.gpu_tests", "the tests marked gpu"),
    Stage("loader", 110, "bench.gpu.stages.loader", "images/s of the loader over decode_on, hardware share, queues"),
    Stage("resume", 90, "bench.gpu.stages.resume", "the same command twice, killed and continued, with the CUDA graph"),
    Stage("end_to_end", 110, "bench.gpu.stages.end_to_end", "JPEG shards to update; the stall of a checkpoint"),
    Stage("cifar", 80, "bench.gpu.stages.cifar", "ResNet-20 on CIFAR-sized images, CUDA graph and compile on and off"),
    Stage("tuning", 120, "bench.gpu.stages.tuning", "what the tuner chooses against a small grid"),
    Stage(
        "compiling", 180, "bench.gpu.stages.compiling", "start-up, graphs and speed of compile_by, from a cold cache"
    ),
    Stage("deep", 240, "bench.gpu.stages.deep", "ResNet-101 and ResNet-152"),
    Stage("full_cifar", 400, "bench.gpu.stages.full_cifar", "configs/cifar10.yaml to the end (--cifar10)"),
    Stage("table6", 400, "bench.gpu.stages.table6", "several nets of Table 6 at once; ResNet-1202 (--cifar10)"),
)
