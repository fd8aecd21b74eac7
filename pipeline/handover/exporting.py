"""Exports a trained net to formats that need no code of this project: safetensors, torch.export, ONNX.

model.safetensors holds the weights with torchvision's names. model.pt2 and model.onnx hold the whole net: pixels in,
softmax out. Each file names the classes in its metadata, and is read back and compared with the net.
"""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from pipeline.base.command import UserError
from pipeline.base.files import replacing
from pipeline.data.graphs import Normalization
from pipeline.evaluation.exports import CLASSES, json_list
from pipeline.evaluation.protocols import channels_first
from pipeline.handover.names import FORMAT_NAMES

TOLERANCE = 1e-5  # of softmax scores; other runtimes order their float32 sums differently
EXAMPLE_BATCH = 2  # torch.export would treat a batch of 1 as a constant
CHECKED_BATCHES = (1, 3)


@dataclass(frozen=True, kw_only=True)
class Format:
    """A file format. `read(path, deployed)` is the file as images -> softmax.

    `content(deployed, metadata)` is what the file holds; only model.safetensors has the metadata.
    """

    file: str
    content: Callable[[Deployed, Mapping[str, str]], bytes]
    read: Callable[[Path, Deployed], Callable[[Tensor], Tensor]]


@dataclass(frozen=True, kw_only=True)
class Exported:
    """An exported file, and the largest `difference` of its softmax scores from the net's when it was read back."""

    format: str
    path: Path
    difference: float


class Deployed(nn.Module):
    """The net as users call it: RGB crops float32 [N, crop, crop, 3], 0..255 -> softmax scores float32 [N, classes].

    classes: their names, in the order of the scores.
    """

    def __init__(self, net: nn.Module, normalization: Normalization, crop: int, classes: Sequence[str]) -> None:
        super().__init__()
        self.net, self.crop, self.classes = net, crop, tuple(classes)
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.from_numpy(np.array(normalization.mean, np.float32)))
        std = np.ones(3, np.float32) if normalization.std is None else np.array(normalization.std, np.float32)
        self.register_buffer("std", torch.from_numpy(std))

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.net(channels_first((images - self.mean) / self.std))
        return scores.softmax(dim=1)


def export(module: Deployed, folder: Path, name: str, metadata: Mapping[str, str]) -> Exported:
    """Write one format into `folder`, read it back and compare. Raises UserError if it differs.

    metadata: what the weights alone do not show (`ExportedNet.metadata`), for model.safetensors.
    """
    file_format = FORMATS[name]
    path = folder / file_format.file
    folder.mkdir(parents=True, exist_ok=True)
    content = file_format.content(module, metadata)
    with replacing(path) as file:
        file.write(content)
    read, difference = file_format.read(path, module), 0.0
    generator = torch.Generator().manual_seed(0)
    for batch in CHECKED_BATCHES:
        images = torch.rand(batch, module.crop, module.crop, 3, generator=generator) * 255
        with torch.inference_mode():
            difference = max(difference, float((read(images) - module(images)).abs().max()))
    if not difference <= TOLERANCE:
        path.unlink()
        raise UserError(f"{path} differed from the net by {difference:g} when it was read back, and was removed again")
    return Exported(format=name, path=path, difference=difference)


def _safetensors(module: Deployed, metadata: Mapping[str, str]) -> bytes:
    state = {key: value.contiguous() for key, value in module.net.state_dict().items()}
    return safetensors.torch.save(state, metadata={**metadata, "format": "pt", CLASSES: json_list(module.classes)})


def _read_safetensors(path: Path, module: Deployed) -> Callable[[Tensor], Tensor]:
    reloaded = copy.deepcopy(module)
    for value in reloaded.net.state_dict().values():
        value.fill_(-1)  # so that a weight that the file lacks cannot go unnoticed
    reloaded.net.load_state_dict(safetensors.torch.load_file(path), strict=True)
    return reloaded


def _program(module: Deployed) -> torch.export.ExportedProgram:
    """Return the net as a graph for any number of images."""
    example = torch.zeros(EXAMPLE_BATCH, module.crop, module.crop, 3)
    return torch.export.export(module, (example,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))


def _torch_export(module: Deployed, _: Mapping[str, str]) -> bytes:
    buffer = io.BytesIO()
    torch.export.save(_program(module), buffer, extra_files={CLASSES: json_list(module.classes)})
    return buffer.getvalue()


def _onnx(module: Deployed, _: Mapping[str, str]) -> bytes:
    with contextlib.redirect_stdout(io.StringIO()):  # hides the exporter's progress
        program = torch.onnx.export(
            _program(module), (), input_names=["images"], output_names=["scores"], dynamo=True, verbose=False
        )
    assert program is not None
    proto = program.model_proto
    proto.metadata_props.add(key=CLASSES, value=json_list(module.classes))
    return proto.SerializeToString()


def _read_onnx(path: Path, module: Deployed) -> Callable[[Tensor], Tensor]:
    import onnxruntime  # type: ignore[import-untyped]

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


FORMATS = {
    "safetensors": Format(file="model.safetensors", content=_safetensors, read=_read_safetensors),
    "torch-export": Format(
        file="model.pt2", content=_torch_export, read=lambda path, _: torch.export.load(path).module()
    ),
    "onnx": Format(file="model.onnx", content=_onnx, read=_read_onnx),
}
assert tuple(FORMATS) == FORMAT_NAMES, "pipeline/handover/names.py must name each format, in this order"
