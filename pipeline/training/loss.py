"""The loss of a mini-batch's rows, against labels or mixtures of two labels, and what is reported of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Loss = Literal["cross-entropy", "binary-cross-entropy"]


@dataclass(frozen=True)
class Targets:
    """What N rows show. labels int64 [N]: their classes.

    Where images are mixed, also partners int64 [N], the classes of the images that they are mixed with, and weights
    float32 [N], in [0, 1]: how much of the target belongs to `labels`; the rest belongs to `partners`.
    """

    labels: Tensor
    partners: Tensor | None = None
    weights: Tensor | None = None

    def rows(self, rows: slice) -> Targets:
        partners, weights = (None if one is None else one[rows] for one in (self.partners, self.weights))
        return Targets(self.labels[rows], partners, weights)

    def dominant(self) -> Tensor:
        """int64 [N]: the class that has the larger part of each row; the row's own where both are equal."""
        if self.partners is None or self.weights is None:
            return self.labels
        return torch.where(self.weights < 0.5, self.partners, self.labels)

    def shares(self, like: Tensor) -> Tensor:
        """[N, classes], of the dtype of the logits `like`: each class's part of the target; a row adds up to 1."""
        classes = torch.arange(like.shape[1], device=like.device)  # not F.one_hot, which may wait for the device
        shares = (self.labels[:, None] == classes).to(like.dtype)
        if self.partners is None or self.weights is None:
            return shares
        weights = self.weights[:, None].to(like.dtype)
        return weights * shares + (1 - weights) * (self.partners[:, None] == classes).to(like.dtype)


@dataclass(frozen=True, kw_only=True)
class Criterion:
    """The loss that is minimized, summed over rows.

    kind: cross-entropy of the softmax, or the mean over classes of the binary cross-entropies of the sigmoids (Wightman et
    al. 2021; timm's BinaryCrossEntropy). smoothing: share of the target that is spread evenly over the classes.
    threshold: for the binary one, targets above it are 1 and others 0, after smoothing; None keeps them as they are.
    """

    kind: Loss = "cross-entropy"
    smoothing: float = 0.0
    threshold: float | None = None

    def __call__(self, logits: Tensor, targets: Targets) -> Tensor:
        """The sum of the rows' losses, to be minimized; logits: [N, classes]."""
        return self._sum(logits, targets, self.smoothing)

    def reported(self, logits: Tensor, targets: Targets) -> Tensor:
        """The same sum without smoothing, to compare with other recipes."""
        return self._sum(logits, targets, 0.0)

    @property
    def is_reported(self) -> bool:
        """Whether the loss that is minimized is the one that is reported."""
        return not self.smoothing

    def _sum(self, logits: Tensor, targets: Targets, smoothing: float) -> Tensor:
        if self.kind == "cross-entropy":
            target = targets.labels if targets.partners is None else targets.shares(logits)
            return F.cross_entropy(logits, target, reduction="sum", label_smoothing=smoothing)
        shares = targets.shares(logits)
        classes = logits.shape[1]
        if smoothing:
            shares = (1 - smoothing) * shares + smoothing / classes
        if self.threshold is not None:
            shares = (shares > self.threshold).to(logits.dtype)
        return F.binary_cross_entropy_with_logits(logits, shares, reduction="sum") / classes
