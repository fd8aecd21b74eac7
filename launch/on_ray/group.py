"""How Ray's workers come to their group: they get torchrun's names, and open the group themselves. Imports Ray.

Ray's own way opens the group before our code begins: its store listens on every interface, and what goes wrong there is
told in words that name no cause.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from typing import Any

from ray.train.torch import TorchConfig


@dataclass
class GroupConfig(TorchConfig):
    """Names the ranks and their meeting place; pipeline/process/world.py opens the group, as under every launcher."""

    @property
    def backend_cls(self) -> type:
        class Backend(super().backend_cls):  # type: ignore[misc]
            def on_start(self, worker_group: Any, config: TorchConfig) -> None:
                address, port = worker_group.execute_single(0, _meeting_place)
                worker_group.execute(_name_rank, address, port)

        return Backend


def _meeting_place() -> tuple[str, int]:
    """In rank 0: its node's address in the cluster, and a port that is free there."""
    import ray.util

    address = ray.util.get_node_ip_address()
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
        probe.bind(("", 0))  # free at every address: workers of one machine meet at another
        return address, int(probe.getsockname()[1])


def _name_rank(address: str, port: int) -> None:
    """In every worker: set torchrun's names."""
    import ray.train

    context = ray.train.get_context()
    os.environ |= {
        "RANK": str(context.get_world_rank()),
        "WORLD_SIZE": str(context.get_world_size()),
        "LOCAL_RANK": str(context.get_local_rank()),
        "LOCAL_WORLD_SIZE": str(context.get_local_world_size()),
        "MASTER_ADDR": address,
        "MASTER_PORT": str(port),
    }
