"""What these tests need of the pipeline's: a trained run and MLflow's empty store."""

from tests.pipeline.conftest import empty_store, undisturbed

__all__ = ["empty_store", "undisturbed"]
