"""Runs a net over a split under a protocol, on one process or many: `score_split` makes scores, `evaluate_errors` counts.

Rank r of W takes every W-th evaluation block, whole. The protocol decides the blocks, so no batch depends on W, and W = 1
gives the same bytes as W = 3 (on the CPU; kernels of other GPUs may differ). Every few rounds the scores go to rank 0,
which keeps them in a partial file, from which an interrupted evaluation continues.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipeline.base.command import UserError
from pipeline.base.progress import Progress
from pipeline.data.conventions import Resizing
from pipeline.data.dataset import Split, Statistics
from pipeline.data.graphs import Normalization
from pipeline.data.loader import Batch, LoaderConfig, evaluation_batches
from pipeline.data.sample_table import UNLABELLED
from pipeline.data.views import WholeImage
from pipeline.evaluation.inference import inference_net
from pipeline.evaluation.partial import PartialScores
from pipeline.evaluation.protocols import PROTOCOLS, Block, Protocol, View, ViewContext, feature_side, mirror_of
from pipeline.evaluation.scores import Provenance, Scores, check_softmax, ranks
from pipeline.process.world import World, on_main
from pipeline.training.precision import Precision

GATHER_ROUNDS = 4  # rounds (a block on every rank) between two gathers, so that a GPU does not stop for every block


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """How images come to the net, whatever the protocol.

    short_side, crop: pixels; 256 and 224 in the paper. normalization: the dataset's statistics, or an explicit mean and
    standard deviation. precision: "bf16" is autocast; the softmax and its averages are always float32. resizing: as in
    `CenterCrop`.
    """

    short_side: int
    crop: int
    normalization: Statistics | Normalization
    loader: LoaderConfig
    precision: Precision = "float32"
    resizing: Resizing | None = None

    def views(self, protocol: Protocol) -> tuple[View, ...]:
        """The protocol's views of each image."""
        return protocol.views(self.short_side, self.crop, self.resizing)

    def normalization_of(self, view: View) -> Normalization:
        """Return the normalization of one view: by the per-pixel mean if its size is the view's, else by its channel mean."""
        if isinstance(self.normalization, Normalization):
            return self.normalization
        return Normalization.of(self.normalization, None if isinstance(view, WholeImage) else view.crop)


@dataclass(frozen=True, kw_only=True)
class Scored:
    """Scores, and the `images` scored in `seconds`, without those of an interrupted attempt."""

    scores: Scores
    images: int
    seconds: float


class GivenUp(Exception):  # noqa: N818 - not an error, but requested
    """An evaluation was given up before its end, on request: there are no error rates."""


def score_split(
    net: nn.Module,
    split: Split,
    protocol: Protocol,
    settings: EvaluationSettings,
    *,
    world: World,
    classes: int,
    provenance: Provenance,
    partial: Path | None = None,
    give_up: Callable[[], bool] = lambda: False,
) -> Scored | None:
    """Return the softmax scores of every sample of `split`; None on ranks other than 0. A collective: every rank calls it.

    net: on the world's device, the same on all ranks, without a DDP wrapper; gives logits [N, classes]. provenance: stored
    with the scores. partial: the file in which rank 0 keeps the scores so far, and from which it continues if the
    fingerprints are equal; the caller removes it after the score file is written. give_up: as in `evaluate_errors`; the
    scores so far are kept in `partial`.
    Raises UserError for an empty split, an image that does not decode, and scores that are no softmax (NaN).
    """
    check_not_empty(split)
    started = time.monotonic()
    blocks = protocol.blocks(split, settings.views(protocol))
    kept = PartialScores(len(split), classes, provenance.fingerprint, partial) if world.is_main else None
    most = GATHER_ROUNDS * max(map(len, blocks))  # images that a rank scores between two gathers
    todo = on_main(world, lambda: [i for i, block in enumerate(blocks) if kept is None or not kept.has(block)])
    done = len(split) - sum(len(blocks[i]) for i in todo)
    text = f"{provenance.arch} {protocol.name} {split.name}"
    mine = [blocks[i] for i in todo[world.rank :: world.size]]
    with (
        kept or nullcontext(),
        Progress(len(split), text, "images", start=done, enabled=world.is_main) as progress,
        _softmaxes(net, split, protocol, settings, mine, world) as results,
    ):
        for start in range(0, len(todo), GATHER_ROUNDS * world.size):
            if give_up():
                raise GivenUp
            step = todo[start : start + GATHER_ROUNDS * world.size]  # rank r takes every W-th, starting at r
            rows = [next(results)[0] for _ in step[world.rank :: world.size]]
            table = torch.zeros(most, classes, dtype=torch.float16, device=world.device)
            if rows:
                table[: sum(map(len, rows))] = torch.cat(rows)
            parts = gather(table, world)
            if kept is None:
                continue
            for rank, part in enumerate(parts[: len(step)]):  # a rank that has no block in the last step sends zeros
                kept.add(np.concatenate([blocks[i] for i in step[rank :: world.size]]), part.cpu().numpy())
            progress.advance(sum(len(blocks[i]) for i in step))
    if kept is None:
        return None
    check_softmax(kept.scores, f"the scores of {provenance.arch} ({provenance.checkpoint})")
    scores = Scores(scores=kept.scores, ids=np.arange(len(split)), labels=split.labels, provenance=provenance)
    return Scored(scores=scores, images=len(split) - done, seconds=time.monotonic() - started)


def evaluate_errors(
    net: nn.Module,
    split: Split,
    *,
    statistics: Statistics | Normalization,
    short_side: int,
    crop: int,
    world: World,
    loader_config: LoaderConfig,
    precision: Precision = "float32",
    give_up: Callable[[], bool] = lambda: False,
) -> tuple[float, float]:
    """Return top-1 and top-5 error of the centre crop in percent, on every rank. A collective: every rank calls it.

    On a CPU, in float32 and with as many threads, these are the errors of the score file that `pipeline.evaluate` makes:
    scores are rounded as in the file, and wrong answers are summed over the ranks as integers. A few images may differ if
    `precision` is bf16, since score files are float32, and on a GPU, where a training leaves TF32 on for convolutions and
    `pipeline.evaluate` switches it off.
    give_up: called equally often on every rank, once before each round of evaluation blocks, with the same answer on all;
    True raises GivenUp. For the other arguments see `EvaluationSettings` and `score_split`. Raises UserError for a split
    that is empty or has no labels, and for an image that does not decode.
    """
    check_not_empty(split)
    if (split.labels == UNLABELLED).any():
        raise UserError(f"the split '{split.name}' of {split.folder} has no labels: evaluate on one that has")
    settings = EvaluationSettings(
        short_side=short_side, crop=crop, normalization=statistics, loader=loader_config, precision=precision
    )
    protocol = PROTOCOLS["center"]
    wrong = torch.zeros(2, dtype=torch.int64, device=world.device)
    blocks = protocol.blocks(split, settings.views(protocol))
    with _softmaxes(net, split, protocol, settings, blocks[world.rank :: world.size], world) as results:
        for _ in range(0, len(blocks), world.size):
            if give_up():
                raise GivenUp
            for scores, labels in islice(results, 1):  # some ranks have no block in the last round
                rank = ranks(scores, labels)
                wrong += torch.stack([(rank >= 1).sum(), (rank >= 5).sum()])
    if world.size > 1:
        dist.all_reduce(wrong)
    top1, top5 = wrong.tolist()
    return 100.0 * top1 / len(split), 100.0 * top5 / len(split)


def check_not_empty(split: Split) -> None:
    """Raise UserError for a split without images."""
    if len(split) == 0:
        raise UserError(f"the split '{split.name}' of {split.folder} is empty: evaluate on one that has images")


@contextmanager
def _softmaxes(
    net: nn.Module,
    split: Split,
    protocol: Protocol,
    settings: EvaluationSettings,
    blocks: Sequence[Block],
    world: World,
) -> Iterator[Iterator[tuple[Tensor, Tensor]]]:
    """Yield an iterator over (softmax float16 [N, classes], labels int64 [N]) of each block, on the device; `net` is kept."""
    net = inference_net(net)
    with ExitStack() as stack:
        loaders, contexts = [], []
        for view in settings.views(protocol) if blocks else ():
            normalization = settings.normalization_of(view)
            batches = evaluation_batches(split, view, normalization, blocks, world.device, settings.loader)
            loaders.append(stack.enter_context(batches))
            window = feature_side(net, settings.crop, world.device) if isinstance(view, WholeImage) else 0
            contexts.append(ViewContext(mirror_of(normalization, world.device), window))

        def results() -> Iterator[tuple[Tensor, Tensor]]:
            for batches in zip(*loaders, strict=True):
                world.watchdog.tick()
                yield _classify(net, protocol, settings.precision, batches, contexts)

        yield results()


@torch.inference_mode()
def _classify(
    net: nn.Module, protocol: Protocol, precision: Precision, batches: Sequence[Batch], contexts: Sequence[ViewContext]
) -> tuple[Tensor, Tensor]:
    """Return the mean of one block's softmax scores over the protocol's views, rounded to float16, and the labels."""
    device = batches[0].images.device
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        pairs = zip(batches, contexts, strict=True)
        softmaxes = [protocol.classify(net, batch.images, context) for batch, context in pairs]
    mean = softmaxes[0] if len(softmaxes) == 1 else torch.stack(softmaxes).mean(dim=0)
    return mean.half(), batches[0].labels


def gather(table: Tensor, world: World) -> list[Tensor]:
    """The tables of all ranks, which have equal shapes, on rank 0; none on other ranks. A collective: every rank calls it."""
    if world.size == 1:
        return [table]
    received = [torch.empty_like(table) for _ in range(world.size)] if world.is_main else None
    dist.gather(table, received)
    return received or []
