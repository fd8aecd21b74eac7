"""Finds out on which rung (`decoders`) a GPU decodes this dataset's images, in child processes that may crash or hang.

A child decodes a few real images with the graphs that the loaders will use. The rung passes where every image decodes that
the CPU decodes, to much the same pixels; else the next rung is tried. An image that the CPU does not decode either is left
out: it says nothing about the GPU.

It cannot show faults that come rarely: a child decodes 32 images of a split at most, twice, with 4 threads. Races between
threads or batches show only with more of them, and memory that leaks or runs out shows only in a run.
"""

from __future__ import annotations

import contextlib
import pickle
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from subprocess import PIPE, TimeoutExpired

import numpy as np
import torch

from pipeline.base.children import start_child
from pipeline.data.batch import BatchStream
from pipeline.data.decoders import Rung
from pipeline.data.graphs import Graph
from pipeline.data.headers import header_fault, is_doubtful, kind_of
from pipeline.data.order import Presentations
from pipeline.data.probing import Answer, Pixels, Question, Trial

# For imports, from a cold network file system perhaps, the first use of a GPU whose driver has to wake up, and a few batches.
# No GPU has run it yet; on a CPU with 2 cores a child takes 5 to 15 s, most of it imports.
LIMIT_SECONDS = 120.0
# Sound decoders differ by inverse DCT and chroma interpolation, by 35 dB or more. In centre crops of the 140 real images zeros
# have 11 dB at most, and a window that is 8 pixels off 24 dB; swapped channels are below 25 dB in 81% of the images.
LEAST_PSNR = 25.0
IMAGES = 32
_READ = 96  # samples whose headers are looked at
_LARGEST = 4  # by bytes, and as many by pixels
CHILD = (sys.executable, "-P", "-m", "pipeline.data.probing")
_CPU = torch.device("cpu")
_ENDING_SECONDS = 5.0  # how long a killed child is waited for: the driver may hold it


@dataclass(frozen=True)
class Verdict:
    """rung: the first that passed, None if none did. failed: why others did not, in the order in which they were tried."""

    rung: Rung | None
    failed: dict[Rung, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Reference:
    """What the CPU's decoder makes of trials. trials: without the images that it does not decode, unless it decodes none.

    pixels: for each trial and image, uint8; None where the CPU decodes nothing. fault: why it decodes nothing.
    """

    trials: Sequence[Trial]
    pixels: Sequence[Sequence[Pixels]] | None
    fault: str | None = None


@dataclass(frozen=True)
class Ended:
    """How a child ended. code: negative for a signal, None if it was killed at its limit."""

    code: int | None
    output: bytes = b""
    errors: str = ""


def run_child(question: bytes, limit: float, child: Sequence[str] = CHILD) -> Ended:
    """Run a child on a pickled Question, for `limit` seconds at most."""
    # A scheduler's signal to all processes of the job must not look like a crash.
    process = start_child(child, stdout=PIPE, stderr=PIPE)
    try:
        output, errors = process.communicate(question, timeout=limit)
    except TimeoutExpired:
        return Ended(None)
    finally:
        process.kill()
        with contextlib.suppress(TimeoutExpired):
            process.wait(_ENDING_SECONDS)
    return Ended(process.returncode, output, errors.decode(errors="replace"))


@dataclass(frozen=True)
class Probe:
    """How a rung is tried. limit: seconds for a child, which `run` runs."""

    limit: float = LIMIT_SECONDS
    run: Callable[[bytes, float], Ended] = run_child

    def choose(self, trials: Sequence[Trial], device: torch.device, rungs: Sequence[Rung]) -> Verdict:
        """Return the first of `rungs` that decodes the images of `trials` for batches on `device`."""
        reference = self._reference(trials)
        failed: dict[Rung, str] = {} if reference.fault is None else {"cpu": reference.fault}
        for rung in rungs:
            fault = self._fault(rung, device, reference)
            if fault is None:
                return Verdict(rung, failed)
            failed[rung] = fault
        return Verdict(None, failed)

    def faults(self, trials: Sequence[Trial], device: torch.device, rungs: Sequence[Rung]) -> dict[Rung, str | None]:
        """Try all of `rungs`: why each does not decode the images of `trials` for batches on `device`, None where it does.

        The images are decoded once on the CPU, for all rungs.
        """
        reference = self._reference(trials)
        return {rung: self._fault(rung, device, reference) for rung in rungs}

    def _reference(self, trials: Sequence[Trial]) -> _Reference:
        answer = self._ask(trials, "cpu", _CPU)
        if isinstance(answer, str):
            return _Reference(trials, None, answer)
        if all(isinstance(image, str) for images in answer for image in images):
            return _Reference(trials, None, f"no image decodes: {answer[0][0]}")
        return _sound(trials, answer)

    def _fault(self, rung: Rung, device: torch.device, reference: _Reference) -> str | None:
        """Why a rung is not good enough: its images' errors, or their pixels where the CPU's are known."""
        if rung == "cpu":
            return reference.fault
        answer = self._ask(reference.trials, rung, device)
        if isinstance(answer, str):
            return answer
        for number, trial in enumerate(reference.trials):
            for row, image in enumerate(answer[number]):
                if isinstance(image, str):
                    return image
                if reference.pixels is None:
                    continue
                if (quality := _psnr(trial, row, image, reference.pixels[number][row])) < LEAST_PSNR:
                    return f"its pixels are not the CPU decoder's: PSNR {quality:.0f} dB, at least {LEAST_PSNR:.0f} expected"
        return None

    def _ask(self, trials: Sequence[Trial], rung: Rung, device: torch.device) -> Answer | str:
        """Have a child decode; its answer, or why there is none."""
        tried = tuple(_on(rung, trial) for trial in trials if trial.encoded)
        ended = self.run(pickle.dumps(Question(tried, device, self.limit)), self.limit)
        if ended.code is None:
            return f"no answer within {self.limit:g} s"
        if ended.code < 0:
            return f"killed by {signal.Signals(-ended.code).name}"
        if ended.code:
            *_, last = ["", *ended.errors.strip().splitlines()]
            return f"exit code {ended.code}" + (f", {last[:300]}" if last else "")
        try:
            answer = iter(pickle.loads(ended.output))
        except (EOFError, pickle.UnpicklingError):  # of nothing, or of a part
            return "ended without an answer"
        return [next(answer) if trial.encoded else [] for trial in trials]


def trial_of(stream: BatchStream, graph: Graph) -> Trial:
    """Return a trial of `graph` with images of a stream's split: spread over it, of every kind found, and the largest."""
    samples = stream.split.samples
    spread = np.unique(np.linspace(0, len(samples) - 1, min(_READ, len(samples))).astype(np.int64))
    area = samples["height"].astype(np.int64) * samples["width"]
    largest = np.concatenate(
        [np.argsort(-by.astype(np.int64), kind="stable")[:_LARGEST] for by in (samples["size"], area)]
    )
    found: dict[str, list[tuple[int, bytes]]] = {"largest": []}
    for sample in dict.fromkeys([*largest.tolist(), *spread.tolist()]):
        encoded, table = stream.split.read(sample), samples[sample]
        if not is_doubtful(encoded) and header_fault(encoded, int(table["height"]), int(table["width"])) is None:
            kind = "largest" if sample in largest else kind_of(encoded)
            found.setdefault(kind, []).append((sample, encoded))
    # One of each kind in turn, so that rare kinds are among them.
    turns = [(turn, kind, one) for kind, several in found.items() for turn, one in enumerate(several)]
    chosen = sorted(one for _, _, one in sorted(turns)[:IMAGES])
    ids = np.array([sample for sample, _ in chosen], np.int64)
    views = stream.request(Presentations(np.zeros(len(ids), np.int64), ids)).views
    return Trial(graph, tuple(encoded for _, encoded in chosen), views)


def _sound(trials: Sequence[Trial], answer: Answer) -> _Reference:
    """Keep the images that decoded: the trials without others, and the pixels."""
    pixels = [{row: image for row, image in enumerate(images) if not isinstance(image, str)} for images in answer]
    kept = [trial.rows([*found]) for trial, found in zip(trials, pixels, strict=True)]
    return _Reference(kept, [[*found.values()] for found in pixels])


def _on(rung: Rung, trial: Trial) -> Trial:
    """The trial on another rung; on the CPU's it gives uint8, as loaders do it there."""
    graph = replace(trial.graph, rung=rung)
    return replace(trial, graph=replace(graph, normalization=None) if rung == "cpu" else graph)


def _psnr(trial: Trial, row: int, image: Pixels, reference: Pixels) -> float:
    """Peak signal-to-noise ratio in dB of an image of the trial's graph; reference: uint8."""
    if image.shape != reference.shape:
        return -np.inf
    expected, scale = reference.astype(np.float32), np.ones(3, np.float32)
    if (normalization := trial.graph.normalization) is not None:
        normalization.on_cpu(reference[None], trial.views.colour[row : row + 1], expected[None])
        scale = scale if normalization.std is None else normalization.std
    error = float(np.mean(((image.astype(np.float32) - expected) * scale).astype(np.float64) ** 2))
    return float(np.inf) if error == 0 else float(10 * np.log10(255.0**2 / error))
