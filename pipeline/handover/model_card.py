"""Writes the model card: what the net is, how it was trained, its errors, and how to use its files."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import yaml

from pipeline.base.layout import CONFIG
from pipeline.evaluation.nets import TrainedNet
from pipeline.evaluation.score_files import canonical_scores
from pipeline.evaluation.scores import Scores
from pipeline.handover.exporting import Exported
from pipeline.handover.training_data import TrainingData
from pipeline.run.config import trajectory
from pipeline.run.options import load as load_config
from pipeline.run.starting_point import starting_point_of
from pipeline.tracking.description import escape, first_of

IMAGES = """import numpy as np
from PIL import Image

classes = open("classes.txt").read().splitlines()
picture = Image.open("picture.jpg").convert("RGB")
scale = {short_side} / min(picture.size)
picture = picture.resize([round(side * scale) for side in picture.size], Image.Resampling.BILINEAR)
left, top = (round((side - {crop}) / 2) for side in picture.size)
images = np.asarray(picture.crop((left, top, left + {crop}, top + {crop})), np.float32)[None]  # [1, {crop}, {crop}, 3]"""
USES = {  # what a file holds; the code that uses it, after IMAGES
    "safetensors": (
        "the weights in torchvision's names",
        """import torch
from safetensors.torch import load_file
from pipeline.models.resnet import build  # this project's checkout

net = build("{arch}", classes={classes}, shortcut="{shortcut}", stride="{stride}").eval()
net.load_state_dict(load_file("model.safetensors"))
with torch.inference_mode():
    scores = net(torch.from_numpy(images - np.load("mean.npy")).permute(0, 3, 1, 2)).softmax(dim=1).numpy()
print(classes[scores[0].argmax()])""",
    ),
    "torch-export": (
        "the whole net",
        """import torch

net = torch.export.load("model.pt2").module()
with torch.inference_mode():
    scores = net(torch.from_numpy(images)).numpy()
print(classes[scores[0].argmax()])""",
    ),
    "onnx": (
        "the whole net",
        """import onnxruntime

session = onnxruntime.InferenceSession("model.onnx")
(scores,) = session.run(None, {{"images": images}})
print(classes[scores[0].argmax()])""",
    ),
}


def known_scores(trained: TrainedNet) -> list[Scores]:
    """Return the canonical, labelled scores in the net's run folder that were made with exactly these weights.

    A score file that cannot be read (of another version, say) is skipped with a warning.
    """
    assert trained.run is not None
    found = canonical_scores(
        trained.run,
        lambda origin: origin.weights_sha256 == trained.weights_sha256,
        lambda error: print(f"warning: {error}", file=sys.stderr),
    )
    return list(found)


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


def model_card(trained: TrainedNet, data: TrainingData, exported: Sequence[Exported], results: Sequence[Scores]) -> str:
    """Return the card as Markdown, with the front matter that model hubs read."""
    assert trained.run is not None
    config = load_config(trained.run / CONFIG)
    values = {
        "arch": trained.arch,
        "classes": trained.classes,
        "shortcut": config.shortcut,
        "stride": config.stride,
        "short_side": trained.short_side,
        "crop": trained.crop,
    }
    files = "\n".join(
        f"`{file.path.name}`: {USES[file.format][0]}; read back, its softmax scores differ from the net's by at most "
        f"{file.difference:.1g}.\n\n{_python(USES[file.format][1].format(**values))}"
        for file in exported
    )
    # Only the keys that decide the weights: folders and machines do not belong on a card.
    recipe = yaml.safe_dump(trajectory(config), sort_keys=False)
    return f"""---
library_name: pytorch
pipeline_tag: image-classification
tags: [resnet, image-classification]
---
{summary(trained, data, results)}
## Files
`classes.txt` has the name of each class, one a line in the order of the scores; the other files but `mean.npy` have them in
their metadata, as the JSON list `classes`. A picture becomes the `images` of what follows like this:

{_python(IMAGES.format(**values))}
{files}
## Recipe
```yaml
{recipe}```
"""


def summary(trained: TrainedNet, data: TrainingData, results: Sequence[Scores]) -> str:
    """The card without its files and recipe: the description of a version in MLflow's registry."""
    parameters = sum(parameter.numel() for parameter in trained.net.parameters())
    start = starting_point_of(trained.run) if trained.run else None
    started_from = f"| started from | {escape(start.without_folders)} |\n" if start else ""
    short_side, crop, classes, name = trained.short_side, trained.crop, trained.classes, escape(data.name)
    return f"""# {trained.arch} ({escape(trained.name)})

| | |
|---|---|
| net | {trained.arch}, {trained.classes:,} classes, {parameters:,} parameters |
| trained for | {trained.iteration:,} iterations |
{started_from}| weights | {trained.weights}, SHA-256 of their contents `{trained.weights_sha256}` |
| checkpoint | `{trained.checkpoint.name}` |
| training data | {name}: {data.images:,} images of {len(data.classes):,} classes, manifest SHA-256 `{data.sha256}` |
| classes | {first_of(data.classes)} |

The net of *Deep Residual Learning for Image Recognition* (He et al., arXiv:1512.03385).

## Errors
{errors_table(results)}
## Input and output
- Images: RGB, 0..255, resized to a shorter side of {short_side} pixels (bilinear, antialiased), the centre {crop} x {crop}.
- The files that hold the whole net take them as float32 [N, {crop}, {crop}, 3] and give softmax scores float32 [N, {classes}].
- Those files subtract the training mean themselves. With the weights alone, subtract it first (`mean.npy`, RGB, 0..255).
- The net alone takes the channels first, [N, 3, {crop}, {crop}], and gives logits.
"""


def _python(code: str) -> str:
    return f"```python\n{code}\n```\n"
