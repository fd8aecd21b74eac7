"""Data sets of the analysis tests: those of the evaluation tests."""

from tests.pipeline.evaluation.conftest import ten_classes

__all__ = ["ten_classes"]
