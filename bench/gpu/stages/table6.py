"""Other nets of Table 6 and Fig. 6 on CIFAR-10, several at once on the GPU; some hundred updates of ResNet-1202."""

from __future__ import annotations

from functools import partial
from typing import Any

from bench.gpu import folders
from bench.gpu.check import Check
from bench.gpu.runs import Run
from bench.gpu.stages.full_cifar import RECIPE, tiny, until_end

AT_ONCE = ("resnet32", "resnet44", "resnet56", "plain20", "plain32", "plain44", "plain56", "resnet110")
DEEPEST: dict[str, Any] = {"arch": "resnet1202", "schedule.start_lr": 0.01, "compile": False, "iterations": 300}


def run(check: Check) -> None:
    data = check.part("CIFAR-10", partial(folders.cifar10, check))
    if data is None:
        return
    make = partial(Run, runs=check.work / "table6", data=data, config=RECIPE)
    deepest = {"arch": "resnet14", "schedule.start_lr": 0.01, **tiny()} if check.dry else DEEPEST
    short = {"schedule.steps": [200], "recompute_bn_images": 0, "evaluation.every": 300}
    options = deepest if check.dry else {**short, **deepest}
    check.part("ResNet-1202", partial(until_end, check, [make(name=str(deepest["arch"]), options=options)]))
    runs = [make(name=arch, options=recipe(check, arch)) for arch in (AT_ONCE[:2] if check.dry else AT_ONCE)]
    check.part("several nets at once", partial(until_end, check, runs))


def recipe(check: Check, arch: str) -> dict[str, Any]:
    warm_up = {"schedule.start_lr": 0.01} if arch == "resnet110" else {}
    return {"arch": "resnet8" if check.dry else arch, "cuda_graph": True, **warm_up, **(tiny() if check.dry else {})}
