"""Data sets, a trained net and commands of these tests: those of the evaluation tests."""

from tests.pipeline.evaluation.conftest import (
    few_of_ten_classes,
    few_real_in_ten_classes,
    made_run,
    run_command,
    run_evaluate,
    ten_classes,
)

__all__ = ["few_of_ten_classes", "few_real_in_ten_classes", "made_run", "run_command", "run_evaluate", "ten_classes"]
