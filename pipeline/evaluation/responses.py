"""Layer responses (section 4.2, Fig. 7): how strongly each 3x3 layer of a net answers, over a split.

"The responses are the outputs of each 3x3 layer, after BN and before other nonlinearity (ReLU/addition)." A layer's
figure is the standard deviation of all its outputs: over images, channels and positions together.

Rank r of W takes every W-th evaluation block of the centre-crop protocol, whole, and keeps (count, mean, sum of squared
deviations) of each block and layer in float64. Rank 0 puts them together with exactly rounded sums, whose order does not
matter: on the CPU the result is the same, to the bit, on any number of ranks.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.base.command import Progress, UserError
from pipeline.base.files import write_text
from pipeline.data.dataset import Split
from pipeline.data.loader import evaluation_batches
from pipeline.evaluation.protocols import channels_first, find
from pipeline.evaluation.scoring import EvaluationSettings
from pipeline.process.world import World

FILE = "responses.json"  # in the run folder


@dataclass(frozen=True, kw_only=True)
class Responses:
    """The responses of one net over one split; RUN/responses.json.

    layers: the 3x3 convolutions by name, in the order in which the image passes them. std: float, one per layer.
    images: how many of `split` were shown, all of it. checkpoint: the file's name, which holds its digest.
    weights: "final" or "recomputed-bn"; weights_sha256, dataset_sha256: as in score files. iteration: updates done.
    """

    arch: str
    split: str
    images: int
    iteration: int
    checkpoint: str
    weights: str
    weights_sha256: str
    dataset_sha256: str
    layers: tuple[str, ...]
    std: tuple[float, ...]


def layers_of(net: nn.Module) -> dict[str, nn.BatchNorm2d]:
    """The normalization behind each 3x3 convolution, by the convolution's name, in the order of the forward pass.

    In a bottleneck that is the middle layer alone; the 7x7 of the ImageNet nets and projections are none. The first
    layer of the CIFAR nets is one.
    """
    modules = dict(net.named_modules())
    found = {}
    for name, module in modules.items():
        if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3):
            norm = modules[name.replace("conv", "bn")]
            assert isinstance(norm, nn.BatchNorm2d), name
            found[name] = norm
    assert found, "a net of the family has 3x3 layers"
    return found


def moments(values: Tensor) -> Tensor:
    """float64 [3]: count, mean and sum of squared deviations from it, of all of `values`."""
    variance, mean = torch.var_mean(values.double(), correction=0)
    count = torch.tensor(values.numel(), dtype=torch.float64, device=values.device)
    return torch.stack([count, mean, variance * count])


def standard_deviation(parts: NDArray[np.float64]) -> float:
    """The standard deviation of everything behind `parts`, float64 [parts, 3] of `moments`; their order does not matter.

    Chan, Golub and LeVeque's merge of all parts at once: deviations from the common mean, so that nothing cancels.
    """
    rows = parts.tolist()
    total = math.fsum(count for count, _, _ in rows)
    mean = math.fsum(count * own for count, own, _ in rows) / total
    return math.sqrt(math.fsum(squares + count * (own - mean) ** 2 for count, own, squares in rows) / total)


def measure(
    net: nn.Module, split: Split, showing: EvaluationSettings, *, world: World, show_progress: bool = False
) -> dict[str, float] | None:
    """The standard deviation of each 3x3 layer's responses over `split`; None on ranks other than 0. Every rank calls it.

    net: on the world's device, the same on all ranks. showing: how the images come to it, seen as by the centre-crop test.
    Raises UserError for an empty split and for images that do not decode.
    """
    if len(split) == 0:
        raise UserError(f"the split '{split.name}' of {split.folder} is empty: measure on one that has images")
    protocol = find("center")
    (view,) = protocol.views(showing.short_side, showing.crop)
    blocks = protocol.blocks(split, (view,))
    mine = blocks[world.rank :: world.size]
    rows = -(-len(blocks) // world.size)  # of the longest rank; the others' last row stays empty
    norms = layers_of(net)
    table = torch.zeros(rows, len(norms), 3, dtype=torch.float64, device=world.device)
    bar = Progress(len(split), f"responses {split.name}", "images", enabled=show_progress and world.is_main)
    if mine:
        batches = evaluation_batches(
            split, view, showing.normalization_of(view), mine, world.device, showing.loader
        )  # fmt: skip
        with bar as progress, batches, _watching(net, list(norms.values())) as seen, torch.inference_mode():
            for row, batch in enumerate(batches):
                net(channels_first(batch.images))
                table[row] = torch.stack(seen)
                seen.clear()
                shown = blocks[row * world.size : (row + 1) * world.size]
                progress.advance(sum(map(len, shown)))
    parts = _gather(table, world)
    if parts is None:
        return None
    return {name: standard_deviation(parts[parts[:, i, 0] > 0, i]) for i, name in enumerate(norms)}


@contextmanager
def _watching(net: nn.Module, norms: Sequence[nn.BatchNorm2d]) -> Iterator[list[Tensor]]:
    """A list that every pass of `net` appends the moments of each norm's output to, in order; net in eval mode."""
    seen: list[Tensor] = []
    was_training = net.training
    # At once, not later: the ReLU that follows overwrites the output.
    handles = [norm.register_forward_hook(lambda _, __, output: seen.append(moments(output))) for norm in norms]
    net.eval()
    try:
        yield seen
    finally:
        net.train(was_training)
        for handle in handles:
            handle.remove()


def _gather(table: Tensor, world: World) -> NDArray[np.float64] | None:
    """float64 [rows of all ranks, layers, 3] on rank 0; rows of zeros belong to no block."""
    if world.size == 1:
        return table.cpu().numpy()
    received = [torch.empty_like(table) for _ in range(world.size)] if world.is_main else None
    dist.gather(table, received)
    return torch.cat(received).cpu().numpy() if received else None


def save(responses: Responses, path: Path) -> Path:
    """Write a file such as RUN/responses.json, whole or not at all."""
    write_text(path, json.dumps(asdict(responses), indent=1) + "\n")
    return path


def read(run: Path) -> Responses | None:
    """The responses of a run, None where they have not been measured. Raises UserError for a damaged file."""
    try:
        values = json.loads((run / FILE).read_text())
        made = Responses(**{one.name: values[one.name] for one in fields(Responses)})
        if len(made.layers) != len(made.std) or not all(isinstance(value, float) for value in made.std):
            raise ValueError("layers and std do not fit")
        return made
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise UserError(
            f"{run / FILE} cannot be read ({error}): measure again with 'python -m pipeline.responses {run}'"
        ) from None
