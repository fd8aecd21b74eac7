"""`--epochs E`: a recipe stretched to the length at which a run sees each training image E times on average.

    iterations = E x training images / mini-batch, rounded to the nearest whole number (half up), at least 1

Everything that the recipe counts in iterations (pipeline/run/stretch.py) keeps its place in the schedule: a learning rate that
drops after half of the recipe drops after half of the run. What the command line gives itself stays as it stands there.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterator
from dataclasses import replace
from fractions import Fraction

from pipeline.base.command import UserError
from pipeline.base.ratios import read_ratio
from pipeline.data.storage import open_dataset
from pipeline.run.batch_scaling import enlarge_batch
from pipeline.run.config import Config
from pipeline.run.stretch import belongs, stretch, stretched

OPTION = "--epochs"
TRAIN = "train"
# A short run that stops this often to save, or to log, does little else: updates.
SHORTEST_BETWEEN_CHECKPOINTS, SHORTEST_BETWEEN_LOG_POINTS = 50, 10
MOST = 1_000_000  # epochs: 5,000 times the longest recipe here; more of them is a slip of the hand
MANY = 1000  # presentations of each image: the longest recipe here, the paper's for CIFAR-10, has 182


def read_epochs(text: str) -> Fraction:
    """`90`, `0.5` or `1/2` as a number above 0, up to MOST. Raises UserError."""
    epochs = read_ratio(text)
    if epochs is None or epochs > MOST:
        raise UserError(f"{OPTION} is '{text}': give a number above 0, such as 90 or 0.5, and at most {MOST:,}")
    return epochs


def training_images(data: str) -> int:
    """How many training images the dataset at `data` has. Raises UserError where its manifest cannot be read."""
    try:
        splits = open_dataset(data).manifest.splits
    except UserError as error:
        raise UserError(f"{OPTION} counts the training images, and {error}") from None
    if TRAIN not in splits or not splits[TRAIN].samples:
        raise UserError(f"{OPTION} counts the training images, and {data} has none: name another dataset by --data")
    return splits[TRAIN].samples


def with_epochs(config: Config, epochs: Fraction, images: int, given: Collection[str], factor: Fraction) -> Config:
    """`config` stretched to `epochs` of `images` training images, with mini-batches `factor` times as large (--scale-batch).

    given: the dotted keys that the command line gives; they keep their values. Checkpoints and log points of a run that
    becomes shorter stay some updates apart, val errors are measured once an epoch at most (but for `plateau`, whose learning
    rate they decide), and BN statistics are recomputed over each training image once at most. Raises UserError where so short
    a run has no room for the learning rate's drops.
    """
    iterations = max(1, math.floor(epochs * images / (config.batch * factor) + Fraction(1, 2)))
    share = Fraction(iterations, config.iterations)
    _check_steps(config, share, iterations, given)
    fitted = stretch(config, share, "iterations", kept=given)
    shorter = min(share, Fraction(1))
    fitted = stretch(fitted, shorter, "updates", shortest_period=SHORTEST_BETWEEN_LOG_POINTS, kept=given)
    kept_every = config.checkpoint.keep_every
    checkpoint = replace(
        fitted.checkpoint,
        every=_apart(config.checkpoint.every, fitted.checkpoint.every),
        keep_every=kept_every and _apart(kept_every, fitted.checkpoint.keep_every or 0),
    )
    evaluation = fitted.evaluation
    if config.schedule.kind != "plateau" and not belongs("evaluation.every", given):
        epoch = math.ceil(images / (config.batch * factor))
        evaluation = replace(evaluation, every=max(evaluation.every, min(epoch, config.evaluation.every, iterations)))
    recomputed = config.recompute_bn_images
    if not belongs("recompute_bn_images", given):
        recomputed = min(recomputed, images)
    return enlarge_batch(
        replace(fitted, checkpoint=checkpoint, evaluation=evaluation, recompute_bn_images=recomputed), factor
    )


def _apart(before: int, after: int) -> int:
    return max(after, min(before, SHORTEST_BETWEEN_CHECKPOINTS))


def _check_steps(config: Config, share: Fraction, iterations: int, given: Collection[str]) -> None:
    steps = () if belongs("schedule.steps", given) else config.schedule.steps
    marks = [*(stretched(step, share) for step in steps), iterations]
    if config.schedule.kind == "steps" and any(before >= after for before, after in itertools.pairwise(marks)):
        raise UserError(
            f"{OPTION} leaves {iterations:,} {'iteration' if iterations == 1 else 'iterations'} here, too few for a learning "
            f"rate that drops {len(steps)} {'time' if len(steps) == 1 else 'times'}: give more epochs, or --schedule.steps"
        )


def misfits(config: Config, images: int) -> Iterator[str]:
    """Say where a recipe was made for other amounts of data than a dataset's `images` training images.

    It shows each of them more than MANY times, or has more images in a mini-batch than there are.
    """
    shown = config.iterations * config.batch / max(images, 1)
    if shown > MANY:
        yield (
            f"{config.iterations:,} iterations of {config.batch:,} images show each of the {images:,} training images "
            f"{shown:,.0f} times: {OPTION} 90 fits the length of the recipe to this dataset"
        )
    if config.batch > images:
        yield (
            f"a mini-batch of {config.batch:,} images is larger than the {images:,} training images, so that one update sees "
            "some of them several times: a smaller --batch, or --scale-batch 1/8, makes more updates of the same images"
        )
