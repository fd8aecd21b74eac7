"""The GPU of this process: which one it takes, and one sentence that says why torch can use none.

A job that has GPUs must not compute on CPUs in silence: where the host or SLURM gives this process a GPU that torch cannot
use, the device "auto" is refused, too. `CUDA_VISIBLE_DEVICES=` with no value or with -1 is how users ask for the CPU.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from pipeline.base.command import UserError

# The oldest Linux driver for each CUDA major version, by its branch (NVIDIA's table of CUDA minor version compatibility).
OLDEST_DRIVERS = {12: 525, 13: 580}

DRIVER_VERSION = Path("/proc/driver/nvidia/version")
DEVICES = Path("/dev")
PCI_DEVICES = Path("/sys/bus/pci/devices")


@dataclass(frozen=True)
class Host:
    """What this host has, whatever torch sees.

    driver: the version of the NVIDIA driver that is loaded, None for none. gpus: those that this process may open.
    unloaded: the host has an NVIDIA GPU and the driver's libraries, but the driver is not loaded: as after an update of the
    kernel. Without the libraries, as in containers without GPUs, or without a GPU, a host is one for CPUs.
    """

    driver: str | None
    gpus: int
    unloaded: bool = False


def usable() -> int:
    """How many GPUs torch can use. Starts CUDA in this process.

    torch.cuda.device_count alone asks NVML, which also counts GPUs whose driver is too old for this torch.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own words about the driver: `explanation` has them
        return torch.cuda.device_count() if torch.cuda.is_available() else 0


def take(wanted: str, local_rank: int) -> torch.device:
    """The device of this process: `wanted` is auto, cpu or cuda.

    auto: the GPU of this local rank, or the CPU where neither the host nor SLURM gives this process a GPU, or the user
    hides all GPUs; local rank 0 then says so. Where just one GPU is visible, every local rank takes it: sites that show
    each task its own GPU do so. Whether it is its own can be told once the ranks have met (`identity`). Raises UserError.
    """
    if wanted == "cpu":
        return torch.device("cpu")
    count = usable()
    if count == 0:
        host = inspect()
        if wanted == "cuda" or not _without_gpus(host, os.environ):
            raise UserError(explanation(host, os.environ.get("CUDA_VISIBLE_DEVICES")))
        if host.gpus and local_rank == 0:
            print("computing on the CPU: CUDA_VISIBLE_DEVICES hides the GPUs of this machine", file=sys.stderr)
        return torch.device("cpu")
    if local_rank >= count > 1:
        raise UserError(
            f"local rank {local_rank} has no GPU, this process sees {count}: "
            f"start at most {count} processes per host, or set device: cpu"
        )
    device = torch.device("cuda", local_rank if local_rank < count else 0)
    _check_generation(device)
    return device


def _check_generation(device: torch.device) -> None:
    """Raise UserError for a GPU that is older than those torch has code for."""
    compiled = [int(name[3:]) for name in torch.cuda.get_arch_list() if re.fullmatch(r"sm_\d+", name)]
    major, minor = torch.cuda.get_device_capability(device)
    if compiled and 10 * major + minor < (oldest := min(compiled)):
        raise UserError(
            f"{torch.cuda.get_device_name(device)} has compute capability {major}.{minor}, and torch {torch.__version__} has "
            f"code from {oldest / 10} on: give --device cpu, or for 7.0 and torch for CUDA 13 run 'make setup CUDA=12'"
        )


def identity(device: torch.device) -> str:
    """The UUID of a GPU, as `nvidia-smi -L` shows it, the same in every process that uses the GPU; "" for the CPU.

    A GPU whose UUID is all zeros, as integrated ones (Jetson) may report, is told by its host and its number there.
    """
    if device.type == "cpu":
        return ""
    uuid = str(torch.cuda.get_device_properties(device).uuid)
    return f"{device.type}:{device.index} of {socket.gethostname()}" if set(uuid) <= set("0-") else f"GPU-{uuid}"


def is_exclusive(device: torch.device) -> bool:
    """Whether a GPU serves one process at a time (compute mode EXCLUSIVE_PROCESS): a child of this one cannot use it too.

    False for the CPU, and where NVML does not tell, as of a part of a GPU (MIG).
    """
    if device.type != "cuda":
        return False
    try:
        import pynvml  # here, as in `inspect`
    except ImportError:
        return False
    try:
        with _nvml():
            mode = pynvml.nvmlDeviceGetComputeMode(pynvml.nvmlDeviceGetHandleByUUID(identity(device)))
    except pynvml.NVMLError:
        return False
    return mode in (pynvml.NVML_COMPUTEMODE_EXCLUSIVE_PROCESS, pynvml.NVML_COMPUTEMODE_EXCLUSIVE_THREAD)


def check_places(places: Sequence[tuple[str, str]]) -> None:
    """Raise UserError where two ranks share one GPU, or some ranks have a GPU and some have none.

    places: by rank, the `identity` of its device and the name of its host.
    """
    without = [rank for rank, (gpu, _) in enumerate(places) if not gpu]
    if 0 < len(without) < len(places):
        rank = without[0]
        raise UserError(
            f"rank {rank} on {places[rank][1]} has no GPU while other ranks have one: start the ranks on hosts of one kind, or "
            "give --device cpu"
        )
    first_with: dict[str, int] = {}
    for rank, (gpu, host) in enumerate(places):
        if gpu and (other := first_with.setdefault(gpu, rank)) != rank:
            raise UserError(
                f"ranks {other} and {rank} share one GPU on {host} ({gpu}): start one process per GPU, or give --device cpu"
            )


def promised(environment: Mapping[str, str]) -> bool:
    """Whether SLURM gave this process's job or step GPUs."""
    listed = any(environment.get(name) for name in ("SLURM_JOB_GPUS", "SLURM_STEP_GPUS"))
    return listed or environment.get("SLURM_GPUS_ON_NODE", "0") not in ("", "0")


def _without_gpus(host: Host, environment: Mapping[str, str]) -> bool:
    """Whether this process is meant to compute without GPUs: it has none, or they are hidden on purpose."""
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible in ("", "-1"):  # a user's words; schedulers write other ones
        return True
    if visible == "NoDevFiles":  # SLURM's, for a job without GPUs
        return not promised(environment)
    return host.gpus == 0 and not host.unloaded and not promised(environment)


def inspect() -> Host:
    """Ask NVML, the driver's own library; where NVML does not answer, look at the driver's files."""
    import pynvml  # here, since a process whose GPU works does not need it: bench/gpu also runs where it is not installed

    try:
        with _nvml():
            return Host(pynvml.nvmlSystemGetDriverVersion(), pynvml.nvmlDeviceGetCount())
    except pynvml.NVMLError as error:
        driver = _driver_of_kernel()
        installed = error.value != pynvml.NVML_ERROR_LIBRARY_NOT_FOUND
        opened = sum(_can_open(path) for path in DEVICES.glob("nvidia[0-9]*"))
        return Host(driver, opened, unloaded=driver is None and installed and _has_nvidia_gpu())


def explanation(host: Host, visible_devices: str | None) -> str:
    """The sentence for a process in which torch can use no GPU: why, and what to do.

    visible_devices: the value of CUDA_VISIBLE_DEVICES; None where it is not set.
    """
    cause, remedy = _cause(host, visible_devices)
    return f"torch can use no GPU here: {cause}; {remedy}, or give --device cpu to compute on the CPU"


def _cause(host: Host, visible_devices: str | None) -> tuple[str, str]:
    cuda, this = torch.version.cuda, f"torch {torch.__version__}"
    if cuda is None:
        return f"{this} was built without CUDA", "install the locked packages with 'make setup'"
    oldest, this = OLDEST_DRIVERS[int(cuda.split(".")[0])], f"{this} for CUDA {cuda}"
    if host.unloaded:
        return (
            "NVIDIA's driver is installed but not loaded",
            "load it or restart the machine (see what nvidia-smi shows)",
        )
    if host.driver is None:
        install = (
            f"run this where a GPU is (from a login node: srun --gpus=1 ...; in a container that was started with the host's "
            f"GPUs), or install NVIDIA's driver R{oldest} or newer"
        )
        return f"no NVIDIA driver was found, and {this} needs R{oldest} or newer", install
    if (branch := int(host.driver.split(".")[0])) < oldest:
        remedy = f"install driver R{oldest} or newer"
        if branch >= OLDEST_DRIVERS[12]:
            remedy += " or, for this driver, the packages for CUDA 12 with 'make setup CUDA=12'"
        return f"the NVIDIA driver is {host.driver}, and {this} needs R{oldest} or newer", remedy
    if visible_devices is not None and _hides_all(visible_devices, host.gpus):
        return f"CUDA_VISIBLE_DEVICES is '{visible_devices}', which hides every GPU", "unset it or name GPUs in it"
    if host.gpus == 0:
        return "this process is given no GPU", "ask the scheduler for GPUs, or start the container with them"
    return f"the driver {host.driver} is new enough, but CUDA says '{_words_of_cuda()}'", "see what nvidia-smi shows"


def _hides_all(visible_devices: str, gpus: int) -> bool:
    """Whether this value of CUDA_VISIBLE_DEVICES leaves no GPU: CUDA stops reading at the first entry that names none."""
    first = visible_devices.split(",")[0].strip()
    return not (first.startswith(("GPU-", "MIG-")) or (first.isdigit() and (int(first) < gpus or not gpus)))


def _words_of_cuda() -> str:
    try:
        torch.cuda.init()
    except RuntimeError as error:
        return " ".join(str(error).split())[:300]
    return "nothing"


@contextlib.contextmanager
def _nvml() -> Iterator[None]:
    import pynvml

    pynvml.nvmlInit()
    try:
        yield
    finally:
        pynvml.nvmlShutdown()


def _driver_of_kernel() -> str | None:
    try:
        found = re.search(r"\b\d{3,}\.\d+(\.\d+)*\b", DRIVER_VERSION.read_text(encoding="utf-8"))
    except OSError:
        return None
    return found[0] if found else None


def _has_nvidia_gpu() -> bool:
    """Whether a PCI device is an NVIDIA display or 3D controller. Nodes of one image have the libraries, GPU or not."""
    return any(
        _text_of(device / "vendor") == "0x10de" and _text_of(device / "class").startswith("0x03")
        for device in PCI_DEVICES.glob("*")
    )


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _can_open(path: Path) -> bool:
    """Whether this process may use the device: a scheduler's control group denies the opening of devices it did not give."""
    try:
        os.close(os.open(path, os.O_RDWR))
    except OSError:
        return False
    return True
