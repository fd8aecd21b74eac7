"""The model card: what a net is, how it was trained, what it gets wrong, and how to use its files."""

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


def known_scores(subject: TrainedNet) -> list[Scores]:
    """The canonical score files in the net's run folder that were made with these very weights, with labels.

    One that cannot be read (another version's, of an earlier checkpoint) is passed over with a warning.
    """
    assert subject.run is not None
    found = []
    for path in filter(is_score_file, sorted((subject.run / SCORES).glob("*.npz"))):
        try:
            made, _ = read_provenance(path)
            if made.weights_sha256 == subject.weights_sha256 and is_canonical(path, made):
                found.append(load(path))
        except UserError as error:
            print(f"warning: {error}", file=sys.stderr)
    return [scores for scores in found if scores.labelled]


def errors_table(results: Sequence[Scores]) -> str:
    """Errors under each protocol as a Markdown table."""
    if not results:
        return "Not evaluated yet: this table is made from the score files that `pipeline.evaluate` writes.\n"
    rows = ["| split | images | protocol | top-1 error % | top-5 error % | dataset |", "|---|---|---|---|---|---|"]
    for one in results:
        provenance = one.provenance
        errors = f"{one.errors(1):.2f} | {one.errors(5):.2f}"
        data = provenance.dataset_sha256[:16]
        rows.append(f"| {provenance.split} | {len(one):,} | {provenance.protocol} | {errors} | `{data}` |")
    return "\n".join(rows) + "\n"


def model_card(
    subject: TrainedNet, dataset_sha256: str, exported: Sequence[Exported], results: Sequence[Scores]
) -> str:
    """The card as Markdown, with the front matter that model hubs read."""
    assert subject.run is not None
    parameters = sum(one.numel() for one in subject.net.parameters())
    shape = f"[N, {subject.crop}, {subject.crop}, 3]"
    files = [
        f"`{one.path.name}`: {USES[one.format][0]}; read back, its softmax scores differ from the net's by at most "
        f"{one.difference:.1g}.\n\n```python\n{USES[one.format][1]}\n```\n"
        for one in exported
    ]
    # What decides the weights; folders and machines do not belong on a card.
    recipe = yaml.safe_dump(trajectory(load_config(subject.run / CONFIG)), sort_keys=False)
    newline = "\n"
    return f"""---
library_name: pytorch
pipeline_tag: image-classification
tags: [resnet, image-classification]
---
# {subject.arch} ({subject.name})

| | |
|---|---|
| net | {subject.arch}, {subject.classes:,} classes, {parameters:,} parameters |
| trained for | {subject.iteration:,} iterations |
| weights | {subject.weights}, SHA-256 of their contents `{subject.weights_sha256}` |
| checkpoint | `{subject.checkpoint.name}` |
| training data | dataset with manifest SHA-256 `{dataset_sha256}` |

The net of *Deep Residual Learning for Image Recognition* (He et al., arXiv:1512.03385).

## Errors
{errors_table(results)}
## Input and output
Images: RGB, 0..255, resized to a shorter side of {subject.short_side} pixels, of which the centre
{subject.crop} x {subject.crop} is cut out.
The files that hold the whole net take them as float32 {shape} and give softmax scores float32 [N, {subject.classes}];
they subtract the training mean themselves. With the weights alone, subtract it first (`mean.npy`, RGB, 0..255) and put
the channels first: the net takes [N, 3, {subject.crop}, {subject.crop}] and gives logits.

## Files
{newline.join(files)}
## Recipe
```yaml
{recipe}```
"""
