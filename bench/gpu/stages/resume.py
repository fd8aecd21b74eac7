"""Bits of whole trainings: the same command twice, killed and continued, with and without the CUDA graph.

With `deterministic: true` they must be equal on a GPU; without it they may differ, and the check says whether they do. The
images are JPEGs, which DALI decodes for each batch: a recorded update reads them from where DALI's copies arrive.
"""

from __future__ import annotations

import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path

import torch

from bench.gpu import folders
from bench.gpu.check import Check
from bench.gpu.runs import Run

ARCHS = {"resnet8": {}, "resnet18": {"stride": "v1.5"}}  # resnet18 has the max pooling of ImageNet's nets


def run(check: Check) -> None:
    folder = check.work / "resume"
    shutil.rmtree(folder, ignore_errors=True)
    data = check.part("digits", partial(folders.digits, check))
    if data is None:
        return
    # Bits do not depend on what else runs: on a GPU the runs are made side by side.
    with ThreadPoolExecutor(6 if check.gpu else 1) as pool:
        for what, one, two, facts in pairs(check, folder, data, pool):
            check.part(what, partial(compare, check, what, one, two, facts))


Weights = Future[torch.Tensor]


def pairs(
    check: Check, folder: Path, data: Path, pool: ThreadPoolExecutor
) -> list[tuple[str, Weights, Weights, dict[str, object]]]:
    """Start all runs; return what is compared, and the weights that must be equal."""
    found: list[tuple[str, Weights, Weights, dict[str, object]]] = []
    for arch in ("resnet8",) if check.dry else ARCHS:
        make = partial(trained, check, folder, data, arch)
        one = pool.submit(make, "one", deterministic=True)
        killed = pool.submit(make, "killed", kill=True, deterministic=True)
        graph = pool.submit(make, "graph", deterministic=True, cuda_graph=True)
        facts: dict[str, object] = {"arch": arch, "deterministic": True}
        found.append(("the same command twice", one, pool.submit(make, "two", deterministic=True), facts))
        found.append(("killed and continued against left alone", one, killed, facts))
        found.append(("with the CUDA graph against without", one, graph, facts))
        if not check.dry:
            free, again = (pool.submit(make, name) for name in ("free-one", "free-two"))
            recorded = pool.submit(make, "free-graph", cuda_graph=True)
            facts = {**facts, "deterministic": False}
            found.append(("the same command twice", free, again, facts))
            found.append(("with the CUDA graph against without", free, recorded, facts))
    return found


def trained(
    check: Check, folder: Path, data: Path, arch: str, name: str, *, kill: bool = False, **options: object
) -> torch.Tensor:
    """Train to the end, killed once on the way if `kill`; return the last checkpoint's values."""
    iterations, every = (24, 8) if check.dry else (300, 40)
    made = Run(
        name=f"{arch}-{name}",
        runs=folder,
        data=data,
        config="configs/demo.yaml",
        options={
            "arch": arch,
            "iterations": iterations,
            "checkpoint.every": every,
            "tracking.log_every": 4,
            "evaluation.every": iterations,
            "recompute_bn_images": 0,
            "schedule.steps": [2 * iterations // 3],
            **({} if check.dry else {"precision": "bf16"}),
            **ARCHS[arch],
            **options,
        },
    )
    if kill:
        made.kill_after(iterations // 8)  # half of the lines: between two checkpoints
    made.finish()
    assert made.latest()["iteration"] == iterations
    check.note("run", name=made.name, decode_on=made.attempts()[-1].get("decode_on"))
    return made.weights()


def compare(check: Check, what: str, one: Weights, two: Weights, facts: dict[str, object]) -> None:
    """Note whether two runs have equal bits. On a CPU, and where `deterministic` is set, a difference is a failure."""
    first, second = one.result(), two.result()
    equal, largest = torch.equal(first, second), float((first - second).abs().max())
    broken = facts["deterministic"] and not equal
    check.note(what, **facts, equal_bits=equal, largest=largest, **({"failed": "bits differ"} if broken else {}))
