"""Ensembles against NumPy told plainly: float64 averages, all subsets, resampled images."""

from __future__ import annotations

import dataclasses
import itertools
from fractions import Fraction

import numpy as np
import pytest

from pipeline.base.command import UserError
from pipeline.evaluation import ensemble
from pipeline.evaluation.ensemble import (
    all_ranks,
    bootstrap_interval,
    check_members,
    error_counts,
    gain_interval,
    overlap,
    search,
    size_curve,
)
from pipeline.evaluation.scores import Scores
from tests.pipeline.evaluation.nets_and_images import provenance, random_softmax

IMAGES, CLASSES = 2500, 17  # more rows than one chunk of the arithmetic


def make_members(count: int, images: int = IMAGES, sharpness: float = 2) -> list[Scores]:
    random = np.random.default_rng(11)
    labels = random.integers(0, CLASSES, images)
    members = []
    for number in range(count):
        table = random_softmax(random, images, CLASSES, sharpness).astype(np.float64)
        table[np.arange(images), labels] += random.random(images) * (0.2 + 0.1 * number)  # better than chance
        table = (table / table.sum(axis=1, keepdims=True)).astype(np.float16)
        members.append(
            Scores(
                scores=table, ids=np.arange(images), labels=labels, provenance=provenance(weights_sha256=str(number))
            )
        )
    return members


def plain_ranks(members: list[Scores]) -> list[int]:
    """Places of the true classes in a stable sort of the float64 sum, which is exact for float16 numbers."""
    total = sum(one.scores.astype(np.float64) for one in members)
    order = np.argsort(-total, axis=1, kind="stable")
    return (order == members[0].labels[:, None]).argmax(axis=1).tolist()


def test_every_subsets_ranks_are_those_of_the_plain_average() -> None:
    members = make_members(4)
    subsets = [s for size in (1, 2, 3, 4) for s in itertools.combinations(range(4), size)]
    ranks = all_ranks(members, subsets)
    for row, subset in zip(ranks, subsets, strict=True):
        assert row.tolist() == plain_ranks([members[i] for i in subset])
    counts = error_counts(members, subsets)
    np.testing.assert_array_equal(counts, np.stack([(ranks >= 1).sum(1), (ranks >= 5).sum(1)], 1))


def test_ties_and_underflow_are_decided_exactly() -> None:
    """Sums that float32 would round: an ensemble's answer does not depend on the members' order."""
    members = make_members(3, images=400, sharpness=30)  # most scores underflow to 0: ties everywhere
    tables = [one.scores for one in members]
    exact = []
    for image, label in enumerate(members[0].labels):
        sums = [sum(Fraction(float(table[image, c])) for table in tables) for c in range(CLASSES)]
        exact.append(sorted(range(CLASSES), key=lambda c, sums=sums: (-sums[c], c)).index(label))  # type: ignore[misc]
    for order in itertools.permutations(members):
        assert all_ranks(list(order), [(0, 1, 2)])[0].tolist() == exact


def test_the_average_is_numpys() -> None:
    members = make_members(3)
    expected = np.mean([one.scores.astype(np.float64) for one in members], axis=0)
    np.testing.assert_allclose(ensemble.average(members, slice(10, 50)), expected[10:50], rtol=1e-12)


@pytest.mark.parametrize("k", [1, 5])
def test_search_finds_the_best_of_all(k: int) -> None:
    members = make_members(6, images=600)
    by_hand = {
        s: sum(r >= k for r in plain_ranks([members[i] for i in s])) for s in itertools.combinations(range(6), 3)
    }
    chosen, exhaustive = search(members, 3, k)
    assert exhaustive and by_hand[chosen] == min(by_hand.values())
    assert len(set(by_hand.values())) > 3


def test_search_grows_greedily_where_there_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ensemble, "MAX_SUBSETS", 3)
    members = make_members(6, images=600)
    chosen, exhaustive = search(members, 3, 1)
    assert not exhaustive
    grown: tuple[int, ...] = ()
    for _ in range(3):
        grown = min(
            (tuple(sorted((*grown, i))) for i in range(6) if i not in grown),
            key=lambda s: (
                sum(r >= 1 for r in plain_ranks([members[i] for i in s])),
                sum(r >= 5 for r in plain_ranks([members[i] for i in s])),
            ),
        )
    assert chosen == grown


def test_the_interval_is_that_of_resampled_images() -> None:
    random = np.random.default_rng(0)
    wrong = np.zeros(500, dtype=bool)
    wrong[:60] = True
    resampled = [100 * wrong[random.integers(0, 500, 500)].mean() for _ in range(4000)]
    low, high = bootstrap_interval(60, 500)
    np.testing.assert_allclose([low, high], np.percentile(resampled, [2.5, 97.5]), atol=0.4)
    assert bootstrap_interval(60, 500) == (low, high)
    assert bootstrap_interval(0, 500) == (0, 0)


def test_the_gains_interval_is_that_of_resampled_pairs() -> None:
    random = np.random.default_rng(1)
    worse = random.random(800) < 0.3
    better = worse & (random.random(800) < 0.8) | (random.random(800) < 0.02)
    picks = random.integers(0, 800, (4000, 800))
    resampled = 100 * (worse[picks].mean(axis=1) - better[picks].mean(axis=1))
    np.testing.assert_allclose(gain_interval(better, worse), np.percentile(resampled, [2.5, 97.5]), atol=0.3)


def test_overlaps_count_images_that_both_get_wrong() -> None:
    ranks = all_ranks(make_members(3), [(0,), (1,), (2,)])
    for k in (1, 5):
        table = overlap(ranks, k)
        for i, j in itertools.product(range(3), repeat=2):
            assert table[i, j] == pytest.approx(
                100 * np.mean([a >= k and b >= k for a, b in zip(ranks[i], ranks[j], strict=True)])
            )


def test_the_size_curve_covers_every_subset() -> None:
    members = make_members(4, images=700)
    for one in size_curve(members):
        subsets = list(itertools.combinations(range(4), one.size))
        errors = 100 * error_counts(members, subsets) / 700
        assert one.ensembles == len(subsets)
        np.testing.assert_allclose(one.top1, (errors[:, 0].mean(), errors[:, 0].min(), errors[:, 0].max()))
        np.testing.assert_allclose(one.top5, (errors[:, 1].mean(), errors[:, 1].min(), errors[:, 1].max()))


def test_the_size_curve_samples_where_there_are_very_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ensemble, "CURVE_SUBSETS", 3)
    curve = size_curve(make_members(4, images=200))
    assert [one.ensembles for one in curve] == [3, 3, 3, 1]
    assert curve == size_curve(make_members(4, images=200))


def altered(one: Scores, what: str) -> Scores:
    half = len(one) // 2
    if what == "classes":
        return dataclasses.replace(one, scores=np.full((len(one), CLASSES + 3), 1 / (CLASSES + 3), np.float16))
    if what == "images":
        return dataclasses.replace(one, scores=one.scores[:half], ids=one.ids[:half], labels=one.labels[:half])
    if what == "labels":
        return dataclasses.replace(one, labels=np.roll(one.labels, 1))
    return dataclasses.replace(one, provenance=provenance(weights_sha256="other", **{what: f"other {what}"}))


@pytest.mark.parametrize("what", ["classes", "images", "labels", "split", "protocol"])
def test_members_that_do_not_go_together_are_refused(what: str) -> None:
    first, second = make_members(2, images=100)
    with pytest.raises(UserError, match=f"A and B cannot be averaged: .*{what}"):
        check_members([first, altered(second, what)], ["A", "B"])


def test_unlabelled_images_of_two_datasets_are_refused() -> None:
    """A test set has no labels that could differ; sharded with another seed its images stand in another order."""
    members = [dataclasses.replace(one, labels=np.full(100, -1)) for one in make_members(2, images=100)]
    check_members(members, ["A", "B"])
    elsewhere = dataclasses.replace(members[1].provenance, dataset_sha256="other")
    with pytest.raises(UserError, match="A and B cannot be averaged: they come from two dataset folders"):
        check_members([members[0], dataclasses.replace(members[1], provenance=elsewhere)], ["A", "B"])


def test_the_same_net_twice_is_refused() -> None:
    first, _ = make_members(2, images=100)
    with pytest.raises(UserError, match="A and B are the same net"):
        check_members([first, first], ["A", "B"])
