"""The config section `tracking`."""

from __future__ import annotations

from dataclasses import dataclass, field

from pipeline.base.command import UserError, check_at_least
from pipeline.meter.costs import Costs

# Where they are to be given instead.
SECRETS_OF_MLFLOW = (
    "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, or for a database the whole address "
    "as MLFLOW_TRACKING_URI, in the environment"
)


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """How often metrics are logged, and where MLflow gets them. metrics.jsonl in the run folder is always written.

    Args:
        log_every: iterations between lines of training metrics.
        mlflow: whether to feed MLflow from metrics.jsonl during the run; `python -m pipeline.tracking sync RUN` does so
            later.
        experiment: the MLflow experiment that the run belongs to.
        uri: MLflow's tracking server or store. Left out: the environment variable MLFLOW_TRACKING_URI if it is set, else the
            SQLite file mlflow.db beside the run folders, with the artifacts in mlartifacts beside it. An address with a
            password is refused: the config becomes part of the run.
        close_seconds: how long the end of a run waits for MLflow to take the rest; the next start delivers what is left.
            A run that was asked to stop waits 5 s at most.
        system_every: seconds between lines of system metrics of each machine, taken by a process beside the run. A long run
            writes fewer, averaged, down to one in 16 times as many seconds. 0 or null: none, and no energy.
        costs: what energy and GPUs cost.
    """

    log_every: int = field(default=100, metadata={"unit": "updates", "period": True})
    mlflow: bool = True
    experiment: str = "resnet"
    uri: str | None = None
    close_seconds: float = 60.0
    system_every: float | None = 10.0
    costs: Costs = field(default_factory=Costs)

    def __post_init__(self) -> None:
        check_at_least(1, self, "log_every", prefix="tracking.")
        if self.system_every and not self.system_every >= 0.1:
            raise UserError(f"tracking.system_every is {self.system_every}: give at least 0.1 seconds, or 0 for none")
