"""Ensembles: the average of softmax scores (section 4.1, Table 5), exactly, as arithmetic on score files.

The scores are float16, whole multiples of 2^-24, so their sums are exact integers: an ensemble's errors depend neither on
the order of its members nor on the machine. A class can come before the true one only where some member says so;
only such (image, class) pairs are looked at, which makes hundreds of ensembles of the same members cheap.
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
UNITS = 2**24  # of float16 numbers: the smallest is 2^-24 and all are its multiples
MAX_MEMBERS = 127  # int32 sums of UNITS
MAX_SUBSETS = 5000  # searched one by one
CURVE_SUBSETS = 200  # per size, for the error against ensemble size
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

    Labels in sample-id order tell whether the images are the same. Where there are none, only the dataset folder does.
    """
    first = members[0]
    for name, one in zip(names, members, strict=True):
        pairs = {
            "classes": (first.classes, one.classes),
            "split": (first.provenance.split, one.provenance.split),
            "protocol": (first.provenance.protocol, one.provenance.protocol),
            "images": (len(first), len(one)),
        }
        for what, (wanted, found) in pairs.items():
            if found != wanted:
                raise UserError(
                    f"{names[0]} and {name} cannot be averaged: their {what} differ ({wanted} and {found}); "
                    "evaluate both on the same dataset and split"
                )
        if one.labels_sha256 != first.labels_sha256:
            raise UserError(
                f"{names[0]} and {name} cannot be averaged: the labels of their images differ; "
                "evaluate both on the same dataset folder"
            )
        if not first.labelled and one.provenance.dataset_sha256 != first.provenance.dataset_sha256:
            raise UserError(
                f"{names[0]} and {name} cannot be averaged: they come from two dataset folders, and without labels nothing "
                "says that their images are the same; evaluate both on the same dataset folder"
            )
    fingerprints = [one.provenance.fingerprint for one in members]
    for i, j in itertools.combinations(range(len(members)), 2):
        if fingerprints[i] == fingerprints[j]:
            raise UserError(
                f"{names[i]} and {names[j]} are the same net under the same protocol: name each member once"
            )
    if len(members) > MAX_MEMBERS:
        raise UserError(f"{len(members)} members are too many: average at most {MAX_MEMBERS}")


def average(members: Sequence[Scores], rows: slice) -> NDArray[np.float64]:
    """float64 [rows, classes]: the average softmax of some images; the sum in it is exact."""
    total = np.zeros((len(range(*rows.indices(len(members[0])))), members[0].classes))
    for one in members:
        total += one.scores[rows]
    return total / len(members)


def subset_ranks(members: Sequence[Scores], subsets: Sequence[Subset]) -> Iterator[NDArray[np.int64]]:
    """The rank of the true class (as `scores.ranks`) in the average of each subset: int64 [subsets, rows], by rows.

    Members are named by their position. The rows follow each other in sample-id order.
    """
    for start in range(0, len(members[0]), ROWS):
        yield _Contest(members, slice(start, start + ROWS)).ranks(subsets)


def all_ranks(members: Sequence[Scores], subsets: Sequence[Subset]) -> NDArray[np.int64]:
    """int64 [subsets, N]: `subset_ranks` of all images."""
    return np.concatenate(list(subset_ranks(members, subsets)), axis=1)


def error_counts(members: Sequence[Scores], subsets: Sequence[Subset]) -> NDArray[np.int64]:
    """int64 [subsets, 2]: how many images each subset's average gets wrong, top-1 and top-5."""
    counts = np.zeros((len(subsets), 2), dtype=np.int64)
    for ranks in subset_ranks(members, subsets):
        counts += np.stack([(ranks >= 1).sum(axis=1), (ranks >= 5).sum(axis=1)], axis=1)
    return counts


class _Contest:
    """Some images, with the classes that come before the true one, or equal it, in at least one member."""

    def __init__(self, members: Sequence[Scores], rows: slice) -> None:
        labels = members[0].labels[rows]
        # Non-negative float16 numbers are ordered as their bits are, and NumPy compares integers much faster.
        bits = [np.ascontiguousarray(one.scores[rows]).view(np.uint16) for one in members]
        true = [np.take_along_axis(one, labels[:, None], axis=1) for one in bits]
        rival = np.zeros(bits[0].shape, dtype=bool)
        for scores, own in zip(bits, true, strict=True):
            rival |= scores >= own
        rival[np.arange(len(labels)), labels] = False
        image, rival_class = np.nonzero(rival)
        self.images, self.image = len(labels), image
        self.wins_ties = rival_class < labels[image]
        self.lead = np.stack([  # int32 [members, pairs]: of the rival over the true class
            _units(scores[image, rival_class]) - _units(own[image, 0])
            for scores, own in zip(bits, true, strict=True)
        ])  # fmt: skip

    def ranks(self, subsets: Sequence[Subset]) -> NDArray[np.int64]:
        """int64 [subsets, images]."""
        result = np.empty((len(subsets), self.images), dtype=np.int64)
        for row, subset in enumerate(subsets):
            total = self.lead[list(subset)].sum(axis=0, dtype=np.int32)
            before = (total > 0) | ((total == 0) & self.wins_ties)
            result[row] = np.bincount(self.image[before], minlength=self.images)
        return result


def _units(bits: NDArray[np.uint16]) -> NDArray[np.int32]:
    return (bits.view(np.float16).astype(np.float32) * UNITS).astype(np.int32)


def errors_of(ranks: NDArray[np.int64], seed: int = 0) -> Errors:
    """Errors and their bootstrap intervals from the true class's rank in each image, int64 [N]."""
    wrong = [int((ranks >= k).sum()) for k in (1, 5)]
    intervals = [bootstrap_interval(count, len(ranks), seed) for count in wrong]
    return Errors(
        top1_error=100 * wrong[0] / len(ranks),
        top5_error=100 * wrong[1] / len(ranks),
        top1_interval=intervals[0],
        top5_interval=intervals[1],
    )


def bootstrap_interval(wrong: int, images: int, seed: int = 0) -> tuple[float, float]:
    """95% percentile bootstrap interval of an error rate in percent.

    Drawing `images` images with replacement, the number of wrong ones among them is binomial: it is drawn directly.
    """
    draws = np.random.default_rng(seed).binomial(images, wrong / images, BOOTSTRAP_SAMPLES)
    low, high = np.percentile(100 * draws / images, INTERVAL)
    return float(low), float(high)


def gain_interval(better: NDArray[np.bool_], worse: NDArray[np.bool_], seed: int = 0) -> tuple[float, float]:
    """95% bootstrap interval of error(worse) - error(better) in percent, the images paired.

    better, worse: bool [N], whether each gets an image wrong. Only images on which they differ matter; how many of
    either kind a resample holds is multinomial.
    """
    n = len(better)
    lost, won = int((better & ~worse).sum()), int((worse & ~better).sum())
    draws = np.random.default_rng(seed).multinomial(n, [won / n, lost / n, 1 - (won + lost) / n], BOOTSTRAP_SAMPLES)
    low, high = np.percentile(100 * (draws[:, 0] - draws[:, 1]) / n, INTERVAL)
    return float(low), float(high)


def overlap(ranks: NDArray[np.int64], k: int) -> NDArray[np.float64]:
    """float64 [members, members]: percent of the images that both members get wrong (top-k). ranks: [members, N]."""
    wrong = (ranks >= k).astype(np.float64)
    return 100 * (wrong @ wrong.T) / ranks.shape[1]


def size_curve(members: Sequence[Scores], seed: int = 0) -> list[SizeErrors]:
    """Error against ensemble size: over all ensembles of each size, or a seeded sample where there are very many."""
    generator = np.random.default_rng(seed)
    sizes = range(1, len(members) + 1)
    subsets = [_subsets(len(members), size, generator) for size in sizes]
    counts = error_counts(members, list(itertools.chain(*subsets)))
    errors = np.split(100 * counts / len(members[0]), np.cumsum([len(one) for one in subsets])[:-1])
    return [
        SizeErrors(size=size, ensembles=len(one), top1=_summary(one[:, 0]), top5=_summary(one[:, 1]))
        for size, one in zip(sizes, errors, strict=True)
    ]


def _summary(errors: NDArray[np.float64]) -> tuple[float, float, float]:
    return float(errors.mean()), float(errors.min()), float(errors.max())


def _subsets(members: int, size: int, generator: np.random.Generator) -> list[Subset]:
    if math.comb(members, size) <= CURVE_SUBSETS:
        return list(itertools.combinations(range(members), size))
    draws = [generator.choice(members, size, replace=False) for _ in range(CURVE_SUBSETS)]
    return [tuple(sorted(map(int, draw))) for draw in draws]


def search(members: Sequence[Scores], size: int, k: int) -> tuple[Subset, bool]:
    """(the `size` members whose average has the lowest top-k error, whether all ensembles were tried).

    Ties go to the lower other error, then to the members named first. Where there are more than 5,000 ensembles, members
    are added greedily, one by one. The winner is chosen on the images it is measured on, which flatters it.
    """
    assert 1 <= size <= len(members) and k in (1, 5)
    if math.comb(len(members), size) <= MAX_SUBSETS:
        return _best(members, list(itertools.combinations(range(len(members)), size)), k), True
    chosen: Subset = ()
    while len(chosen) < size:
        rest = (one for one in range(len(members)) if one not in chosen)
        chosen = _best(members, [tuple(sorted((*chosen, one))) for one in rest], k)
    return chosen, False


def _best(members: Sequence[Scores], subsets: Sequence[Subset], k: int) -> Subset:
    counts = error_counts(members, subsets)
    first, second = (0, 1) if k == 1 else (1, 0)
    return subsets[min(range(len(subsets)), key=lambda i: (counts[i, first], counts[i, second], i))]
