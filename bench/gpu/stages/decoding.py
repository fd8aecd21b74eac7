"""Pixels of each rung of `loader.decode_on` against the CPU's, each rung in a process of its own, since a decoder may crash.

The promise of the loader: an image's pixels depend on the image and its view alone. So a mini-batch decoded at once must
equal the same one decoded in parts, to the bit; `hw_decoder_load` above 0 is known to break that, 1 in rare cases only.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.gpu import folders
from bench.gpu.check import DRY_STRETCH, Check
from bench.gpu.nets import device
from pipeline.base.cores import available_cores
from pipeline.data.augment import AugmentConfig
from pipeline.data.dataset import Dataset
from pipeline.data.decoders import Rung
from pipeline.data.loader import LoaderConfig, evaluation_batches, training_batches
from pipeline.data.order import Order
from pipeline.data.plans import evaluation_plan, training_plan
from pipeline.data.probe import Probe, trial_of
from pipeline.data.views import CenterCrop, TenCrop, View, WholeImage, shape_blocks

CPU = torch.device("cpu")
RUNGS: tuple[Rung, ...] = ("gpu", "gpu-whole")  # the third is cpu, with which they are compared
PARTS = 7  # the mini-batch of 140 is also decoded in so many parts, as ranks would
PNG_SIDE = 224
PROBE_SECONDS = 25.0  # for a child; a run waits longer


def run(check: Check) -> None:
    if check.part("sample images", partial(folders.samples, check)) is None:
        return
    folders.lossless(check, "lossless", 16, PNG_SIDE)
    # On a CPU its own pixels stand in for a rung's, which runs the comparison.
    rungs: tuple[Rung, ...] = RUNGS if check.gpu else ("cpu",)
    check.part("probe", partial(probe, check, rungs), seconds=15)
    check.apart({f"normalization on {rung}": partial(normalization, rung=rung) for rung in rungs}, 30)
    check.apart({f"pixels of {rung}": partial(pixels, rung=rung) for rung in rungs}, 60)
    check.apart({f"evaluation on {rung}": partial(evaluation, rung=rung) for rung in rungs}, 45)


def probe(check: Check, rungs: Sequence[Rung]) -> None:
    """Have the probe of a run's first minute try each rung: does that crash (NVIDIA/nvImageCodec#55)?"""
    dataset, where = Dataset(folders.samples(check)), device()
    split, started = dataset.split("train"), time.monotonic()
    plans = [
        training_plan(split, 0, AugmentConfig(), dataset.statistics, 256),
        evaluation_plan(split, CenterCrop(), dataset.statistics),
    ]
    trials = [trial_of(plan.stream, plan.graph(config(), where)) for plan in plans]
    faults = Probe(limit=PROBE_SECONDS * (DRY_STRETCH if check.dry else 1)).faults(trials, where, (*rungs, "cpu"))
    check.note("probe", seconds=time.monotonic() - started, rungs=len(faults))
    for rung, fault in faults.items():
        # A GPU's decoder that fails is a finding; the CPU's must work.
        failed = {"failed": fault} if rung == "cpu" and fault else {}
        check.note(f"probe of {rung}", outcome=fault or "works", **failed)


def config(**more: Any) -> LoaderConfig:
    return LoaderConfig(threads=min(8, available_cores()), **more)


def pixels(check: Check, *, rung: str) -> None:
    """Compare training batches of one rung, at several hardware shares."""
    dataset, where = Dataset(folders.samples(check)), device()
    split = dataset.split("train")
    rows = len(split)
    order = Order(rows, rows, seed=3)

    def train(where: torch.device, part: slice, **more: Any) -> Tensor:
        """Return one mini-batch's rows as grey levels, float32 [N, 224, 224, 3]."""
        augment = AugmentConfig(colour=0.0)
        batches = training_batches(split, order, augment, dataset.statistics, part, 0, 1, where, config(**more))
        with batches:
            images = next(batches).images.cpu()
        return images + torch.from_numpy(dataset.statistics.mean_image)

    whole, size = slice(0, rows), rows // PARTS
    cpu = train(CPU, whole)
    made: dict[float, Tensor] = {}
    for load in (1.0, 0.0, 0.65):
        made[load] = train(where, whole, decode_on=rung, hw_decoder_load=load)
        check.note("GPU against CPU", rung=rung, hw_decoder_load=load, **compared(made[load], cpu))
        again = train(where, whole, decode_on=rung, hw_decoder_load=load)
        check.note("the same mini-batch twice", rung=rung, hw_decoder_load=load, **compared(again, made[load]))
        parts = [
            train(where, slice(start, start + size), decode_on=rung, hw_decoder_load=load)
            for start in range(0, rows, size)
        ]
        at_once = f"{rows} at once against {PARTS} x {size}"
        check.note(
            at_once, independence=True, rung=rung, hw_decoder_load=load, **compared(torch.cat(parts), made[load])
        )
    check.note("hardware decoder against CUDA decoder", rung=rung, **compared(made[1.0], made[0.0]))
    plain = train(where, whole, decode_on=rung, fancy_upsampling=False)
    check.note("GPU against CPU, plain upsampling", rung=rung, **compared(plain, cpu))


def evaluation(check: Check, *, rung: str) -> None:
    """Compare evaluation batches of one rung, of each kind of view."""
    dataset = Dataset(folders.samples(check))
    split = dataset.split("train")
    shapes = np.stack([split.samples["height"], split.samples["width"]], axis=1).astype(np.int64)
    blocks = [np.arange(start, min(start + 32, len(split)), dtype=np.int64) for start in range(0, len(split), 32)]
    views: tuple[View, ...] = (CenterCrop(), TenCrop(), WholeImage(short_side=224))
    for view in views:
        chosen = shape_blocks(shapes, [view.short_side], 8) if view.crop is None else blocks
        both = [
            evaluated(
                split, view, dataset.statistics, chosen[:4] if check.dry else chosen, place, config(decode_on=decode_on)
            )
            for place, decode_on in ((device(), rung), (CPU, "auto"))
        ]
        check.note("GPU against CPU, evaluation", rung=rung, view=type(view).__name__, **compared(*both))


def evaluated(
    split: Any, view: View, statistics_: Any, blocks: Any, place: torch.device, loader: LoaderConfig
) -> list[Tensor]:
    """Return the images of all blocks, each float32 [H, W, 3]."""
    with evaluation_batches(split, view, statistics_, blocks, place, loader) as batches:
        images = [batch.images.cpu() for batch in batches]
    return [one for block in images for one in block.flatten(0, -4)]


def normalization(check: Check, *, rung: str) -> None:
    """Compare normalized, coloured batches of lossless images of the crop's size: nothing but arithmetic may differ."""
    dataset = Dataset(folders.lossless(check, "lossless", 16, PNG_SIDE))
    split = dataset.split("train")
    augment, order = AugmentConfig(short_side=(PNG_SIDE, PNG_SIDE)), Order(len(split), len(split), seed=3)

    def train(where: torch.device, dtype: torch.dtype, **more: Any) -> Tensor:
        loader = config(in_memory_mb=0, **more)
        rows = slice(0, len(split))
        with training_batches(
            split, order, augment, dataset.statistics, rows, 0, 1, where, loader, dtype=dtype
        ) as batches:
            return next(batches).images.float().cpu()

    cpu = train(CPU, torch.float32)
    for dtype in (torch.float32, torch.bfloat16) if check.gpu else (torch.float32,):
        found = train(device(), dtype, decode_on=rung)
        expected = cpu.to(dtype).float()
        check.note(
            "normalized on the GPU against the CPU",
            rung=rung,
            dtype=str(dtype),
            equal_bits=torch.equal(found, expected),
            largest=float((found - expected).abs().max()),
        )


def compared(found: Any, expected: Any) -> dict[str, Any]:
    """Compare two sets of images of float32 grey levels, [N, ...] or lists: PSNR in dB, differences in grey levels."""
    differences = [(one - two).abs() for one, two in zip(found, expected, strict=True)]
    noise = [float(10 * torch.log10(255**2 / (one**2).mean().clamp(min=1e-12))) for one in differences]
    return {
        "equal_bits": not any(bool(one.any()) for one in differences),
        "images": len(differences),
        "images_equal": sum(not bool(one.any()) for one in differences),
        "psnr_least": min(noise),
        "psnr_median": statistics.median(noise),
        "largest": max(float(one.max()) for one in differences),
        "above_one_grey_level": max(float((one > 1.001).float().mean()) for one in differences),
    }
