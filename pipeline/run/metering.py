"""System metrics beside a training: which rank starts the sampler of its machine, and what it counts there."""

from __future__ import annotations

import os
import socket
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict

from pipeline.meter.process import metering
from pipeline.meter.records import About
from pipeline.process.world import World
from pipeline.run.config import Config


def metered(config: Config, world: World, attempt: int) -> AbstractContextManager[None]:
    """Sample this rank's machine while the block runs, on the lowest rank of each machine; nothing on the others.

    attempt: its number in run.json, from 1.
    """
    every, machine = config.tracking.system_every, world.machine
    if not every or world.rank != min(machine.ranks):
        return nullcontext()
    about = About(
        host=socket.gethostname(),
        rank=world.rank,
        attempt=attempt,
        gpus=len(machine.gpus),
        cpu_share=min(1.0, machine.cores / (os.cpu_count() or machine.cores)),
        costs=asdict(config.tracking.costs),
    )
    return metering(config.run_folder, about, every, machine.gpus)
