"""The process group that Ray opens for its workers. Imports Ray."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ray.train.torch import TorchConfig

from pipeline.process.gpus import usable

WITH_GPUS = "cpu:gloo,cuda:nccl"


@dataclass
class GroupConfig(TorchConfig):
    """Opens a group with NCCL only where torch can use the GPUs that Ray gave the workers.

    NCCL would fail where it cannot, with words that name no cause. In a group of gloo alone the worker itself comes to
    say why it refuses (pipeline/process/gpus.py).
    """

    @property
    def backend_cls(self) -> type:
        class Backend(super().backend_cls):  # type: ignore[misc]
            def on_start(self, worker_group: Any, config: TorchConfig) -> None:
                if config.backend == WITH_GPUS and not all(worker_group.execute(usable)):
                    config = replace(config, backend="gloo")
                super().on_start(worker_group, config)

        return Backend
