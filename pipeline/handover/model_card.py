"""Writes the model card: what the net is, how it was trained, its errors, and how to use its files."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import yaml

from pipeline.base.command import UserError
from pipeline.base.layout import CONFIG, SCORES, is_score_file
from pipeline.evaluation.nets import TrainedNet
from pipeline.evaluation.score_files import is_canonical
from pipeline.evaluation.scores import Scores, load, read_provenance
from pipeline.handover.exporting import Exported
from pipeline.run.config import trajectory
from pipeline.run.options import load as load_config

USES = {
    "safetensors": (
        "the weights in torchvision's names",
        """from safetensors.torch import load_file
net.load_state_dict(load_file("model.safetensors"))""",
    ),
    "torch-export": (
        "the whole net",
        """import torch
net = torch.export.load("model.pt2").module()
scores = net(images)""",
    ),
    "onnx": (
        "the whole net",
        """import onnxruntime
session = onnxruntime.InferenceSession("model.onnx")
(scores,) = session.run(None, {"images": images})""",
    ),
}


def known_scores(trained: TrainedNet) -> list[Scores]:
    """Return the canonical, labelled scores in the net's run folder that were made with exactly these weights.

    A score file that cannot be read (of another version, say) is skipped with a warning.
    """
    assert trained.run is not None
    results = []
    for path in filter(is_score_file, sorted((trained.run / SCORES).glob("*.npz"))):
        try:
            origin, _ = read_provenance(path)
            if origin.weights_sha256 == trained.weights_sha256 and is_canonical(path, origin):
                results.append(load(path))
        except UserError as error:
            print(f"warning: {error}", file=sys.stderr)
    return [scores for scores in results if scores.labelled]


def errors_table(results: Sequence[Scores]) -> str:
    """Return the errors under each protocol as a Markdown table."""
    if not results:
        return "Not evaluated yet: this table is made from the score files that `pipeline.evaluate` writes.\n"
    rows = ["| split | images | protocol | top-1 error % | top-5 error % | dataset |", "|---|---|---|---|---|---|"]
    for scores in results:
        provenance = scores.provenance
        errors = f"{scores.errors(1):.2f} | {scores.errors(5):.2f}"
        data = provenance.dataset_sha256[:16]
        rows.append(f"| {provenance.split} | {len(scores):,} | {provenance.protocol} | {errors} | `{data}` |")
    return "\n".join(rows) + "\n"


def model_card(
    trained: TrainedNet, dataset_sha256: str, exported: Sequence[Exported], results: Sequence[Scores]
) -> str:
    """Return the card as Markdown, with the front matter that model hubs read."""
    assert trained.run is not None
    parameters = sum(parameter.numel() for parameter in trained.net.parameters())
    shape = f"[N, {trained.crop}, {trained.crop}, 3]"
    files = "\n".join(
        f"`{file.path.name}`: {USES[file.format][0]}; read back, its softmax scores differ from the net's by at most "
        f"{file.difference:.1g}.\n\n```python\n{USES[file.format][1]}\n```\n"
        for file in exported
    )
    # Only the keys that decide the weights: folders and machines do not belong on a card.
    recipe = yaml.safe_dump(trajectory(load_config(trained.run / CONFIG)), sort_keys=False)
    return f"""---
library_name: pytorch
pipeline_tag: image-classification
tags: [resnet, image-classification]
---
# {trained.arch} ({trained.name})

| | |
|---|---|
| net | {trained.arch}, {trained.classes:,} classes, {parameters:,} parameters |
| trained for | {trained.iteration:,} iterations |
| weights | {trained.weights}, SHA-256 of their contents `{trained.weights_sha256}` |
| checkpoint | `{trained.checkpoint.name}` |
| training data | dataset with manifest SHA-256 `{dataset_sha256}` |

The net of *Deep Residual Learning for Image Recognition* (He et al., arXiv:1512.03385).

## Errors
{errors_table(results)}
## Input and output
Images: RGB, 0..255, resized to a shorter side of {trained.short_side} pixels, of which the centre
{trained.crop} x {trained.crop} is cut out.
The files that hold the whole net take them as float32 {shape} and give softmax scores float32 [N, {trained.classes}];
they subtract the training mean themselves. With the weights alone, subtract it first (`mean.npy`, RGB, 0..255) and put
the channels first: the net takes [N, 3, {trained.crop}, {trained.crop}] and gives logits.

## Files
{files}
## Recipe
```yaml
{recipe}```
"""
