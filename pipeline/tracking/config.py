"""How a run is tracked."""

from __future__ import annotations

from dataclasses import dataclass, field

from pipeline.base.command import check_at_least


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """What is recorded of a run, and where MLflow is told of it. metrics.jsonl in the run folder is always written.

    Args:
        log_every: iterations between lines of training metrics.
        mlflow: whether MLflow is fed from metrics.jsonl while the run goes on; `python -m pipeline.tracking sync RUN`
            does it later.
        experiment: the MLflow experiment that the run belongs to.
        uri: MLflow's tracking server or store. Null: the environment variable MLFLOW_TRACKING_URI where it is set, else
            the SQLite file mlflow.db beside the run folders, with the artifacts in mlartifacts beside it.
        close_seconds: how long the end of a run waits for MLflow to take what is left; the next start delivers the rest.
            A run that was told to stop waits 5 s at most.
    """

    log_every: int = field(default=100, metadata={"unit": "updates", "period": True})
    mlflow: bool = True
    experiment: str = "resnet"
    uri: str | None = None
    close_seconds: float = 60.0

    def __post_init__(self) -> None:
        check_at_least(1, self, "log_every", prefix="tracking.")
