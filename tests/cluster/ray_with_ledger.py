"""launch/ray_train.py whose workers write down which samples every update took: LEDGER/PROCESS.jsonl, a line for each.

An update takes UPDATE_SECONDS at least: what the test does to the nodes meanwhile takes Ray minutes on any machine.

python tests/cluster/ray_with_ledger.py LEDGER OPTIONS OF launch/ray_train.py
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from launch import ray_train
from launch.on_ray import worker as ray_worker
from pipeline.base import command

UPDATE_SECONDS = 0.05


def keep(ledger: Path) -> None:
    """In a worker: note the ids of the batch that each update follows, and the iteration that the update leads to."""
    from pipeline.data.loader import BatchIterator
    from pipeline.loop.trainer import Trainer

    following, update = BatchIterator.__next__, Trainer.update
    ids: list[int] = []

    def noting_next(batches: BatchIterator) -> Any:
        batch = following(batches)
        ids[:] = batch.ids.tolist()
        return batch

    def noting_update(trainer: Trainer, *batch: Any) -> None:
        taken, end = list(ids), time.monotonic() + UPDATE_SECONDS
        update(trainer, *batch)
        line = {"time": time.time(), "iteration": trainer.progress.iteration, "rank": trainer.world.rank, "ids": taken}
        line["world_size"] = trainer.world.size
        with open(ledger / f"{os.getpid()}.jsonl", "a") as file:
            file.write(json.dumps(line) + "\n")
        time.sleep(max(0.0, end - time.monotonic()))

    BatchIterator.__next__ = noting_next  # type: ignore[method-assign, assignment]
    Trainer.update = noting_update  # type: ignore[method-assign, assignment]


if __name__ == "__main__":
    folder = Path(sys.argv[1])

    def train(arguments: Any) -> None:
        keep(folder)
        ray_worker.train(arguments)

    ray_train.train = train
    command.run(lambda: ray_train.main(sys.argv[2:]))
