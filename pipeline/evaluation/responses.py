"""Layer responses (section 4.2, Fig. 7): how strongly each 3x3 layer of a net responds, over a split.

"The responses are the outputs of each 3x3 layer, after BN and before other nonlinearity (ReLU/addition)." A layer's
figure is the standard deviation of all its responses: over images, channels and positions together.

Rank r of W takes every W-th evaluation block of the centre-crop protocol, whole, and keeps (count, mean, sum of squared
deviations) of each block and layer in float64. Rank 0 merges them with exactly rounded sums, whose order does not matter:
on the CPU the result is the same, to the bit, on any number of ranks.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.base.command import UserError
from pipeline.base.files import write_text
from pipeline.base.json_text import parse_json
from pipeline.base.layout import RESPONSES
from pipeline.base.progress import Progress
from pipeline.base.regular import read_regular
from pipeline.data.dataset import Split
from pipeline.data.loader import evaluation_batches
from pipeline.evaluation.protocols import channels_first, find
from pipeline.evaluation.scoring import EvaluationSettings, check_not_empty, gather
from pipeline.models.pairs import response_layers
from pipeline.process.world import World


@dataclass(frozen=True, kw_only=True)
class Responses:
    """The responses of one net over one split; RUN/responses.json.

    layers: the names of the 3x3 convolutions, in the order of the forward pass. std: float, one per layer. images: the
    number of images in `split`; all of them are measured. checkpoint: the file's name, which holds its digest.
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


def moments(values: Tensor) -> Tensor:
    """float64 [3]: the count of `values`, their mean, and the sum of their squared deviations from the mean."""
    variance, mean = torch.var_mean(values.double(), correction=0)
    count = torch.tensor(values.numel(), dtype=torch.float64, device=values.device)
    return torch.stack([count, mean, variance * count])


def standard_deviation(parts: NDArray[np.float64]) -> float:
    """The standard deviation of all values whose `moments` are in `parts`, float64 [parts, 3], in any order.

    All parts are merged at once as Chan, Golub and LeVeque do: deviations are from the common mean, so nothing cancels.
    """
    rows = parts.tolist()
    total = math.fsum(count for count, _, _ in rows)
    common = math.fsum(count * mean for count, mean, _ in rows) / total
    return math.sqrt(math.fsum(squares + count * (mean - common) ** 2 for count, mean, squares in rows) / total)


def measure(net: nn.Module, split: Split, settings: EvaluationSettings, *, world: World) -> dict[str, float] | None:
    """The standard deviation of each 3x3 layer's responses over `split`; None on ranks other than 0. A collective.

    net: on the world's device, the same on all ranks. settings: how images are prepared; each is seen in its centre crop.
    Raises UserError for an empty split and for images that do not decode.
    """
    check_not_empty(split)
    protocol = find("center")
    (view,) = settings.views(protocol)
    blocks = protocol.blocks(split, (view,))
    mine = blocks[world.rank :: world.size]
    rows = -(-len(blocks) // world.size)  # blocks of rank 0; a rank with one block less leaves its last row zero
    layers = response_layers(net)
    table = torch.zeros(rows, len(layers), 3, dtype=torch.float64, device=world.device)
    bar = Progress(len(split), f"responses {split.name}", "images", enabled=world.is_main)
    if mine:
        normalization = settings.normalization_of(view)
        batches = evaluation_batches(split, view, normalization, mine, world.device, settings.loader)
        with bar as progress, batches, _watching(net, layers) as seen, torch.inference_mode():
            for row, batch in enumerate(batches):
                net(channels_first(batch.images))
                table[row] = torch.stack([seen[name] for name in layers])
                shown = blocks[row * world.size : (row + 1) * world.size]
                progress.advance(sum(map(len, shown)))
    if not (tables := gather(table, world)):
        return None
    parts = torch.cat(tables).cpu().numpy()  # float64 [rows of all ranks, layers, 3]; rows of zeros belong to no block
    return {name: standard_deviation(parts[parts[:, i, 0] > 0, i]) for i, name in enumerate(layers)}


@contextmanager
def _watching(net: nn.Module, layers: Mapping[str, nn.Module]) -> Iterator[dict[str, Tensor]]:
    """The moments of each layer's response in the latest pass of `net`, which is in eval mode inside."""
    seen: dict[str, Tensor] = {}
    was_training = net.training
    handles = [
        # At once, not later: the ReLU that follows overwrites the output.
        layer.register_forward_hook(lambda _, __, output, name=name: seen.update({name: moments(output)}))
        for name, layer in layers.items()
    ]
    net.eval()
    try:
        yield seen
    finally:
        net.train(was_training)
        for handle in handles:
            handle.remove()


def save(responses: Responses, path: Path) -> None:
    """Write a file such as RUN/responses.json, completely or not at all."""
    write_text(path, json.dumps(asdict(responses), indent=1) + "\n")


def read(run: Path) -> Responses | None:
    """The responses of a run, None where they have not been measured. Raises UserError for a damaged file."""
    try:
        values = parse_json(read_regular(run / RESPONSES))
        responses = Responses(**{field.name: values[field.name] for field in fields(Responses)})
        if len(responses.layers) != len(responses.std) or not all(isinstance(std, float) for std in responses.std):
            raise ValueError("std does not hold one number for each layer")
        return responses
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise UserError(
            f"{run / RESPONSES} cannot be read ({error}): measure again with 'python -m pipeline.responses {run}'"
        ) from None
