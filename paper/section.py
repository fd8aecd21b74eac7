"""One experiment on the page: what its heading, captions and lines say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from paper.panels import LAST_POINTS, FigureData
from paper.published import Published
from paper.rows import Line, RowResult
from paper.spec import Experiment, OtherMethod
from paper.state import RunState


@dataclass(frozen=True, kw_only=True)
class Section:
    """One experiment at one scale: its evaluated rows and, for curves and responses, its figure."""

    experiment: Experiment
    scale: float
    rows: tuple[RowResult, ...]
    figure: FigureData | None

    @property
    def anchor(self) -> str:
        return self.experiment.name if self.scale == 1 else f"{self.experiment.name}-scale{self.scale:g}"

    @property
    def runs(self) -> int:
        return len(self.experiment.runs)

    @property
    def states(self) -> list[RunState]:
        """The state of every run, once each."""
        return list({run.spec: run.state for row in self.rows for run in row.runs}.values())

    @property
    def started(self) -> bool:
        """Whether there is a run of it, in whatever state."""
        return any(state.kind != "not run" for state in self.states)

    @property
    def finished(self) -> int:
        return sum(state.kind == "finished" for state in self.states)

    @property
    def schedule(self) -> str:
        """`shortened to 25% of the paper's schedule`, or nothing."""
        return "" if self.scale == 1 else f"shortened to {100 * self.scale:g}% of the paper's schedule"

    @property
    def heading(self) -> str:
        return f"{self.experiment.place}. {self.experiment.title}" + (f", {self.schedule}" if self.schedule else "")

    @property
    def notes(self) -> tuple[str, ...]:
        """The experiment's note, and the notes that all rows with a figure of ours share."""
        rows = [row.notes for row in self.rows if row.measured]
        shared = [note for note in (rows[0] if rows else ()) if len(rows) > 1 and all(note in one for one in rows)]
        sentences = [*([self.experiment.note] if self.experiment.note else []), *shared]
        return tuple(sentence[0].upper() + sentence[1:] + "." for sentence in sentences)

    def lines_of(self, row: RowResult) -> tuple[Line, ...]:
        """The row's lines in the table: top-5 errors only where the paper gives some. A figure has a table of its own."""
        if self.figure is not None:
            return ()
        top5 = any("top5_error" in other.paper for other in self.experiment.rows)
        return (*(line for line in row.lines if top5 or line.name != "top5_error"), *row.one_crop)

    def notes_of(self, row: RowResult) -> list[str]:
        """The notes of one row alone; before them, where only a part of its runs is finished, how far they are."""
        partly = row.measured and any(run.state.kind != "finished" for run in row.runs)
        shared = {note.lower() for note in self.notes}
        return [note for note in (*((row.status,) if partly else ()), *row.notes) if f"{note}.".lower() not in shared]

    @property
    def sources(self) -> Sequence[Published]:
        """Those who published errors of the section's rows. A rehearsal is compared with the paper alone."""
        return self.experiment.published if self.scale == 1 else ()

    @property
    def columns(self) -> int:
        """Of the table, on a wide screen."""
        return 5 + len(self.sources) + self.measured

    @property
    def others(self) -> Sequence[OtherMethod]:
        return self.experiment.others if self.scale == 1 else ()

    @property
    def measured(self) -> bool:
        """Whether the table has a figure of ours."""
        return any(line.ours is not None for row in self.rows for line in self.lines_of(row))

    @property
    def caption(self) -> str:
        assert self.figure is not None
        training = "training error, with augmentation, over the updates between two log points"
        if self.experiment.measure == "responses":
            text = "Standard deviation of each 3x3 layer's output over images, channels and positions, after BN and before "
            text += "ReLU and addition: in layer order, and sorted."
        elif any("train" in {curve.kind for curve in panel.curves} for panel in self.figure.panels):
            text = f"Dashed: {training}. Bold: test error."
        else:
            text = f"{training.capitalize()}; test error."
        if any(panel.marks for panel in self.figure.panels):
            text += " Diamonds: the paper's errors at the end."
        return " ".join([text, *self.figure.notes])

    @property
    def table_caption(self) -> str:
        match self.experiment.measure:
            case "responses":
                return "Standard deviations over the 3x3 layers."
            case "curve":
                return f"Errors at the end of each curve; the training error is the mean of the last {LAST_POINTS} log points."
        weights = ", BN statistics recomputed after training" if self.experiment.weights == "recomputed-bn" else ""
        return f"Error in %, {self.experiment.protocols[0]} on {self.experiment.split}{weights}."
