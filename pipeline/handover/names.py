"""The names that users type for formats of exported nets. Imports nothing that takes seconds."""

from __future__ import annotations

FORMAT_NAMES = ("safetensors", "torch-export", "onnx")  # pipeline/handover/exporting.py says what they are
