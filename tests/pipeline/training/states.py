"""Small states to save, and what became of them."""

from __future__ import annotations

from pathlib import Path

import torch

from pipeline.base.layout import checkpoints_in


def state(number: int) -> dict:
    generator = torch.Generator().manual_seed(number)
    weights = {"w": torch.randn(64, 32, 3, 3, generator=generator).to(memory_format=torch.channels_last)}
    return {"iteration": number, "model": weights, "training": {"names": ["a"], "lr": 0.1, "none": None}}


def numbers(folder: Path) -> list[int]:
    return [iteration for iteration, _ in checkpoints_in(folder)]
