"""What the paper shows beside the rows that this project trains: other methods, axes of the figures, sizes of the tests.

The paper's errors of our own rows stand with the experiments, in configs/experiments/*.yaml. Every figure names its place
in He, Zhang, Ren, Sun: Deep Residual Learning for Image Recognition (arXiv:1512.03385). Errors are percent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# Images that the errors are counted on: ImageNet val (section 4.1; Table 5: test) and CIFAR-10's test set (section 4.2).
TEST_IMAGES = {"imagenet": 50_000, "cifar": 10_000}


@dataclass(frozen=True, kw_only=True)
class OtherMethod:
    """A row of a table that others' nets have; None where the paper shows a dash."""

    name: str
    top1: float | None = None
    top5: float | None = None

    @property
    def metric(self) -> str:
        return " / ".join(name for name, value in (("top-1", self.top1), ("top-5", self.top5)) if value is not None)

    @property
    def text(self) -> str:
        return " / ".join(f"{value:.2f}" for value in (self.top1, self.top5) if value is not None)


@dataclass(frozen=True, kw_only=True)
class FigureAxes:
    """A figure of training and test error. x in 1e4 iterations, y error in percent.

    panels: (title, labels of the experiment's rows), left to right. kinds: one panel for each kind of error where given
    (Fig. 1), all in every panel else. marks_from: the experiment whose rows give the paper's end points; mark_note: what
    has to be said of them.
    """

    x_limits: tuple[float, float]
    y_limits: tuple[float, float]
    panels: Sequence[tuple[str, Sequence[str]]]
    kinds: Sequence[str] = ()
    marks_from: str | None = None
    mark_note: str = ""


OTHERS: Mapping[str, Sequence[OtherMethod]] = {
    "table3": (  # Table 3, 10-crop on ImageNet val
        OtherMethod(name="VGG-16", top1=28.07, top5=9.33),
        OtherMethod(name="GoogLeNet", top5=9.15),
        OtherMethod(name="PReLU-net", top1=24.27, top5=7.38),
    ),
    "table4": (  # Table 4, single models on ImageNet val
        OtherMethod(name="GoogLeNet", top5=7.89),
        OtherMethod(name="PReLU-net", top1=21.59, top5=5.71),
        OtherMethod(name="BN-Inception", top1=21.99, top5=5.81),
    ),
    "table5": (  # Table 5, ensembles, top-5 on the ImageNet test set
        OtherMethod(name="VGG (ILSVRC'14)", top5=7.32),
        OtherMethod(name="VGG (v5)", top5=6.8),
        OtherMethod(name="GoogLeNet (ILSVRC'14)", top5=6.66),
        OtherMethod(name="PReLU-net", top5=4.94),
        OtherMethod(name="BN-Inception", top5=4.82),
    ),
    "table6": (  # Table 6, CIFAR-10 test set
        OtherMethod(name="Maxout", top1=9.38),
        OtherMethod(name="NIN", top1=8.81),
        OtherMethod(name="DSN", top1=8.22),
        OtherMethod(name="FitNet", top1=8.39),
        OtherMethod(name="Highway, 19 layers", top1=7.54),
        OtherMethod(name="Highway, 32 layers", top1=8.80),
    ),
}

# The authors' README (KaimingHe/deep-residual-networks): 1-crop on ImageNet val, top-1 and top-5, by label of Table 3.
ONE_CROP: Mapping[str, tuple[float, float]] = {
    "ResNet-50": (24.7, 7.8),
    "ResNet-101": (23.6, 7.1),
    "ResNet-152": (23.0, 6.7),
}

_PLAIN, _RESNET = ("plain-20", "plain-32", "plain-44", "plain-56"), ("ResNet-20", "ResNet-32", "ResNet-44", "ResNet-56")
FIGURES: Mapping[str, FigureAxes] = {
    # Fig. 1: training error on the left, test error on the right. Axes of Fig. 6, which holds the same nets.
    "fig1": FigureAxes(
        x_limits=(0, 6),
        y_limits=(0, 20),
        panels=(("training error", ("plain-20", "plain-56")), ("test error", ("plain-20", "plain-56"))),
        kinds=("train", "test"),
    ),
    # Fig. 4: x 0..50e4 iterations, y 20..60%; plain nets left, residual nets right.
    "fig4": FigureAxes(
        x_limits=(0, 50),
        y_limits=(20, 60),
        panels=(("plain nets", ("plain-18", "plain-34")), ("residual nets", ("ResNet-18", "ResNet-34"))),
        marks_from="table2",
        mark_note="The paper's end points are its 10-crop errors (Table 2): it gives no centre-crop errors of these nets "
        "in figures, and those lie higher.",
    ),
    # Fig. 6: x 0..6e4 iterations, y 0..20%.
    "fig6": FigureAxes(
        x_limits=(0, 6),
        y_limits=(0, 20),
        panels=(
            ("plain nets", _PLAIN),
            ("residual nets", (*_RESNET, "ResNet-110")),
            ("110 and 1202 layers", ("ResNet-110", "ResNet-1202")),
        ),
        marks_from="table6",
        mark_note="The paper's end points are the test errors of Table 6; it gives none of the plain nets.",
    ),
}
