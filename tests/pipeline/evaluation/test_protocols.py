"""Each protocol against a slow one told independently; the same bytes on any number of ranks; interruptions."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.base.command import UserError
from pipeline.data.dataset import Dataset, Split
from pipeline.data.graphs import Normalization
from pipeline.evaluation.protocols import ViewContext, feature_side, find, fully_convolutional_softmax, mirror_of
from pipeline.evaluation.scores import load
from pipeline.evaluation.scoring import Scored, evaluate_errors, score_split
from tests.pipeline.evaluation.nets_and_images import (
    LOADER,
    SmallNet,
    decoded,
    provenance,
    settings,
    slow_sliding_windows,
    slow_softmax,
    varied_resnet,
)  # fmt: skip
from tests.pipeline.evaluation.scoring_ranks import score, score_as_pycls
from tests.ranks import ALONE, run_ranks


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def scored(
    net: nn.Module, dataset: Dataset, protocol: str, short_side: int, crop: int, partial: Path | None = None
) -> Scored:
    result = score_split(
        net, dataset.split("train"), find(protocol), settings(short_side, crop, dataset.statistics),
        world=ALONE, classes=dataset.classes, provenance=provenance(protocol, split="train"), partial=partial,
    )  # fmt: skip
    assert result is not None
    return result


def check_against_slow(dataset: Dataset, protocol: str, stride: int, short_side: int, crop: int) -> None:
    net, mean, images = SmallNet(dataset.classes, stride).eval(), dataset.statistics.mean_image, decoded(dataset)
    slow = np.stack([slow_softmax(net, image, protocol, short_side, crop, mean) for image in images])
    result = scored(net, dataset, protocol, short_side, crop).scores
    np.testing.assert_allclose(result.scores.astype(np.float32), slow, atol=1e-3)
    np.testing.assert_array_equal(result.labels, dataset.split("train").labels)
    shifted = np.stack([slow_softmax(net, image, protocol, short_side, crop, mean, off=2) for image in images])
    assert np.abs(shifted - slow).max() > 2e-3, "a crop that is one pixel off must show"


@pytest.mark.parametrize("protocol", ["center", "ten-crop"])
def test_scores_equal_pillows_and_torchvisions(ten_classes: Dataset, protocol: str) -> None:
    check_against_slow(ten_classes, protocol, stride=4, short_side=40, crop=32)


@pytest.mark.parametrize("protocol", ["center", "ten-crop"])
def test_real_images_score_as_by_pillow_and_torchvision(real_in_ten_classes: Dataset, protocol: str) -> None:
    check_against_slow(real_in_ten_classes, protocol, stride=16, short_side=256, crop=224)


def check_against_windows(dataset: Dataset, count: int, stride: int, crop: int, scales: list[int]) -> None:
    """The multi-scale scores of the first `count` images; their blocks hold others too."""
    net, mean, images = (
        SmallNet(dataset.classes, stride).eval(),
        dataset.statistics.mean_colour,
        decoded(dataset)[:count],
    )
    slow = np.stack([slow_sliding_windows(net, image, crop, mean, scales) for image in images])
    result = scored(net, dataset, "multi-scale", 0, crop).scores
    np.testing.assert_allclose(result.scores[: len(slow)].astype(np.float32), slow, atol=1e-3)
    np.testing.assert_array_equal(result.labels, dataset.split("train").labels)
    centre = np.stack([slow_softmax(net, image, "center", scales[1], crop, mean) for image in images])
    assert np.abs(centre - slow).max() > 3e-3, "another protocol must show"


def test_multi_scale_scores_equal_those_of_sliding_windows(few_of_ten_classes: Dataset) -> None:
    check_against_windows(few_of_ten_classes, 10, stride=4, crop=32, scales=[32, 37, 55, 69, 91])


def test_real_images_score_multi_scale_as_by_sliding_windows(few_real_in_ten_classes: Dataset) -> None:
    check_against_windows(few_real_in_ten_classes, 5, stride=32, crop=224, scales=[224, 256, 384, 480, 640])


@pytest.mark.parametrize(("arch", "crop", "side"), [("resnet18", 224, 7), ("resnet20", 32, 8)])
def test_the_convolutional_form_is_the_net_itself_on_every_window_of_the_map(arch: str, crop: int, side: int) -> None:
    images = torch.randn(2, crop + 40, crop + 70, 3, generator=torch.Generator().manual_seed(1)) * 60
    net = varied_resnet(arch, 5, images.permute(0, 3, 1, 2))
    cpu = torch.device("cpu")
    assert feature_side(net, crop, cpu) == side
    with torch.no_grad():
        seen = []
        for shown in (images, images.flip(2)):
            maps = net.features(shown.permute(0, 3, 1, 2))
            rows, columns = (length - side + 1 for length in maps.shape[2:])
            assert rows > 1 and columns > 1
            seen += [
                net.fc(maps[:, :, y : y + side, x : x + side].mean(dim=(2, 3))).softmax(dim=1) / (rows * columns)
                for y in range(rows)
                for x in range(columns)
            ]
        context = ViewContext(mirror_of(Normalization(np.zeros(3, np.float32)), cpu), side)
        found = fully_convolutional_softmax(net, images, context)
        torch.testing.assert_close(found, sum(seen) / 2, atol=1e-5, rtol=1e-4)
        # Of a crop-sized image there is one position: the net as it was trained, on the image and its flip.
        one = images[:, :crop, :crop]
        crops = [net(shown.permute(0, 3, 1, 2)).softmax(dim=1) for shown in (one, one.flip(2))]
        torch.testing.assert_close(fully_convolutional_softmax(net, one, context), sum(crops) / 2, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("size", [3, pytest.param(2, marks=pytest.mark.slow)])
def test_several_ranks_write_what_one_writes(few_of_ten_classes: Dataset, tmp_path: Path, size: int) -> None:
    protocols = ["center", "ten-crop", "multi-scale"]
    errors = [score(ALONE, few_of_ten_classes.folder, protocols, tmp_path)]
    errors += run_ranks(size, score, few_of_ten_classes.folder, protocols, tmp_path)
    for name in protocols:
        assert (tmp_path / f"{name}-1.npz").read_bytes() == (tmp_path / f"{name}-{size}.npz").read_bytes()
    centre = load(tmp_path / "center-1.npz")
    assert set(errors) == {(centre.errors(1), centre.errors(5))}, "the trainer is told what the score file says"
    assert 0 < centre.errors(1) < 100


def test_several_ranks_write_what_one_writes_of_another_origins_pixels(
    few_of_ten_classes: Dataset, tmp_path: Path
) -> None:
    protocols = ["center", "multi-scale"]
    score_as_pycls(ALONE, few_of_ten_classes.folder, protocols, tmp_path)
    run_ranks(2, score_as_pycls, few_of_ten_classes.folder, protocols, tmp_path)
    for name in protocols:
        assert (tmp_path / f"{name}-1.npz").read_bytes() == (tmp_path / f"{name}-2.npz").read_bytes()


class Stops(nn.Module):
    """A net that is interrupted after some batches."""

    def __init__(self, net: nn.Module, batches: int) -> None:
        super().__init__()
        self.net, self.left = net, batches

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.left == 0:
            raise KeyboardInterrupt
        self.left -= 1
        return self.net(images)


def test_an_interrupted_evaluation_goes_on_to_the_same_scores(ten_classes: Dataset, tmp_path: Path) -> None:
    net, partial = SmallNet(ten_classes.classes, stride=4).eval(), tmp_path / "one.partial.npz"
    whole = scored(net, ten_classes, "ten-crop", 36, 32)
    assert whole.images == 150 and not partial.exists()
    with pytest.raises(KeyboardInterrupt):
        scored(Stops(net, 6), ten_classes, "ten-crop", 36, 32, partial)  # 6 of 10 blocks; 4 were gathered
    assert partial.exists()
    rest = scored(Stops(net, 6), ten_classes, "ten-crop", 36, 32, partial)
    assert rest.images == 150 - 4 * 16, "what was scored is not scored again"
    np.testing.assert_array_equal(rest.scores.scores, whole.scores.scores)


def test_a_partial_file_of_other_weights_or_damaged_is_left_alone(ten_classes: Dataset, tmp_path: Path) -> None:
    net, partial = SmallNet(ten_classes.classes, stride=4).eval(), tmp_path / "one.partial.npz"
    arrays = {"ids": np.arange(64), "scores": np.zeros((64, ten_classes.classes), np.float16)}
    np.savez(partial, fingerprint=np.array("of other weights"), **arrays)
    assert scored(net, ten_classes, "center", 36, 32, partial).images == 150
    partial.write_bytes(b"cut off")
    assert scored(net, ten_classes, "center", 36, 32, partial).images == 150


def test_the_net_keeps_its_mode(ten_classes: Dataset) -> None:
    net = SmallNet(ten_classes.classes, stride=4).train()
    scored(net, ten_classes, "center", 36, 32)
    assert net.training


def test_a_diverged_net_is_refused(ten_classes: Dataset) -> None:
    net = SmallNet(ten_classes.classes, stride=4).eval()
    net.fc.bias.data.fill_(float("nan"))
    with pytest.raises(UserError, match="is not a softmax"):
        scored(net, ten_classes, "center", 36, 32)


def errors(split: Split, net: nn.Module, dataset: Dataset) -> tuple[float, float]:
    return evaluate_errors(
        net, split, statistics=dataset.statistics, short_side=36, crop=32, world=ALONE, loader_config=LOADER
    )


def test_splits_without_images_or_labels_are_refused(ten_classes: Dataset) -> None:
    net = SmallNet(ten_classes.classes, stride=4).eval()
    split = ten_classes.split("train")
    empty = ten_classes.split("train")
    empty.info, empty.samples = dataclasses.replace(empty.info, samples=0), empty.samples[:0]
    with pytest.raises(UserError, match="is empty"):
        errors(empty, net, ten_classes)
    unlabelled = ten_classes.split("train")
    unlabelled.__dict__["labels"] = np.full(len(split), -1)
    with pytest.raises(UserError, match="has no labels"):
        errors(unlabelled, net, ten_classes)
