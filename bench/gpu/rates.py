"""The rates that the plan of launch/slurm.py --dry-run reads, from a check's lines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

WAYS = ("ours eager", "ours compiled, compile_by stages")  # as the ImageNet recipes train; other lines are experiments


def store(lines: Sequence[dict[str, Any]], file: Path) -> None:
    """Write what the lines say about whole updates of ours on a GPU; nothing where they say nothing."""
    measured: dict[tuple[Any, ...], dict[str, Any]] = {}
    for line in sorted(
        (line for line in lines if line["what"] in WAYS and "device" in line), key=lambda one: int(one["rows"])
    ):
        measured[line["arch"], line["compiled"], line["micro_batch"]] = (
            line  # of one micro-batch, that of the most rows
        )
    if not measured:
        return
    from launch.forecast import rates  # here, because it needs pydantic, which a machine that measures may lack

    entries = [
        rates.Rate(
            kind="cuda",
            device=line["device"],
            arch=line["arch"],
            stride="v1.5",
            precision="bf16",
            compile=line["compiled"],
            crop=line["crop"],
            micro_batch=line["micro_batch"],
            threads=0,
            processes=1,
            images_per_second=round(line["images_per_second"], 3),
            **{**rates.stamp(), "torch": line["torch"]},
        )
        for line in measured.values()
    ]
    rates.store(entries, file)
