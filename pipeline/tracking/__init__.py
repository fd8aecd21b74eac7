"""Tracking: metrics.jsonl first, MLflow from it (contract 5)."""

from pipeline.tracking.config import TrackingConfig

__all__ = ["TrackingConfig"]
