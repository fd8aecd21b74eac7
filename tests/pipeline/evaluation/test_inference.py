"""The folded net against torchvision's net with its batch normalization; a batch in pieces against the whole batch."""

from __future__ import annotations

import copy

import pytest
import torch
import torchvision
from torch import nn

from pipeline.evaluation.inference import CPU_PIXELS, in_pieces, inference_net
from pipeline.evaluation.protocols import softmax
from pipeline.models.resnet import build


def lived(net: nn.Module) -> nn.Module:
    """The net with means, variances, scales and shifts as after a training: none is that of a fresh net."""
    generator = torch.Generator().manual_seed(2)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values, low, high in (
                (module.running_mean, -0.3, 0.3), (module.running_var, 0.4, 2.0),
                (module.weight, 0.3, 1.0), (module.bias, -0.2, 0.2),
            ):  # fmt: skip
                values.data.uniform_(low, high, generator=generator)
    return net


def norms(net: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in net.modules())


@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
def test_the_folded_net_answers_as_torchvisions(arch: str) -> None:
    torch.manual_seed(0)
    theirs = lived(torchvision.models.get_model(arch, num_classes=11)).eval()
    ours = build(arch, classes=11, shortcut="B", stride="v1.5")
    ours.load_state_dict(theirs.state_dict())
    folded = inference_net(ours.to(memory_format=torch.channels_last))
    assert norms(ours) > 0 and norms(folded) == 0, "every batch normalization has gone into a convolution"
    assert ours.training and not folded.training
    images = torch.randn(3, 3, 64, 96)
    with torch.no_grad():
        expected = theirs(images)
        torch.testing.assert_close(folded(images), expected, atol=1e-5 * float(expected.abs().max()), rtol=1e-5)
        pooled = folded.features(images).mean(dim=(2, 3))
        torch.testing.assert_close(folded.fc(pooled), expected, atol=1e-5 * float(expected.abs().max()), rtol=1e-5)


@pytest.mark.parametrize(("arch", "shortcut"), [("resnet8", "A"), ("plain8", "default"), ("resnet8", "C")])
def test_every_kind_of_net_is_folded_whole_and_left_alone(arch: str, shortcut: str) -> None:
    net = lived(build(arch, classes=5, shortcut=shortcut)).eval()  # type: ignore[arg-type]
    before = copy.deepcopy(net.state_dict())
    folded = inference_net(net)
    assert norms(folded) == 0
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(folded(images), net(images), atol=1e-5, rtol=1e-4)
    for key, value in net.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_pieces_hold_what_the_caches_like_and_give_every_row() -> None:
    images = torch.randn(7, 448, 448, 3)
    seen: list[int] = []

    def brightness(piece: torch.Tensor) -> torch.Tensor:
        seen.append(len(piece))
        return piece.mean(dim=(1, 2))

    torch.testing.assert_close(in_pieces(brightness, images), images.mean(dim=(1, 2)), rtol=0, atol=1e-7)
    assert seen == [4, 3] and CPU_PIXELS == 4 * 448 * 448
    in_pieces(brightness, torch.zeros(1, 2000, 3000, 3))
    assert seen[2:] == [1], "an image larger than a piece is a piece"


def test_a_softmax_in_pieces_is_that_of_each_image() -> None:
    net = inference_net(lived(build("resnet8", classes=5)))
    images = torch.randn(40, 160, 160, 3, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        alone = torch.cat([net(image[None].permute(0, 3, 1, 2)).softmax(dim=1) for image in images])
        torch.testing.assert_close(softmax(net, images), alone, atol=1e-5, rtol=1e-4)
