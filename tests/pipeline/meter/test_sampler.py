"""The sampler: its sums against known integrals; the process, which ends with the run, however that ends."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pipeline.base.layout import sampler_log, system_file
from pipeline.base.lease import Lease
from pipeline.meter import process as meter_process
from pipeline.meter.host import Host
from pipeline.meter.nvidia import Gpus
from pipeline.meter.process import metering
from pipeline.meter.rapl import zones
from pipeline.meter.records import About, Sample, Task, read_about, read_sample
from pipeline.meter.sampler import Lines, Packages, Sampler, spacing
from pipeline.meter.usage import usage_of
from tests.helpers import ROOT, alive, wait_for
from tests.patience import limit
from tests.pipeline.meter.machines import FakeNvml, make_zone

ABOUT = About(host="a", rank=0, attempt=1)


def samples(folder: Path, attempt: int = 1) -> list[Sample]:
    path = system_file(folder, "a", attempt)
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    return [sample for line in lines[1:] if (sample := read_sample(line))]


def sampler_of(folder: Path) -> set[int]:
    """The living samplers of the run in `folder`: other tests start theirs at the same time."""
    mark, found = str(folder.resolve()).encode(), set()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (process / "cmdline").read_bytes()
            if b"pipeline.meter.sampler" in words and mark in words and alive(int(process.name)):
                found.add(int(process.name))
    return found


def test_the_energy_of_a_machine_with_known_powers(tmp_path: Path) -> None:
    """Two GPUs, of which NVML tells the power as a sawtooth, and a package at 120 W whose counter goes round; every 9 s."""
    range_uj = 65_532_610_987
    file = make_zone(tmp_path, "intel-rapl:0", "package-0", 0, range_uj)
    times = np.arange(0, 1801, 9.0)
    at = [0]  # the index of now

    def watts(uuid: str) -> np.ndarray:
        return {"GPU-a": 100, "GPU-b": 200}[uuid] + 400 * ((times / 37) % 1)

    def clock() -> float:
        file.write_text(str(int(64e9 + 120e6 * times[at[0]]) % range_uj))
        return float(times[at[0]])

    nvml = FakeNvml(lambda uuid: float(watts(uuid)[at[0]]), None, "GPU-a", "GPU-b")
    sampler = Sampler(Host(tmp_path), Gpus(("GPU-a", "GPU-b"), print, nvml), Packages(zones(tmp_path), print), clock)
    for at[0] in range(1, len(times)):
        sampler.take()
    line = sampler.line()
    assert line.seconds == 1800
    for uuid, name in (("GPU-a", "gpu_3"), ("GPU-b", "gpu_4")):
        assert line.joules[name] == pytest.approx(np.trapezoid(watts(uuid), times), rel=1e-5)
        assert line.values[f"{name}_power_usage_watts"] == pytest.approx(watts(uuid)[1:].mean(), rel=1e-5)
    assert line.joules["package-0"] == pytest.approx(120 * 1800, rel=1e-6)
    assert sampler.line().values == {}  # a line holds the samples since the line before


def test_a_long_run_has_thousands_of_lines() -> None:
    """Ten days of a line every 10 s would be 86,400 of each of up to a hundred values."""
    every, seconds, written = 10.0, 0.0, 0
    spacings = []
    while seconds < 10 * 86_400:
        spacings.append(spacing(written))
        seconds, written = seconds + every * spacings[-1], written + 1
    assert 5000 < written < 10_000
    assert spacings == sorted(spacings) and {*spacings} == {1, 2, 4, 8, 16}


def test_what_psutil_tells_has_mlflows_names(tmp_path: Path) -> None:
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    ours = Host("/").read()
    theirs: dict[str, float] = {}
    for monitor in (CPUMonitor(), DiskMonitor(), NetworkMonitor()):
        monitor.collect_metrics()
        theirs |= monitor.aggregate_metrics()
    assert ours.keys() == theirs.keys()
    for name in ("system_memory_usage_megabytes", "disk_usage_megabytes", "disk_available_megabytes"):
        assert ours[name] == pytest.approx(theirs[name], rel=0.2), name


def test_a_sampler_writes_lines_and_ends_with_its_block(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(meter_process, "CLOSE_SECONDS", limit(30.0))  # on a busy machine its last line takes longer
    about = About(host="a", rank=3, attempt=2, gpus=1, cpu_share=0.5, costs={"price_per_kwh": 0.25})
    with metering(tmp_path, about, 0.2, ("GPU-none",)):
        wait_for(lambda: len(samples(tmp_path, 2)) >= 3, "three lines")
        (pid,) = sampler_of(tmp_path)
        assert os.getpriority(os.PRIO_PROCESS, pid) == os.getpriority(os.PRIO_PROCESS, 0) + 10
        mapped = Path(f"/proc/{pid}/maps").read_text()
        assert "libtorch" not in mapped and "sqlite" not in mapped
        before = len(samples(tmp_path, 2))
    assert not alive(pid)
    lines = samples(tmp_path, 2)
    assert len(lines) > before  # the last line is written at the end
    assert read_about(system_file(tmp_path, "a", 2).read_bytes().splitlines()[0]) == about
    assert [line.seconds for line in lines] == sorted(line.seconds for line in lines)
    assert abs(lines[-1].time / 1000 - time.time()) < limit(60)
    assert "cpu_utilization_percentage" in lines[0].values
    assert capfd.readouterr() == ("", "")
    assert "RAPL" in sampler_log(tmp_path, "a").read_text() or zones()


def test_ten_runs_leave_no_process(tmp_path: Path) -> None:
    for attempt in range(1, 11):
        with metering(tmp_path, About(host="a", rank=0, attempt=attempt), 5.0, ()):
            pass
    assert sampler_of(tmp_path) == set()
    usage = usage_of(tmp_path)
    assert usage is None or str(usage) == "not measured" or zones()


PARENT = """
import os, sys, time
from pathlib import Path
from pipeline.meter.process import metering
from pipeline.meter.records import About
with metering(Path(sys.argv[1]), About(host="a", rank=0, attempt=1), 0.2, ()):
    if sys.argv[2] == "sibling" and os.fork() == 0:  # it holds the pipe open
        time.sleep(1000)
    print("ready", flush=True)
    time.sleep(1000)
"""


@contextlib.contextmanager
def parent(folder: Path, kind: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", PARENT, str(folder), kind]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, process_group=0) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        wait_for(lambda: len(samples(folder)) >= 2, "two lines")
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):  # nobody of the group is left
                os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.parametrize("kind", ["alone", "sibling"])
def test_a_killed_parent_leaves_no_sampler(tmp_path: Path, kind: str) -> None:
    """Also where a forked child of it holds the pipe to the sampler open."""
    with parent(tmp_path, kind) as process:
        (pid,) = sampler_of(tmp_path)
        process.kill()
        process.wait()
        wait_for(lambda: not alive(pid), "the sampler's end", 20)


def test_signals_that_end_a_job_are_not_for_the_sampler(tmp_path: Path) -> None:
    with parent(tmp_path, "alone"):
        (pid,) = sampler_of(tmp_path)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
            os.kill(pid, number)
        seen = len(samples(tmp_path))
        wait_for(lambda: len(samples(tmp_path)) > seen + 1, "further lines")


def test_a_later_attempt_ends_the_sampler(tmp_path: Path) -> None:
    """The run folder is another attempt's: nothing more is written."""
    names = {"PIPELINE_JOB": "7", "PIPELINE_ATTEMPT": "0"}
    first = Lease(tmp_path, names)
    with metering(tmp_path, ABOUT, 0.2, ()):
        wait_for(lambda: len(samples(tmp_path)) >= 2, "two lines")
        (pid,) = sampler_of(tmp_path)
        second = Lease(tmp_path, names | {"PIPELINE_ATTEMPT": "1"})
        wait_for(lambda: not alive(pid), "the sampler's end", 20)
        written = len(samples(tmp_path))
    assert len(samples(tmp_path)) == written
    first.release()
    second.release()


def test_a_run_goes_on_where_no_sampler_can_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no-python"))
    with metering(tmp_path, ABOUT, 1.0, ()):
        done = True
    assert done and sampler_of(tmp_path) == set()


def test_a_sampler_that_hangs_does_not_keep_the_run(tmp_path: Path) -> None:
    with metering(tmp_path, ABOUT, 0.2, ()):
        wait_for(lambda: samples(tmp_path), "a line")
        (pid,) = sampler_of(tmp_path)
        os.kill(pid, signal.SIGSTOP)
    assert not alive(pid)


def test_a_full_disk_costs_lines_and_no_energy(tmp_path: Path) -> None:
    """RLIMIT_FSIZE stands for the disk: a write is cut off there, and the next one fails."""
    task = Task(
        folder=str(tmp_path), file=str(tmp_path / "system/a-0001.jsonl"), parent=0, every=1.0, gpus=(), about=ABOUT
    )
    lines = Lines(task)
    line = {"time": 1, "seconds": 10.0, "values": {"x": 1.0}}
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for number in range(30):
        if number == 10:
            size = os.stat(task.file).st_size
            resource.setrlimit(resource.RLIMIT_FSIZE, (size + 30, before[1]))
        if number == 20:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        lines.write(Sample(**line, joules={"gpu_0": 100.0 * number}))
    found = samples(tmp_path)
    assert [sample.joules["gpu_0"] / 100 for sample in found] == [*range(10), *range(20, 30)]
    assert all(b"}{" not in one for one in Path(task.file).read_bytes().splitlines())
    assert json.loads(Path(task.file).read_bytes().splitlines()[-1])["joules"] == {"gpu_0": 2900.0}
