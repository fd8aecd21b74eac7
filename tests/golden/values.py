"""What a run computes before its first update, recipe by recipe: the order, the views of the images, the first weights.

Whole numbers, and floats that come of additions, multiplications and rounding alone, are the same bits on every CPU and are
kept as SHA-256. Logarithms, cosines and long sums may differ in their last bits and are kept as numbers with a tolerance.
"""

from __future__ import annotations

import dataclasses
import hashlib
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from pipeline.data.augment import AugmentConfig, training_views
from pipeline.data.dataset import Statistics
from pipeline.data.erasing import EraseConfig
from pipeline.data.loader import BatchIterator, LoaderConfig, evaluation_batches, training_batches
from pipeline.data.mixing import MixingConfig, draw_mixes
from pipeline.data.order import Order, Presentations
from pipeline.data.philox import philox, standard_normal, uniform
from pipeline.data.rand_augment import RandAugmentConfig
from pipeline.data.views import CenterCrop, Views, centre_views, five_crop_starts, resized_shapes, whole_views
from pipeline.models.resnet import build
from pipeline.run.config import Config, trajectory
from pipeline.run.options import load
from pipeline.training.schedule import Schedule, ScheduleConfig
from tests.helpers import ROOT
from tests.images import encode
from tests.pipeline.data.small_datasets import write_dataset

PRESENTATIONS = 300
IMAGENET, CIFAR10, DIGITS = 1_281_167, 50_000, 1_442  # training images
SAMPLES = {
    "configs/imagenet.yaml": IMAGENET,
    "configs/imagenet_fast.yaml": IMAGENET,
    "configs/imagenet_a3.yaml": IMAGENET,
    "configs/cifar10.yaml": CIFAR10,
    "configs/demo.yaml": DIGITS,
}
CLASSES = {IMAGENET: 1000, CIFAR10: 10, DIGITS: 10}
# Of natural images; the directions are those that AlexNet's reproductions publish.
STATISTICS = Statistics(
    mean_image=np.zeros((8, 8, 3), np.float32),
    eigenvalues=np.array([0.2175, 0.0188, 0.0045]),
    eigenvectors=np.array(
        [[0.5675, 0.7192, 0.4009], [0.5808, -0.0045, -0.8140], [0.5836, -0.6948, 0.4203]],
    ),
)


@dataclass(frozen=True)
class Numbers:
    """Numbers that may differ from the golden ones by `relative` of themselves or by `absolute`, whichever is more."""

    values: tuple[float, ...]
    relative: float = 1e-9
    absolute: float = 0.0


Value = str | Numbers  # str: a SHA-256


@dataclass(frozen=True)
class Made:
    """One case: `values` by their names in words, and the `inputs` that they are a function of, as JSON holds them."""

    inputs: Mapping[str, Any]
    values: Mapping[str, Value]


def sha256(arrays: Iterable[NDArray[Any]]) -> str:
    """Of the arrays' types, shapes and bytes."""
    known = hashlib.sha256()
    for array in arrays:
        known.update(f"{array.dtype.str} {array.shape} ".encode())
        known.update(np.ascontiguousarray(array).tobytes())
    return known.hexdigest()


@cache
def recipe_config(recipe: str) -> Config:
    """The recipe; the paper's ImageNet recipe with its arithmetic, float32, as --precision float32 has it."""
    config = load(ROOT / recipe)
    return dataclasses.replace(config, precision="float32") if recipe == "configs/imagenet.yaml" else config


def order(recipe: str) -> Made:
    """Mini-batches of the recipe on its dataset: the first, the one between two epochs, the last."""
    config = recipe_config(recipe)
    samples = SAMPLES[recipe]
    made = Order(samples, config.batch, config.seed, config.shuffle_block)
    places = {"the first mini-batch": 0, "the last mini-batch": config.iterations - 1}
    places["the mini-batch of two epochs"] = samples // config.batch
    values = {f"{title} (number {number})": _minibatch(made, number) for title, number in places.items()}
    return Made({"config": trajectory(config), "samples": samples}, values)


def order_in_blocks() -> Made:
    """`shuffle_block`, which no recipe uses, and another seed."""
    values = {}
    for samples, batch, seed, block in ((CIFAR10, 128, 0, 16), (DIGITS, 32, 7, 5), (DIGITS, 32, 2**64 - 1, 1)):
        made = Order(samples, batch, seed, block)
        for number in (0, samples // batch):
            values[f"mini-batch {number} of {samples} samples, seed {seed}, shuffle_block {block}"] = _minibatch(
                made, number
            )
    return Made({}, values)


def _minibatch(order: Order, iteration: int) -> str:
    rows = order.minibatch(iteration)
    return sha256([rows.epochs, rows.ids])


def draws() -> Made:
    """The generator that order and views are drawn from."""
    counters = (np.arange(4 * PRESENTATIONS, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)).reshape(-1, 4)
    words = philox((2**63 + 5, 3), counters)
    normals = standard_normal(words)
    return Made(
        {},
        {
            "the raw words": sha256([words]),
            "the uniform numbers": sha256([uniform(words)]),
            "the normal numbers": Numbers((*normals[:3].ravel(), *normals.mean(axis=0), *normals.std(axis=0))),
        },
    )


def recipe_views(recipe: str) -> Made:
    """What the recipe's images are seen as, in each of its stages."""
    config = recipe_config(recipe)
    values: dict[str, Value] = {}
    for number, (_, augment) in enumerate(config.augment.spans(0, config.iterations), start=1):
        stage = f", stage {number}" if config.augment.stages else ""
        values |= _views(f"the views of {augment.kind} presentations{stage}", config.seed, augment)
    return Made({"config": trajectory(config)}, values)


def kinds_of_views() -> Made:
    """Every kind of augmentation with its parts on and off, apart from what the recipes have.

    A box of a random area is drawn by exponentials and roots and then rounded: their last bits leave no trace in these.
    """
    settings = {
        "scale-crop": AugmentConfig(kind="scale-crop", short_side=(40, 61), crop=33),
        "scale-crop without flip and colour": AugmentConfig(kind="scale-crop", flip=False, colour=0.0),
        "pad-crop": AugmentConfig(kind="pad-crop", crop=32, pad=4),
        "pad-crop without padding": AugmentConfig(kind="pad-crop", crop=28, pad=0, flip=False),
        "area-crop": AugmentConfig(kind="area-crop"),
        "area-crop within narrow bounds": AugmentConfig(kind="area-crop", crop=64, area=(0.9, 1.0), ratio=(1.0, 1.1)),
        "scale-crop with operations": AugmentConfig(rand_augment=RandAugmentConfig(operations=2)),
        "area-crop with erased": AugmentConfig(kind="area-crop", erase=EraseConfig(probability=0.25)),
        "centre (kind none)": AugmentConfig(kind="none", short_side=(256, 256), crop=224),
    }
    values: dict[str, Value] = {}
    for name, augment in settings.items():
        values |= _views(f"the views of {name} presentations", 3, augment)
    return Made({}, values)


def mixes() -> Made:
    """How pairs of images are mixed: boxes by their bits, weights by numbers."""
    values: dict[str, Value] = {}
    numbers = np.arange(2 * PRESENTATIONS, dtype=np.int64)
    shown = Presentations(numbers % 7, numbers * 4_001 % IMAGENET)
    for name, config in {
        "mixup": MixingConfig(mixup=0.2),
        "cutmix": MixingConfig(cutmix=1.0),
        "both": MixingConfig(mixup=0.1, cutmix=1.0),
    }.items():
        drawn = draw_mixes(3, shown, 160, config)
        values[f"the boxes of {name}"] = sha256([drawn.box])
        values[f"the weights of {name}"] = Numbers((*drawn.weight[:20].tolist(), float(drawn.weight.mean())), 1e-5)
    return Made({}, values)


def evaluation_views() -> Made:
    """What images are seen as in evaluations: where the crops lie, what is decoded for them."""
    shapes = _shapes()
    values: dict[str, Value] = {}
    for short_side, crop in ((256, 224), (36, 32)):
        title = f"crop {crop} of short side {short_side}"
        values[f"the views of the centre {title}"] = sha256(_geometry(centre_views(shapes, short_side, crop)))
        resized = resized_shapes(shapes, np.full(len(shapes), short_side))
        values[f"the corners of ten-crop's {title}"] = sha256([five_crop_starts(resized, crop)])
    for short_side in (224, 640):
        values[f"the views of the whole image at short side {short_side}"] = sha256(
            _geometry(whole_views(shapes, short_side))
        )
    return Made({}, values)


def _shapes() -> NDArray[np.int64]:
    """int64 [N, 2]: heights and widths of images wide and high, small and large."""
    numbers = np.arange(PRESENTATIONS)
    return np.stack([90 + 37 * numbers % 611, 75 + 91 * numbers % 1013], axis=1).astype(np.int64)


def _views(title: str, seed: int, augment: AugmentConfig) -> dict[str, Value]:
    """Geometry and flips by their bits, colours by numbers: they are drawn by logarithms and cosines."""
    numbers = np.arange(PRESENTATIONS, dtype=np.int64)
    epochs, ids = numbers % 7, numbers * 4_001 % IMAGENET
    shapes = np.full((PRESENTATIONS, 2), augment.crop) if augment.kind == "pad-crop" else _shapes()
    views = training_views(seed, epochs, ids, shapes[:, 0], shapes[:, 1], augment, STATISTICS)
    colours = views.colour.astype(np.float64)
    seen = Numbers((*colours[:3].ravel(), *colours.mean(axis=0), *colours.std(axis=0)), 1e-5, 1e-6)
    values: dict[str, Value] = {f"{title} (crops and flips)": sha256(_geometry(views)), f"{title} (colours)": seen}
    if views.operations.size:
        values[f"{title} (operations)"] = sha256([views.operations])
        values[f"{title} (magnitudes)"] = Numbers((*views.magnitudes[:9].ravel(), *views.magnitudes.std(axis=0)))
    if views.erased.any():
        values[f"{title} (erased boxes)"] = sha256([views.erased])
    return values


def _geometry(views: Views) -> list[NDArray[Any]]:
    """The numbers of crops and flips."""
    return [
        views.resized, views.crop_start, views.mirror, views.window_start, views.window_shape, views.roi_start,
        views.roi_end,
    ]  # fmt: skip


def schedule(recipe: str) -> Made:
    """Learning rates over the recipe's whole run, were its val errors `_error`, with and without a `start_lr` of 0.01.

    0.01 is what the CIFAR nets of 110 and more layers have (configs/experiments/table6.yaml).
    """
    config = recipe_config(recipe)
    values: dict[str, Value] = {"the learning rates": _rates(config, config.schedule)}
    started = dataclasses.replace(config.schedule, start_lr=0.01)
    values["the learning rates with start_lr 0.01"] = _rates(config, started)
    return Made({"config": trajectory(config)}, values)


def _rates(config: Config, schedule: ScheduleConfig, most: int = 120) -> Numbers:
    """The learning rate at `most` iterations. After each, the schedule hears of made-up errors."""
    made, rates = Schedule(schedule, config.optimizer.lr, config.iterations), []
    for number in range(most):
        iteration = number * config.iterations // most
        rates.append(made.lr(iteration))
        made.observe_train_error(max(95.0 - 2 * number, 79.0))  # below 80 from the ninth on
        made.observe_val_error(_error(number))
    return Numbers(tuple(rates))


def _error(number: int) -> float:
    """A val error that falls every 30 evaluations; between, it rises and falls partly back, by more than thresholds."""
    return 60.0 - 10 * (number // 30) + (0.0, 3.0, 2.0, 1.0)[number % 4]


def colours() -> Made:
    """A mini-batch of coloured JPEGs as the loader gives it: which channel is red, to which one each colour shift goes.

    The loader's geometry is compared elsewhere; here are the channels' means of each image, in grey levels.
    """
    shift = AugmentConfig(short_side=(40, 48), crop=32, colour=0.5)
    padded = AugmentConfig(kind="pad-crop", crop=48, pad=4, colour=0.5)
    device, loader = torch.device("cpu"), LoaderConfig(threads=1)
    values: dict[str, Value] = {}
    with tempfile.TemporaryDirectory(prefix="golden-colours-") as folder:
        split = write_dataset(Path(folder) / "data", [encode(_coloured(number)) for number in range(6)]).split("train")
        order, rows = Order(6, 6, seed=1), slice(0, 6)
        for augment in (shift, padded):
            batches = training_batches(
                split, order, augment, _coloured_statistics(augment.crop), rows, 0, 2, device, loader
            )
            values[f"the colours of {augment.kind}"] = _channels(batches)
        views = evaluation_batches(
            split, CenterCrop(short_side=40, crop=32), _coloured_statistics(32), [np.arange(6)], device, loader
        )
        values["the colours of the centre crop"] = _channels(views)
    return Made({}, values)


def _coloured(number: int) -> Image.Image:
    """48 x 48 pixels; red, green and blue differ, and each changes slowly over the image."""
    y, x = np.mgrid[0:48, 0:48]
    channels = [40 + 20 * number + x, 200 - 15 * number - y, 90 + x - y + 5 * number]
    return Image.fromarray(np.clip(np.stack(channels, axis=-1), 0, 255).astype(np.uint8))


def _coloured_statistics(side: int) -> Statistics:
    """Their mean has another value in each channel, and changes over the image."""
    mean = np.array([120.0, 110.0, 100.0]) + np.linspace(-10, 10, side)[:, None, None] + np.zeros((side, side, 3))
    return dataclasses.replace(STATISTICS, mean_image=mean.astype(np.float32))


def _channels(batches: BatchIterator) -> Numbers:
    """Means of each image's three channels: within 0.1 of 255 grey levels, for another libjpeg's rounding."""
    with batches:
        means = [batch.images.double().mean(dim=(1, 2)).ravel() for batch in batches]
    return Numbers(tuple(torch.cat(means).tolist()), 0, 0.1)


def recipe_net(recipe: str) -> Made:
    config = recipe_config(recipe)
    return net(config.arch, CLASSES[SAMPLES[recipe]], config.shortcut, config.stride, config.seed)


def net(arch: str, classes: int, shortcut: Any = "default", stride: Any = "paper", seed: int = 0) -> Made:
    """A new net as a training makes it: its weights, and its scores of two images, in float64 for equal numbers everywhere.

    The weights are drawn in float64 by logarithms and cosines and rounded to float32, which leaves no trace of their last
    bits: found the same with and without AVX2, AVX-512 and fused multiply-adds.
    """
    generator = torch.Generator().manual_seed(seed)
    model = build(arch, classes=classes, shortcut=shortcut, stride=stride, generator=generator)
    known = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        known.update(f"{name} {sha256([tensor.numpy()])} ".encode())
    side = 64 if model.architecture.family == "imagenet" else 16
    images = (torch.arange(2 * 3 * side * side, dtype=torch.float64) * 7919 % 256 / 128 - 1).reshape(2, 3, side, side)
    with torch.no_grad():
        scores = model.double()(images)
    values: dict[str, Value] = {
        "the first weights": known.hexdigest(),
        "the first scores": Numbers((*scores[:, :3].ravel().tolist(), float(scores.norm())), 1e-6),
    }
    inputs = {"arch": arch, "classes": classes, "shortcut": shortcut, "stride": stride, "seed": seed}
    return Made(inputs, values)


CASES: dict[str, Callable[[], Made]] = {
    "draws": draws,
    **{f"order of {recipe}": partial(order, recipe) for recipe in SAMPLES},
    "orders in blocks": order_in_blocks,
    **{f"augmentation of {recipe}": partial(recipe_views, recipe) for recipe in SAMPLES},
    "augmentation of every kind": kinds_of_views,
    "mixed pairs": mixes,
    "views of evaluations": evaluation_views,
    "colours": colours,
    **{f"schedule of {recipe}": partial(schedule, recipe) for recipe in SAMPLES},
    **{f"net of {recipe}": partial(recipe_net, recipe) for recipe in SAMPLES},
    "resnet18": partial(net, "resnet18", 1000),
    "plain20": partial(net, "plain20", 10, seed=5),
    "resnet8 with projections": partial(net, "resnet8", 10, "C"),
}
