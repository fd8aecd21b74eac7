"""What a new kind of net costs: a class and a line in KINDS. Here pre-activation nets and ResNeXts, from name to scores."""

from __future__ import annotations

import math
import re
from typing import ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from pipeline.base.command import UserError
from pipeline.data.dataset import Dataset
from pipeline.evaluation.inference import inference_net
from pipeline.evaluation.responses import measure
from pipeline.models.architecture import KINDS, TABLE_1, Architecture, Kind, Layout, parse_arch
from pipeline.models.complexity import count
from pipeline.models.pairs import Pairs, response_layers
from pipeline.models.resnet import Bottleneck, Option, ResNet, Stride, build, conv, norm
from pipeline.run.config import Config, check
from pipeline.run.options import parser
from pipeline.training.batchnorm import plan_groups
from pipeline.training.step import StepConfig, TrainingStep
from tests.pipeline.evaluation.nets_and_images import decoded, normalized, resized, settings
from tests.ranks import ALONE

# ---- what the author of each kind writes


class PreActBlock(nn.Module):
    """BN, ReLU and 3x3 convolution, twice (He et al. 2016, "Identity Mappings in Deep Residual Networks", Fig. 1 b)."""

    conv_norm_pairs: ClassVar[Pairs] = (("conv1", "bn2"),)

    def __init__(self, in_channels: int, width: int, stride: int, downsample: nn.Module | None) -> None:
        super().__init__()
        self.bn1 = norm(in_channels)
        self.conv1 = conv(in_channels, width, 3, stride)
        self.bn2 = norm(width)
        self.conv2 = conv(width, width, 3)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv1(self.bn1(x).relu())
        out = self.conv2(self.bn2(out).relu())
        return out if self.downsample is None else out + self.downsample(x)


class PreActNet(ResNet):
    """bn1 comes after the last block; no norm follows the first convolution."""

    conv_norm_pairs: ClassVar[Pairs] = ()

    def __init__(self, architecture: Architecture, classes: int, shortcut: Option, stride: Stride) -> None:
        super().__init__(architecture, classes, shortcut, stride)
        self.bn1 = norm(architecture.feature_channels)

    def make_block(
        self, in_channels: int, width: int, stride: int, downsample: nn.Module | None, stride_in: Stride
    ) -> nn.Module:
        return PreActBlock(in_channels, width, stride, downsample)

    def stem(self, images: Tensor) -> Tensor:
        return self.maxpool(self.conv1(images))

    def after_stages(self, x: Tensor) -> Tensor:
        return self.bn1(x).relu()


class GroupedBottleneck(Bottleneck):
    """A bottleneck whose 3x3 convolution has groups and strides (Xie et al. 2017, Fig. 3 c)."""

    def __init__(
        self, in_channels: int, width: int, stride: int, downsample: nn.Module | None, groups: int, base_width: int
    ) -> None:
        super().__init__(in_channels, width, stride, downsample, "v1.5")
        inner = width * base_width // 64 * groups
        self.conv1, self.bn1 = conv(in_channels, inner, 1), norm(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, padding=1, groups=groups, bias=False)
        self.bn2 = norm(inner)
        self.conv3 = conv(inner, 4 * width, 1)


class ResNeXt(ResNet):
    """Its variants are _32x4d, 32 groups of width 4 in the first stage, and the like."""

    def make_block(
        self, in_channels: int, width: int, stride: int, downsample: nn.Module | None, stride_in: Stride
    ) -> nn.Module:
        groups, base_width = map(int, re.findall(r"\d+", self.architecture.variant))
        return GroupedBottleneck(in_channels, width, stride, downsample, groups, base_width)


NEW_KINDS = {
    "preresnet": Kind(net=f"{__name__}:PreActNet", layouts={depth: TABLE_1[depth] for depth in (18, 34)}),
    "resnext": Kind(
        net=f"{__name__}:ResNeXt",
        layouts={50: TABLE_1[50], 101: TABLE_1[101], 11: Layout("cifar", "bottleneck", (1, 1, 1))},
        cifar=False,
        variants=("_32x4d", "_32x8d", "_2x32d"),
    ),
}
SMALL = ("preresnet8", "resnext11_2x32d")


@pytest.fixture(autouse=True)
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    for word, kind in NEW_KINDS.items():
        monkeypatch.setitem(KINDS, word, kind)


def lived(net: ResNet) -> ResNet:
    """The net with means, variances, scales and shifts as after a training: none is that of a fresh net."""
    generator = torch.Generator().manual_seed(2)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            for values, low, high in (
                (module.running_mean, -0.3, 0.3), (module.running_var, 0.4, 2.0),
                (module.weight.data, 0.3, 1.0), (module.bias.data, -0.2, 0.2),
            ):  # fmt: skip
                values.uniform_(low, high, generator=generator)
    return net


def noise(images: int, side: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(images, 3, side, side, generator=torch.Generator().manual_seed(1), dtype=dtype)


# ---- names


def test_names_are_read_offered_and_listed() -> None:
    assert parse_arch("preresnet20").blocks_per_stage == (3, 3, 3)
    resnext = parse_arch("resnext50_32x4d")
    assert (resnext.name, resnext.variant, resnext.default_shortcut) == ("resnext50_32x4d", "_32x4d", "B")
    check(Config(arch="preresnet56"))
    for wrong, offered in (
        ("resnext50_32x4", "resnext50_32x4d"), ("preresnet21", "preresnet20"), ("resnet50_32x4d", "resnext50_32x4d"),
        ("resnext20_32x4d", "resnext50_32x4d"), ("preresnet50", "preresnet20"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=rf"'{wrong}' \(did you mean .*{offered}.*\?\).* preresnetD .* 6n \+ 2"):
            check(Config(arch=wrong))
    listed = next(action.help for action in parser("", "")._actions if action.dest == "arch")  # of --help-all
    assert "preresnet34" in listed and "preresnetD" in listed and "resnext101_32x8d" in listed


# ---- the nets themselves


def test_resnext_is_torchvisions() -> None:
    torch.manual_seed(0)
    theirs = lived(torchvision.models.resnext50_32x4d())
    with torch.device("meta"):
        ours = build("resnext50_32x4d", classes=1000)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict({key: value.clone() for key, value in theirs.state_dict().items()}, assign=True)
    with torch.no_grad():
        assert torch.equal(ours.eval()(noise(2, 64)), theirs.eval()(noise(2, 64)))
        assert torch.equal(ours.train()(noise(2, 64)), theirs.train()(noise(2, 64)))
    assert count(ours, 224) == count(theirs, 224)
    assert count(ours, 224).parameters == 25_028_904  # as torchvision documents; 4.23 G multiply-adds
    assert round(count(ours, 224).multiply_adds / 1e9, 2) == 4.23


def preact_written_out(weights: dict[str, Tensor], n: int, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """(scores, each 3x3 layer's response) in evaluation mode, straight from the weights."""
    responses = {}

    def conv3x3(x: Tensor, name: str, stride: int = 1) -> Tensor:
        return F.conv2d(x, weights[f"{name}.weight"], stride=stride, padding=1)

    def bn(x: Tensor, name: str) -> Tensor:
        mean, variance, gamma, beta = (
            weights[f"{name}.{part}"][:, None, None] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (variance + 1e-5).sqrt() * gamma + beta

    x = responses["conv1"] = conv3x3(images, "conv1")
    for stage, width in enumerate((16, 32, 64), start=1):
        for position in range(n):
            stride = 2 if stage > 1 and position == 0 else 1
            block = f"layer{stage}.{position}"
            y = conv3x3(bn(x, f"{block}.bn1").clamp(min=0), f"{block}.conv1", stride)
            y = responses[f"{block}.conv1"] = bn(y, f"{block}.bn2")  # the norm that directly follows the layer
            y = responses[f"{block}.conv2"] = conv3x3(y.clamp(min=0), f"{block}.conv2")  # the addition follows
            added = (width - x.shape[1]) // 2
            x = y + F.pad(x[:, :, ::stride, ::stride], (0, 0, 0, 0, added, added))
    pooled = bn(x, "bn1").clamp(min=0).mean(dim=(2, 3))
    return pooled @ weights["fc.weight"].T + weights["fc.bias"], responses


@pytest.mark.parametrize(("arch", "n"), [("preresnet8", 1), ("preresnet20", 3)])
def test_preactivation_is_as_written_out(arch: str, n: int) -> None:
    net = lived(build(arch, classes=10)).double().eval()
    with torch.no_grad():
        expected, _ = preact_written_out(net.state_dict(), n, noise(2, 32, torch.float64))
        torch.testing.assert_close(net(noise(2, 32, torch.float64)), expected, rtol=1e-10, atol=1e-10)


def test_preactivation_has_the_convolutions_of_its_resnet() -> None:
    assert count(build("preresnet20", classes=10), 32) == count(build("resnet20", classes=10), 32)
    first, again = (build("preresnet20", classes=10, generator=torch.Generator().manual_seed(5)) for _ in range(2))
    for ours, theirs in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(ours, theirs)


# ---- training


@pytest.mark.parametrize("arch", SMALL)
def test_an_update_equals_a_plain_loop_over_groups(arch: str) -> None:
    batch, group, lr = 8, 4, 0.1
    images, labels = noise(batch, 16, torch.float64), torch.arange(batch) % 5
    model = build(arch, classes=5).double().train()
    config = StepConfig(batch=batch, reduction="tree")
    step = TrainingStep(build(arch, classes=5).double(), config, plan_groups(batch, group, 0, 1), ALONE)
    step.step(images.permute(0, 2, 3, 1).contiguous(), labels, lr)
    for first in range(0, batch, group):
        rows = slice(first, first + group)
        (F.cross_entropy(model(images[rows]), labels[rows], reduction="sum") / batch).backward()
    trained = dict(step.model.named_parameters())
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        expected = parameter - lr * (parameter.grad + 1e-4 * parameter)
        torch.testing.assert_close(trained[name], expected, rtol=1e-9, atol=1e-12)
        assert not torch.equal(trained[name], parameter), name
    step.close()


@pytest.mark.parametrize("arch", SMALL)
def test_the_segments_that_are_compiled_are_the_net(arch: str) -> None:
    net = lived(build(arch, classes=5)).eval()
    with torch.no_grad():
        x = images = noise(2, 24)
        for segment in net.segments():
            x = segment(x)
        assert torch.equal(x, net(images))


# ---- evaluation


@pytest.mark.parametrize(("arch", "norms_left"), [("preresnet8", 4), ("resnext11_2x32d", 0), ("resnext50_32x4d", 0)])
def test_the_folded_net_has_the_scores_of_the_net(arch: str, norms_left: int) -> None:
    net = lived(build(arch, classes=5)).double().eval()
    folded = inference_net(net)
    assert sum(isinstance(module, nn.BatchNorm2d) for module in folded.modules()) == norms_left
    with torch.no_grad():
        expected = net(noise(3, 48, torch.float64))
        torch.testing.assert_close(folded(noise(3, 48, torch.float64)), expected, rtol=1e-9, atol=1e-9)


def test_a_block_with_a_wrong_pair_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PreActBlock, "conv_norm_pairs", (("conv2", "bn2"),))
    with pytest.raises(
        AssertionError, match=r"changes scores by .* conv_norm_pairs of PreActNet or of one of its blocks"
    ):
        inference_net(lived(build("preresnet8", classes=5)))


def test_a_pair_whose_convolution_feeds_the_shortcut_too_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first block's bn1 does follow conv1, but the shortcut takes conv1's output without it."""
    monkeypatch.setattr(PreActNet, "conv_norm_pairs", (("conv1", "layer1.0.bn1"),))
    with pytest.raises(AssertionError, match="folding batch normalization changes scores"):
        inference_net(lived(build("preresnet8", classes=5)))


def test_pairs_by_the_look_of_their_names_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PreActBlock, "conv_norm_pairs", (("conv1", "bn1"), ("conv2", "bn2")))
    with pytest.raises(AssertionError, match=r"layer2\.0\.bn1 cannot follow layer2\.0\.conv1"):
        inference_net(lived(build("preresnet8", classes=5)))


def test_a_block_that_declares_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(PreActBlock, "conv_norm_pairs")
    with pytest.raises(AssertionError, match="PreActBlock has batch normalization, so its class must declare"):
        inference_net(build("preresnet8", classes=5))


def test_a_net_that_declares_nothing_at_all_is_refused() -> None:
    with pytest.raises(AssertionError, match="ResNet has batch normalization, so its class must declare"):
        inference_net(torchvision.models.resnet18(num_classes=5))


def test_a_net_that_has_diverged_is_folded_unchecked() -> None:
    net = lived(build("preresnet8", classes=5))
    net.fc.bias.data.fill_(math.nan)
    assert inference_net(net)(noise(1, 32)).isnan().all()


def test_responses_are_measured_where_the_net_has_them(ten_classes: Dataset) -> None:
    net = lived(build("preresnet8", classes=10)).eval()
    images = []
    for image in decoded(ten_classes):
        image = resized(image, 36)
        left, top = (round((side - 32) / 2) for side in image.size)
        images.append(normalized(image.crop((left, top, left + 32, top + 32)), ten_classes.statistics.mean_image))
    _, responses = preact_written_out(net.state_dict(), 1, torch.cat(images))
    found = measure(net, ten_classes.split("train"), settings(36, 32, ten_classes.statistics), world=ALONE)
    assert found is not None and list(found) == list(responses)
    expected = [response.numpy().std(dtype=np.float64) for response in responses.values()]
    # DALI's and Pillow's pixels differ by a grey level here and there.
    np.testing.assert_allclose(list(found.values()), expected, rtol=2e-3)


def test_responses_of_a_resnext_are_those_of_its_grouped_convolutions() -> None:
    net = build("resnext50_32x4d", classes=5)
    layers = response_layers(net)
    assert len(layers) == 16 and layers["layer2.0.conv2"] is net.get_submodule("layer2.0.bn2")
