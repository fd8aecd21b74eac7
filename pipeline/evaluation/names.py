"""The names that users type for protocols and weights. Imports nothing that takes seconds."""

from __future__ import annotations

from typing import Literal

PROTOCOL_NAMES = ("center", "ten-crop", "multi-scale")  # pipeline/evaluation/protocols.py says what they are
Weights = Literal["final", "recomputed-bn", "ema"]
STATE_KEYS = {"final": "model", "recomputed-bn": "model_recomputed_bn", "ema": "model_ema"}  # of a checkpoint
