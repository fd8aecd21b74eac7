"""How a run's val errors are computed while it trains."""

from __future__ import annotations

from dataclasses import dataclass, field

from pipeline.base.command import check_at_least


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """The val errors during training: centre crop (paper: Fig. 4, bold), every image counted once.

    Args:
        every: iterations between evaluations.
        short_side: the shorter side of an image is resized to this many pixels before the centre crop; 256 in the paper.
        crop: side of the centre crop in pixels; left out, the crop of training (`augment.crop`), as in the paper.
    """

    # The schedule's patience counts evaluations: `every` is a part of the recipe, so it must not be rounded.
    every: int = field(default=5000, metadata={"unit": "iterations", "period": True})
    short_side: int = 256
    crop: int | None = None

    def __post_init__(self) -> None:
        check_at_least(1, self, "every", prefix="evaluation.")
