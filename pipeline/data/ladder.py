"""Decides, before the first batch, on which rung every rank decodes: one for all, so that pixels do not depend on the rank.

The main local rank of each host finds out what its GPU can do (`probe`), the others wait. All take the lowest rung that any
host needs. A run goes on with the rung of its last attempt, or a lower one; where device and decoder are the same as then,
nothing is tried again. Nor can anything be tried on a GPU in compute mode EXCLUSIVE_PROCESS, which this process has taken.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import nvidia.dali
import torch
import torch.distributed as dist

from pipeline.base.command import UserError
from pipeline.data.batch import LoaderConfig
from pipeline.data.decoders import RUNGS, Rung, decoder_name, decoder_version
from pipeline.data.plans import Plan
from pipeline.data.probe import Probe, trial_of
from pipeline.data.tuned import Machine, find
from pipeline.process.device import model_name
from pipeline.process.gpus import is_exclusive
from pipeline.process.world import World, on_main

WAYS: dict[Rung, str] = {"gpu": "on the GPU", "gpu-whole": "on the GPU, whole images", "cpu": "on the CPU"}
DECODING: dict[Rung, str] = {
    "gpu": "region decoding on the GPU",
    "gpu-whole": "decoding whole images on the GPU",
    "cpu": "decoding on the CPU",
}
_KNOWN_BY_A_RECORD = ("crop", "source")  # the graphs of a training and of its val errors


@dataclass(frozen=True)
class Record:
    """How a run's last attempt decoded: its rung, the hardware decoder's share, and with what."""

    rung: Rung
    hw_decoder_load: float
    device: str
    nvimgcodec: str
    dali: str

    @staticmethod
    def of(attempts: Sequence[Mapping[str, Any]]) -> Record | None:
        """That of the last of a run's attempts (run.json) that came to its first batch; None where that had no GPU."""
        last = next((one for one in reversed(attempts) if one.get("decode_on") in RUNGS), None)
        if last is None or last.get("device", "cpu") == "cpu":
            return None
        load = last.get("hw_decoder_load")
        return Record(
            rung=last["decode_on"],
            hw_decoder_load=float(load or 0.0),
            device=str(last["device"]),
            nvimgcodec=str(last.get("nvimgcodec")),
            dali=str(last.get("dali")),
        )

    def holds_for(self, device: torch.device) -> bool:
        """Whether device and decoder are those of the record."""
        return (self.device, self.nvimgcodec, self.dali) == (model_name(device), decoder_version(), dali_version())


@dataclass(frozen=True)
class _Outcome:
    """What a host found: its rung, and what the log line says after the rung; or an error's sentence."""

    rung: Rung = "cpu"
    words: str = ""
    error: str = ""


def decoding_facts(config: LoaderConfig, device: torch.device) -> dict[str, str | float | None]:
    """What decides the pixels of a run's batches, for its record in run.json and its tags in MLflow."""
    return {**config.decoding_facts(device), "dali": dali_version()}


def dali_version() -> str:
    return str(nvidia.dali.__version__)


def with_decoder(
    config: LoaderConfig,
    world: World,
    plans: Sequence[Plan],
    *,
    record: Record | None = None,
    new: bool = False,
    probe: Probe | None = None,
) -> LoaderConfig:
    """Return `config` with the rung and the hardware share that every rank is to use. A collective: every rank calls it.

    plans: what will be decoded; what is kept in memory is decoded on the CPU. record: of the run's last attempt. new: the
    run has had no attempt, so it may start as `pipeline.tune` found fastest for the main rank's machine.
    The main rank prints one line. Raises UserError, on every rank, where nothing works, or not what loader.decode_on insists
    on.
    """
    if world.device.type != "cuda":
        return _with_load(config, 0.0)
    advised = on_main(world, lambda: find(Machine(device=model_name(world.device), cores=world.cores))) if new else None
    first = record.rung if record else advised.decode_on if advised else RUNGS[0]
    config = _with_load(config, record.hw_decoder_load if record else 0.0)
    plans = [plan for plan in plans if not plan.in_memory(config)]
    if config.decode_on == "cpu" or not plans:
        return replace(config, decode_on="cpu")
    insists = config.decode_on != "auto"
    rungs = (config.rung(world.device),) if insists else RUNGS[RUNGS.index(first) :]
    trusted = rungs[0] if insists or record or advised else RUNGS[-1]
    world.watchdog.note("trying the GPU's decoder", limited=False)

    def found() -> _Outcome:
        known = record is not None and record.holds_for(world.device) and not insists
        if known and all(plan.kind in _KNOWN_BY_A_RECORD for plan in plans):
            return _Outcome(first, ", as in the run's last attempt")
        if rungs != RUNGS[-1:] and is_exclusive(world.device):
            return _untried(trusted, world.device)
        return _tried(plans, config, world.device, rungs, insists, probe or Probe())

    lowest = max(_of_all_hosts(world, found), key=lambda one: RUNGS.index(one.rung))
    if world.is_main:
        print(f"decoding {WAYS[lowest.rung]}{lowest.words}", file=sys.stderr)
    return replace(config, decode_on=lowest.rung)


def _with_load(config: LoaderConfig, load: float) -> LoaderConfig:
    return config if config.hw_decoder_load is not None else replace(config, hw_decoder_load=load)


def _untried(rung: Rung, device: torch.device) -> _Outcome:
    """Take `rung` where no second process can use this host's GPU."""
    host = socket.gethostname()
    words = (
        f", untried: {decoder_name(device)}, host {host}, is in compute mode EXCLUSIVE_PROCESS, so no child can try it"
    )
    if rung == RUNGS[-1]:
        words += " (have it set by nvidia-smi --compute-mode=DEFAULT, or insist on loader.decode_on: gpu-whole or gpu)"
    return _Outcome(rung, words)


def _tried(
    plans: Sequence[Plan],
    config: LoaderConfig,
    device: torch.device,
    rungs: Sequence[Rung],
    insists: bool,
    probe: Probe,
) -> _Outcome:
    """Try `rungs` on this host's GPU."""
    if rungs == ("cpu",):
        return _Outcome("cpu", ", as in the run's last attempt or as tuned (loader.decode_on: gpu insists on the GPU)")
    verdict = probe.choose([trial_of(plan.stream, plan.graph(config, device)) for plan in plans], device, rungs)
    where = f"{decoder_name(device)}, host {socket.gethostname()}"
    why = "; ".join(f"{DECODING[rung]} failed ({reason})" for rung, reason in verdict.failed.items())
    if verdict.rung is not None:
        return _Outcome(verdict.rung, f" ({where})" + (f": {why}, see docs/performance.md" if why else ""))
    if insists:
        return _Outcome(
            error=f"loader.decode_on is {rungs[0]}, and that fails with {where}: {why}; "
            "set loader.decode_on to auto, which takes the next way that works (docs/performance.md)"
        )
    return _Outcome(
        error=f"no decoder works with {where}: {why}; install the packages anew (make setup), "
        "and check the dataset with data_prep/verify.py"
    )


def _of_all_hosts(world: World, find: Callable[[], _Outcome]) -> list[_Outcome]:
    """What the main local rank of every host found, by `find`. A collective: every rank calls it.

    Raises UserError on every rank if one of them found no way; any other exception of `find` is raised on its own rank too.
    """
    outcome: _Outcome | None = None
    failure: Exception | None = None
    if world.local_rank == 0:
        try:
            outcome = find()
        except UserError as error:  # the samples cannot be read
            outcome = _Outcome(error=str(error))
        except Exception as error:  # the other ranks must not wait for this one
            said = f"{type(error).__name__}: {error}"
            outcome = _Outcome(error=f"trying the decoders failed on host {socket.gethostname()}, see its log ({said})")
            failure = error
    gathered = [outcome]
    if world.size > 1:
        gathered = [None] * world.size
        dist.all_gather_object(gathered, outcome)
    if failure is not None:
        raise failure
    outcomes = [one for one in gathered if one is not None]
    if errors := [one.error for one in outcomes if one.error]:
        raise UserError(errors[0])
    return outcomes
