"""Ensembles average softmax scores (section 4.1, Table 5): exact arithmetic on score files.

The scores are float16, whole multiples of 2^-24, so their sums are exact integers: the errors of an ensemble depend neither
on the order of its members nor on the machine. A class can rank before the true class only if at least one member ranks it
so; only such (image, class) pairs are computed, which makes hundreds of ensembles of the same members cheap.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.base.command import UserError
from pipeline.evaluation.scores import ROWS, Scores

Subset = tuple[int, ...]
UNITS = 2**24  # float16 1.0 in units of the smallest float16 number, 2^-24; all are its multiples
MAX_MEMBERS = 127  # so many sums of UNITS fit int32
MAX_SUBSETS = 5000  # searched one by one
CURVE_SUBSETS = 200  # per size, for the curve of error against ensemble size
BOOTSTRAP_SAMPLES = 10_000
INTERVAL = (2.5, 97.5)  # percentiles: a 95% interval


@dataclass(frozen=True, kw_only=True)
class Errors:
    """Top-1 and top-5 error in percent, each with its bootstrap 95% interval over the images."""

    top1_error: float
    top5_error: float
    top1_interval: tuple[float, float]
    top5_interval: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class SizeErrors:
    """Errors in percent of `ensembles` ensembles of `size` members: mean, lowest and highest."""

    size: int
    ensembles: int
    top1: tuple[float, float, float]
    top5: tuple[float, float, float]


def check_members(members: Sequence[Scores], names: Sequence[str]) -> None:
    """Raise UserError unless these are score files of the same images under one protocol, by different nets.

    Equal labels in sample-id order show that the images are the same; without labels, only the dataset folder does.
    """
    first = members[0]
    for name, member in zip(names, members, strict=True):
        compared = {
            "classes": (first.classes, member.classes),
            "split": (first.provenance.split, member.provenance.split),
            "protocol": (first.provenance.protocol, member.provenance.protocol),
            "images": (len(first), len(member)),
        }
        faults = [f"their {what} differ ({one} and {other})" for what, (one, other) in compared.items() if one != other]
        if member.labels_sha256 != first.labels_sha256:
            faults.append("the labels of their images differ")
        if not first.labelled and member.provenance.dataset_sha256 != first.provenance.dataset_sha256:
            faults.append(
                "they come from two dataset folders, and without labels nothing shows that their images are the same"
            )
        if faults:
            raise UserError(
                f"{names[0]} and {name} cannot be averaged: {faults[0]}; evaluate both on the same split of one dataset folder"
            )
    named = zip(names, members, strict=True)
    for (name, member), (other_name, other) in itertools.combinations(named, 2):
        if member.provenance.fingerprint == other.provenance.fingerprint:
            raise UserError(f"{name} and {other_name} are the same net under the same protocol: give each member once")
    if len(members) > MAX_MEMBERS:
        raise UserError(f"{len(members)} members are too many: average at most {MAX_MEMBERS}")


def average(members: Sequence[Scores], rows: slice) -> NDArray[np.float64]:
    """Return the average softmax of some images, float64 [rows, classes]; the sum over the members is exact."""
    total = np.zeros(members[0].scores[rows].shape)
    for member in members:
        total += member.scores[rows]
    return total / len(members)


def subset_ranks(members: Sequence[Scores], subsets: Sequence[Subset]) -> Iterator[NDArray[np.int64]]:
    """Yield the rank of the true class (see `scores.ranks`) in the average of each subset, int64 [subsets, ROWS].

    A subset holds positions in `members`. The slices of ROWS images follow each other in sample-id order.
    """
    for start in range(0, len(members[0]), ROWS):
        yield _Rivals(members, slice(start, start + ROWS)).ranks(subsets)


def all_ranks(members: Sequence[Scores], subsets: Sequence[Subset]) -> NDArray[np.int64]:
    """Return `subset_ranks` of all images, int64 [subsets, N]."""
    return np.concatenate(list(subset_ranks(members, subsets)), axis=1)


def error_counts(members: Sequence[Scores], subsets: Sequence[Subset]) -> NDArray[np.int64]:
    """Return how many images the average of each subset gets wrong, top-1 and top-5: int64 [subsets, 2]."""
    counts = np.zeros((len(subsets), 2), dtype=np.int64)
    for ranks in subset_ranks(members, subsets):
        counts += np.stack([(ranks >= 1).sum(axis=1), (ranks >= 5).sum(axis=1)], axis=1)
    return counts


class _Rivals:
    """For a slice of images, all (image, class) pairs where at least one member scores the class at or above the true one."""

    def __init__(self, members: Sequence[Scores], rows: slice) -> None:
        labels = members[0].labels[rows]
        # The bits of non-negative float16 numbers order as the numbers do, and NumPy compares integers much faster.
        bits = [np.ascontiguousarray(member.scores[rows]).view(np.uint16) for member in members]
        true_scores = [np.take_along_axis(scores, labels[:, None], axis=1) for scores in bits]
        rival = np.zeros(bits[0].shape, dtype=bool)
        for scores, true in zip(bits, true_scores, strict=True):
            rival |= scores >= true
        rival[np.arange(len(labels)), labels] = False
        image, rival_class = np.nonzero(rival)
        self.images, self.image = len(labels), image
        self.wins_ties = rival_class < labels[image]
        self.lead = np.stack([  # int32 [members, pairs]: of the rival over the true class
            _units(scores[image, rival_class]) - _units(true[image, 0])
            for scores, true in zip(bits, true_scores, strict=True)
        ])  # fmt: skip

    def ranks(self, subsets: Sequence[Subset]) -> NDArray[np.int64]:
        """Return the rank of the true class in the average of each subset, int64 [subsets, images]."""
        result = np.empty((len(subsets), self.images), dtype=np.int64)
        for row, subset in enumerate(subsets):
            total = self.lead[list(subset)].sum(axis=0, dtype=np.int32)
            before = (total > 0) | ((total == 0) & self.wins_ties)
            result[row] = np.bincount(self.image[before], minlength=self.images)
        return result


def _units(bits: NDArray[np.uint16]) -> NDArray[np.int32]:
    return (bits.view(np.float16).astype(np.float32) * UNITS).astype(np.int32)


def errors_of(ranks: NDArray[np.int64]) -> Errors:
    """Return the errors with their bootstrap intervals from the rank of the true class in each image, int64 [N]."""
    top1, top5 = (int((ranks >= k).sum()) for k in (1, 5))
    return Errors(
        top1_error=100 * top1 / len(ranks),
        top5_error=100 * top5 / len(ranks),
        top1_interval=bootstrap_interval(top1, len(ranks)),
        top5_interval=bootstrap_interval(top5, len(ranks)),
    )


def bootstrap_interval(wrong: int, images: int) -> tuple[float, float]:
    """Return the 95% percentile bootstrap interval of an error rate in percent.

    The number of wrong images among `images` draws with replacement is binomial, so that number is drawn directly.
    """
    draws = np.random.default_rng(0).binomial(images, wrong / images, BOOTSTRAP_SAMPLES)
    low, high = np.percentile(100 * draws / images, INTERVAL)
    return float(low), float(high)


def gain_interval(better: NDArray[np.bool_], worse: NDArray[np.bool_]) -> tuple[float, float]:
    """Return the 95% bootstrap interval of error(worse) - error(better) in percent, over paired images.

    better, worse: bool [N], whether each gets an image wrong. Only images on which they differ matter; their numbers in a
    resample are multinomial.
    """
    n = len(better)
    lost, won = int((better & ~worse).sum()), int((worse & ~better).sum())
    draws = np.random.default_rng(0).multinomial(n, [won / n, lost / n, 1 - (won + lost) / n], BOOTSTRAP_SAMPLES)
    low, high = np.percentile(100 * (draws[:, 0] - draws[:, 1]) / n, INTERVAL)
    return float(low), float(high)


def overlap(ranks: NDArray[np.int64], k: int) -> NDArray[np.float64]:
    """Return the percent of images that both members get wrong (top-k), float64 [members, members]. ranks: [members, N]."""
    wrong = (ranks >= k).astype(np.float64)
    return 100 * (wrong @ wrong.T) / ranks.shape[1]


def size_curve(members: Sequence[Scores]) -> list[SizeErrors]:
    """Return the errors of each ensemble size, over all ensembles of that size or a sample of CURVE_SUBSETS."""
    generator = np.random.default_rng(0)
    sizes = range(1, len(members) + 1)
    subsets = [_subsets(len(members), size, generator) for size in sizes]
    counts = error_counts(members, list(itertools.chain(*subsets)))
    errors = np.split(100 * counts / len(members[0]), np.cumsum([len(of_size) for of_size in subsets])[:-1])
    return [
        SizeErrors(size=size, ensembles=len(of_size), top1=_summary(of_size[:, 0]), top5=_summary(of_size[:, 1]))
        for size, of_size in zip(sizes, errors, strict=True)
    ]


def _summary(errors: NDArray[np.float64]) -> tuple[float, float, float]:
    return float(errors.mean()), float(errors.min()), float(errors.max())


def _subsets(members: int, size: int, generator: np.random.Generator) -> list[Subset]:
    if math.comb(members, size) <= CURVE_SUBSETS:
        return list(itertools.combinations(range(members), size))
    draws = [generator.choice(members, size, replace=False) for _ in range(CURVE_SUBSETS)]
    return [tuple(sorted(map(int, draw))) for draw in draws]


def search(members: Sequence[Scores], size: int, k: int) -> tuple[Subset, bool]:
    """Return the `size` members whose average has the lowest top-k error, and whether all ensembles were tried.

    Ties go to the lower other error, then to the members given first. If there are more than 5,000 ensembles, members are
    added greedily. The winner is chosen on the images on which its error is measured, which flatters that error.
    """
    assert 1 <= size <= len(members) and k in (1, 5)
    if math.comb(len(members), size) <= MAX_SUBSETS:
        return _best(members, list(itertools.combinations(range(len(members)), size)), k), True
    chosen: Subset = ()
    while len(chosen) < size:
        rest = (member for member in range(len(members)) if member not in chosen)
        chosen = _best(members, [tuple(sorted((*chosen, member))) for member in rest], k)
    return chosen, False


def _best(members: Sequence[Scores], subsets: Sequence[Subset], k: int) -> Subset:
    counts = error_counts(members, subsets)
    first, second = (0, 1) if k == 1 else (1, 0)
    return subsets[min(range(len(subsets)), key=lambda i: (counts[i, first], counts[i, second], i))]
