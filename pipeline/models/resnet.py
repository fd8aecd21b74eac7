"""ResNets and their plain counterparts: the ImageNet nets of Table 1 and the CIFAR nets of section 4.2 of the paper.

`build` turns a name into a net with seeded weights (`architecture.parse_arch` says what the name stands for).
State-dict names are torchvision's, so checkpoints can be used in both directions (with stride "v1.5" and shortcut B the
nets are the same).

Shapes below: N images, C channels, H height, W width.
"""

from __future__ import annotations

import math
import pkgutil
from collections.abc import Callable
from typing import ClassVar, Literal, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.base.command import UserError
from pipeline.models.architecture import EXPANSION, KINDS, Architecture, parse_arch
from pipeline.models.pairs import Pairs

Option = Literal["A", "B", "C"]
Shortcut = Literal["default"] | Option
Stride = Literal["paper", "v1.5"]
BN_COUNTER = "num_batches_tracked"  # a buffer of BN layers: counts updates, and nothing computes with it


class ZeroPadShortcut(nn.Module):
    """Option A (section 3.3): every `stride`-th pixel of the input, with zeros as its new channels; no parameters.

    [N, in_channels, H, W] -> [N, out_channels, ceil(H / stride), ceil(W / stride)]. The paper leaves the place of the
    zero channels open: here half come before the input's and half after, as in the public CIFAR reproductions.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        added = out_channels - in_channels
        assert added >= 0 and added % 2 == 0, (in_channels, out_channels)
        self.channels_each_side = added // 2
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        p = self.channels_each_side
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, p, p))


def conv(in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> nn.Conv2d:
    """A convolution that keeps the map's size, divided by `stride`; without a bias, which a norm would cancel."""
    return nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, bias=False)


def norm(channels: int) -> nn.BatchNorm2d:
    """The batch normalization of all nets."""
    return nn.BatchNorm2d(channels, eps=1e-5)


class Projection(nn.Sequential):
    """Options B and C (section 3.3): a strided 1x1 convolution and its batch normalization."""

    conv_norm_pairs: ClassVar[Pairs] = (("0", "1"),)

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__(conv(in_channels, out_channels, 1, stride), norm(out_channels))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions (Fig. 5 left). `downsample` is the shortcut, None in a plain net.

    [N, in_channels, H, W] -> [N, width, ceil(H / stride), ceil(W / stride)], >= 0: the last ReLU comes after the
    addition. ReLUs overwrite their input: a hook on bn1 or bn2 must reduce its output at once or clone it.
    """

    conv_norm_pairs: ClassVar[Pairs] = (("conv1", "bn1"), ("conv2", "bn2"))

    def __init__(self, in_channels: int, width: int, stride: int, downsample: nn.Module | None) -> None:
        super().__init__()
        self.conv1 = conv(in_channels, width, 3, stride)
        self.bn1 = norm(width)
        self.conv2 = conv(width, width, 3)
        self.bn2 = norm(width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.downsample is not None:
            out = out + self.downsample(x)
        return self.relu(out)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions (Fig. 5 right); `stride` sits in the first 1x1 ("paper") or in the 3x3 ("v1.5").

    [N, in_channels, H, W] -> [N, 4 width, ceil(H / stride), ceil(W / stride)], >= 0; hooks as in `BasicBlock`.
    """

    conv_norm_pairs: ClassVar[Pairs] = (("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3"))

    def __init__(
        self, in_channels: int, width: int, stride: int, downsample: nn.Module | None, stride_in: Stride
    ) -> None:
        super().__init__()
        out_channels = width * EXPANSION["bottleneck"]
        self.conv1 = conv(in_channels, width, 1, stride if stride_in == "paper" else 1)
        self.bn1 = norm(width)
        self.conv2 = conv(width, width, 3, stride if stride_in == "v1.5" else 1)
        self.bn2 = norm(width)
        self.conv3 = conv(width, out_channels, 1)
        self.bn3 = norm(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        if self.downsample is not None:
            out = out + self.downsample(x)
        return self.relu(out)


class ResNet(nn.Module):
    """A residual net of the paper; made by `build`, which also draws its weights.

    forward: images float [N, 3, H, W], normalized -> scores (logits) [N, classes]. Any H, W >= 1 will do; the paper's
    are 224 (ImageNet) and 32 (CIFAR). It is `fc(flatten(avgpool(features(images))))`, so that an evaluation can put its
    own pooling between `features` and `fc`, and it is the `segments` one after another, which can be compiled each by itself.

    Another kind of net derives from this class and overrides `make_block`, `make_shortcut`, `stem` or `after_stages`. Each
    of its modules that has batch normalization declares `conv_norm_pairs`.
    """

    conv_norm_pairs: ClassVar[Pairs] = (("conv1", "bn1"),)

    def __init__(self, architecture: Architecture, classes: int, shortcut: Option, stride: Stride) -> None:
        super().__init__()
        self.architecture = architecture
        channels = architecture.widths[0]
        if architecture.family == "imagenet":
            self.conv1 = conv(3, channels, 7, stride=2)
            self.maxpool: nn.Module = nn.MaxPool2d(3, stride=2, padding=1)
        else:
            self.conv1 = conv(3, channels, 3)
            self.maxpool = nn.Identity()
        self.bn1 = norm(channels)
        self.relu = nn.ReLU(inplace=True)
        for index, (blocks, width) in enumerate(zip(architecture.blocks_per_stage, architecture.widths, strict=True)):
            stage = nn.Sequential()
            out_channels = width * EXPANSION[architecture.block]
            for position in range(blocks):
                # The first block of every stage but the first halves the map (Table 1, section 4.2).
                block_stride = 2 if index > 0 and position == 0 else 1
                downsample = self.make_shortcut(shortcut, channels, out_channels, block_stride)
                stage.append(self.make_block(channels, width, block_stride, downsample, stride))
                channels = out_channels
            self.add_module(f"layer{index + 1}", stage)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, classes)

    def make_block(
        self, in_channels: int, width: int, stride: int, downsample: nn.Module | None, stride_in: Stride
    ) -> nn.Module:
        """One block: [N, in_channels, H, W] -> [N, EXPANSION * width, ceil(H / stride), ceil(W / stride)]."""
        if self.architecture.block == "basic":
            return BasicBlock(in_channels, width, stride, downsample)
        return Bottleneck(in_channels, width, stride, downsample, stride_in)

    def make_shortcut(self, option: Option, in_channels: int, out_channels: int, stride: int) -> nn.Module | None:
        """The shortcut of one block (section 4.1): A pads, B projects where dimensions change, C projects everywhere."""
        same = stride == 1 and in_channels == out_channels
        if option == "C" or (option == "B" and not same):
            return Projection(in_channels, out_channels, stride)
        return nn.Identity() if same else ZeroPadShortcut(in_channels, out_channels, stride)

    @property
    def stages(self) -> list[nn.Module]:
        """conv2_x .. conv5_x (CIFAR: the three map sizes), each a sequence of blocks."""
        return [self.get_submodule(f"layer{i + 1}") for i in range(len(self.architecture.widths))]

    def stem(self, images: Tensor) -> Tensor:
        """What comes before the stages: images [N, 3, H, W] -> [N, C, ceil(H / 4), ceil(W / 4)] (CIFAR: as large)."""
        return self.maxpool(self.relu(self.bn1(self.conv1(images))))

    def after_stages(self, x: Tensor) -> Tensor:
        """What comes between the stages and the pooling; shapes stay. Nothing, in this kind of net."""
        return x

    @final
    def features(self, images: Tensor) -> Tensor:
        """images [N, 3, H, W] -> last feature map [N, C, ceil(H / 32), ceil(W / 32)] (CIFAR: / 4), >= 0.

        C is `architecture.feature_channels`.
        """
        x = self.stem(images)
        for stage in self.stages:
            x = stage(x)
        return self.after_stages(x)

    def forward(self, images: Tensor) -> Tensor:
        return self._scores(self.features(images))

    @final
    def segments(self) -> list[Callable[[Tensor], Tensor]]:
        """Functions whose composition is `forward`, one per stage: the stem goes with the first, the head with the last."""
        stages = self.stages

        def segment(stage: nn.Module) -> Callable[[Tensor], Tensor]:
            def forward(x: Tensor) -> Tensor:
                x = stage(self.stem(x) if stage is stages[0] else x)
                return self._scores(self.after_stages(x)) if stage is stages[-1] else x

            return forward

        return [segment(stage) for stage in stages]

    def _scores(self, features: Tensor) -> Tensor:
        return self.fc(torch.flatten(self.avgpool(features), 1))


class PlainNet(ResNet):
    """The plain counterpart of a ResNet: the same layers without shortcuts."""

    def make_shortcut(self, option: Option, in_channels: int, out_channels: int, stride: int) -> None:
        if option != "A":
            raise UserError(
                f"shortcut: {self.architecture.name} is a plain net and has no shortcuts, so {option} does not apply; "
                f'leave shortcut at "default" or choose resnet{self.architecture.depth}'
            )


def build(
    arch: str,
    *,
    classes: int,
    shortcut: Shortcut = "default",
    stride: Stride = "paper",
    generator: torch.Generator | None = None,
) -> ResNet:
    """The net named `arch` with freshly drawn float32 weights, in training mode, on the current default device.

    `shortcut` "default" is A for 18 and 34 layers and CIFAR, B for 50, 101 and 152 (sections 4.1 and 4.2). `stride`
    says where a downsampling bottleneck strides: in its first 1x1 ("paper") or in its 3x3 ("v1.5"); a basic block
    strides in its first 3x3 either way. The weights depend on the arguments and the state of `generator` (None: seed 0)
    alone; torch's global generator is neither read nor advanced.

    Raises UserError for an unknown `arch` and for a plain net with projections (shortcut B or C).
    """
    assert classes >= 1 and shortcut in ("default", "A", "B", "C") and stride in ("paper", "v1.5")
    architecture = parse_arch(arch)
    net_class: type[ResNet] = pkgutil.resolve_name(KINDS[architecture.kind].net)
    # Layers made on the meta device skip torch's own initialization, which would draw from the global generator.
    device = torch.get_default_device()
    with torch.device("meta"):
        option = architecture.default_shortcut if shortcut == "default" else shortcut
        net = net_class(architecture, classes, option, stride)
    net.to_empty(device=device)
    initialize(net, generator if generator is not None else torch.Generator().manual_seed(0))
    return net


@torch.no_grad()
def initialize(net: nn.Module, generator: torch.Generator) -> None:
    """Draw every weight of `net` anew, in the order of its modules; on the meta device nothing is drawn.

    Convolutions: He normal, std sqrt(2 / (k^2 out_channels)) (section 3.4 refers to He et al. 2015 for it). Batch
    normalization: gamma 1, beta 0, mean 0, variance 1. fc, which the paper leaves open: normal with std 0.01 and zero
    bias, as in AlexNet. Its inputs grow with depth, since every block adds to their variance; weights this small keep
    the first scores near zero at any depth. First loss measured on random labels and images, log(10) being 2.30: 2.35
    with 110 layers and 3.3 with 1202; with He normal fc weights it was 10.8 and 34.
    """
    for module in net.modules():
        match module:
            case nn.Conv2d():
                assert module.bias is None
                fan_out = module.out_channels * math.prod(module.kernel_size)
                _draw_normal(module.weight, math.sqrt(2 / fan_out), generator)
            case nn.BatchNorm2d():
                module.reset_parameters()
            case nn.Linear():
                _draw_normal(module.weight, 0.01, generator)
                module.bias.zero_()
            case _:
                weights = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
                assert not weights, f"{type(module).__name__} has weights that nothing initializes"


def _draw_normal(weight: Tensor, std: float, generator: torch.Generator) -> None:
    if weight.is_meta:
        return
    # Drawn in float64: float32 draws differ in their last bits between CPUs with and without AVX2 (measured), so that
    # one seed would start different runs; float64 draws rounded to float32 came out the same.
    drawn = torch.empty(weight.shape, dtype=torch.float64, device=generator.device)
    weight.copy_(drawn.normal_(0.0, std, generator=generator))
