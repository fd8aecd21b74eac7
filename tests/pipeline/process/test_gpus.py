"""The GPU of a process, on hosts that are made up: what NVML, the driver's files, SLURM and torch say is replaced."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import pynvml
import pytest
import torch
import torch.distributed as dist

from pipeline.base.command import UserError
from pipeline.process import gpus
from pipeline.process.gpus import Host
from pipeline.process.world import World, open_world
from tests.helpers import ROOT
from tests.launch.launchers import environment
from tests.ranks import run_ranks

NO_DRIVER = Host(None, 0)
THIS = f"torch {torch.__version__} for CUDA 13.2"


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch for CUDA 13, whatever this environment has; nothing of a scheduler."""
    monkeypatch.setattr(torch.version, "cuda", "13.2")
    for name in ("CUDA_VISIBLE_DEVICES", "SLURM_JOB_GPUS", "SLURM_STEP_GPUS", "SLURM_GPUS_ON_NODE"):
        monkeypatch.delenv(name, raising=False)


def see(
    monkeypatch: pytest.MonkeyPatch, count: int, host: Host = NO_DRIVER, capability: tuple[int, int] = (9, 0)
) -> None:
    """Let torch use `count` GPUs of `capability` on a host that has what `host` says."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: host.gpus or count)  # NVML's count, as torch gives it
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_80", "sm_90", "sm_90a", "compute_90"])
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla V100")
    monkeypatch.setattr(gpus, "inspect", lambda: host)


def refusal(wanted: str, local_rank: int = 0) -> str:
    with pytest.raises(UserError) as refused:
        gpus.take(wanted, local_rank)
    return str(refused.value)


def test_a_local_rank_takes_its_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    see(monkeypatch, 4)
    assert [gpus.take("auto", rank) for rank in range(4)] == [torch.device("cuda", rank) for rank in range(4)]
    assert gpus.take("cpu", 3) == torch.device("cpu")
    assert refusal("cuda", 4) == (
        "local rank 4 has no GPU, this process sees 4: start at most 4 processes per host, or set device: cpu"
    )


def test_a_task_that_sees_its_own_gpu_alone_takes_that(monkeypatch: pytest.MonkeyPatch) -> None:
    see(monkeypatch, 1)
    assert gpus.take("auto", 5) == torch.device("cuda", 0)


def test_a_host_without_gpus_computes_on_the_cpu_unless_cuda_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    see(monkeypatch, 0)
    assert gpus.take("auto", 0) == torch.device("cpu")
    assert refusal("cuda") == (
        f"torch can use no GPU here: no NVIDIA driver was found, and {THIS} needs R580 or newer; run this where a GPU is "
        "(from a login node: srun --gpus=1 ...; in a container that was started with the host's GPUs), or install NVIDIA's "
        "driver R580 or newer, or give --device cpu to compute on the CPU"
    )


def test_a_driver_that_is_not_loaded_is_refused_unless_the_gpus_are_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """As after an update of the kernel: nothing but the driver's library and the PCI bus shows that there is a GPU."""
    see(monkeypatch, 0, Host(None, 0, unloaded=True))
    for wanted in ("auto", "cuda"):
        assert refusal(wanted) == (
            "torch can use no GPU here: NVIDIA's driver is installed but not loaded; load it or restart the machine (see what "
            "nvidia-smi shows), or give --device cpu to compute on the CPU"
        )
    assert gpus.take("cpu", 0) == torch.device("cpu")
    for value in ("", "-1", "NoDevFiles"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
        assert gpus.take("auto", 0) == torch.device("cpu")


def test_a_host_with_a_driver_but_no_gpu_for_this_process_computes_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    see(monkeypatch, 0, Host("580.65.06", 0))
    assert gpus.take("auto", 0) == torch.device("cpu")
    assert "this process is given no GPU; ask the scheduler for GPUs" in refusal("cuda")


@pytest.mark.parametrize(
    "name, value", [("SLURM_JOB_GPUS", "0,1"), ("SLURM_STEP_GPUS", "0"), ("SLURM_GPUS_ON_NODE", "2")]
)
def test_a_job_that_slurm_gave_gpus_is_not_computed_on_the_cpu(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    see(monkeypatch, 0)
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", "0")
    assert gpus.take("auto", 0) == torch.device("cpu")
    monkeypatch.setenv(name, value)
    assert "no NVIDIA driver was found" in refusal("auto")
    assert gpus.take("cpu", 0) == torch.device("cpu")


def test_a_driver_too_old_for_torch_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    see(monkeypatch, 0, Host("535.104.05", 8))
    assert refusal("auto") == (
        f"torch can use no GPU here: the NVIDIA driver is 535.104.05, and {THIS} needs R580 or newer; install driver R580 or "
        "newer or, for this driver, the packages for CUDA 12 with 'make setup CUDA=12', or give --device cpu to compute on "
        "the CPU"
    )
    assert gpus.take("cpu", 0) == torch.device("cpu")
    see(monkeypatch, 0, Host("470.82", 1))  # CUDA 12 would not help
    assert "install driver R580 or newer, or give --device cpu" in refusal("auto")
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    assert "for CUDA 12.8 needs R525 or newer; install driver R525 or newer, or give --device cpu" in refusal("auto")


def test_torch_without_cuda_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    see(monkeypatch, 0, Host("580.65.06", 1))
    monkeypatch.setattr(torch.version, "cuda", None)
    assert (
        f"torch {torch.__version__} was built without CUDA; install the locked packages with 'make setup'"
        in refusal("auto")
    )


@pytest.mark.parametrize(
    ("value", "wanted"), [("", "cuda"), ("-1", "cuda"), ("NoDevFiles", "cuda"), ("2", "auto"), ("-1,0", "auto")]
)
def test_hidden_gpus_are_named(value: str, wanted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    see(monkeypatch, 0, Host("580.65.06", 2))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    assert f"CUDA_VISIBLE_DEVICES is '{value}', which hides every GPU; unset it" in refusal(wanted)


@pytest.mark.parametrize("value", ["", "-1", "NoDevFiles"])
def test_gpus_that_are_hidden_on_purpose_leave_the_cpu(
    value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    see(monkeypatch, 0, Host("580.65.06", 2))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    assert [gpus.take("auto", rank) for rank in (0, 1)] == [torch.device("cpu")] * 2
    words = "computing on the CPU: CUDA_VISIBLE_DEVICES hides the GPUs of this machine"
    assert capsys.readouterr().err.splitlines() == [words]


def test_slurms_word_for_no_gpus_is_refused_in_a_job_with_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    see(monkeypatch, 0, Host("580.65.06", 2))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "NoDevFiles")
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", "8")
    assert "CUDA_VISIBLE_DEVICES is 'NoDevFiles', which hides every GPU" in refusal("auto")


@pytest.mark.parametrize("value", ["0,1", "1", "GPU-8932f937", "MIG-8932f937"])
def test_what_cuda_says_is_passed_on(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def init() -> None:
        raise RuntimeError("Unexpected error from cudaGetDeviceCount().\nError 802: system not yet initialized")

    see(monkeypatch, 0, Host("580.65.06", 2))
    monkeypatch.setattr(torch.cuda, "init", init)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    words = "the driver 580.65.06 is new enough, but CUDA says 'Unexpected error from cudaGetDeviceCount(). Error 802: system"
    assert words in refusal("auto")


def test_a_gpu_older_than_torchs_code_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    see(monkeypatch, 1, capability=(7, 0))
    assert "Tesla V100 has compute capability 7.0, and torch" in refusal("auto")
    assert "has code from 7.5 on" in refusal("auto")
    see(monkeypatch, 1, capability=(12, 1))
    assert gpus.take("auto", 0).type == "cuda"


def with_nvml(monkeypatch: pytest.MonkeyPatch, init: Callable[[], None]) -> None:
    monkeypatch.setattr(pynvml, "nvmlInit", init)
    monkeypatch.setattr(pynvml, "nvmlShutdown", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlSystemGetDriverVersion", lambda: "550.54.15")
    monkeypatch.setattr(pynvml, "nvmlDeviceGetCount", lambda: 3)


def test_nvml_is_asked_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(gpus, "DRIVER_VERSION", tmp_path / "none")
    with_nvml(monkeypatch, lambda: None)
    assert gpus.inspect() == Host("550.54.15", 3)


@pytest.mark.parametrize(
    "text, version",
    [
        (
            "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023\n",
            "535.104.05",
        ),
        (
            "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build  (dvs-builder)\n",
            "580.65.06",
        ),
        (None, None),
    ],
)
def test_the_drivers_files_are_read_where_nvml_does_not_answer(
    text: str | None, version: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As after an update of the driver's packages without a reboot: NVML's library does not fit the loaded module."""

    def init() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH)

    with_nvml(monkeypatch, init)
    monkeypatch.setattr(gpus, "DRIVER_VERSION", tmp_path / "version")
    monkeypatch.setattr(gpus, "DEVICES", tmp_path)
    monkeypatch.setattr(gpus, "PCI_DEVICES", tmp_path / "bus")
    if text is not None:
        (tmp_path / "version").write_text(text)
        for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"):
            (tmp_path / name).touch()
        (tmp_path / "nvidia2").mkdir()  # cannot be opened, like a device that the scheduler denies
    assert gpus.inspect() == Host(version, 2 if text else 0)


def plug_in(folder: Path, **devices: tuple[str, str]) -> Path:
    """A folder like the kernel's of PCI devices; by name, the vendor and the class of each."""
    for name, (vendor, kind) in devices.items():
        (folder / name).mkdir(parents=True)
        (folder / name / "vendor").write_text(f"{vendor}\n")
        (folder / name / "class").write_text(f"{kind}\n")
    return folder


@pytest.mark.parametrize("kind", ["0x030000", "0x030200"], ids=["VGA controller", "3D controller"])
@pytest.mark.parametrize(
    ("error", "unloaded"),
    [(pynvml.NVML_ERROR_DRIVER_NOT_LOADED, True), (pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, False)],
    ids=["library", "no library"],
)
def test_a_driver_that_is_installed_but_not_loaded_is_told(
    kind: str, error: int, unloaded: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Without NVML's library it is another driver's GPU (nouveau), or a container that is given none."""

    def init() -> None:
        raise pynvml.NVMLError(error)

    with_nvml(monkeypatch, init)
    monkeypatch.setattr(gpus, "DRIVER_VERSION", tmp_path / "none")
    monkeypatch.setattr(gpus, "DEVICES", tmp_path)
    bus = plug_in(tmp_path / "other", network=("0x15b3", "0x020700"), sound=("0x10de", "0x040300"))
    monkeypatch.setattr(gpus, "PCI_DEVICES", bus)
    assert gpus.inspect() == Host(None, 0)  # a node without a GPU, with the image of those that have one
    monkeypatch.setattr(gpus, "PCI_DEVICES", plug_in(tmp_path / "bus", gpu=("0x10de", kind)))
    assert gpus.inspect() == Host(None, 0, unloaded)
    (tmp_path / "none").write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06\n")
    assert gpus.inspect() == Host("580.65.06", 0)  # loaded, but this process must not open its devices


def give_gpu(uuid: str) -> None:
    """Let this process see one GPU with this UUID, or none (""); groups are gloo's."""
    init = dist.init_process_group
    torch.cuda.is_available = lambda: bool(uuid)  # type: ignore[assignment]
    torch.cuda.device_count = lambda: 1
    torch.cuda.get_arch_list = lambda: []
    torch.cuda.get_device_capability = lambda device: (9, 0)  # type: ignore[assignment]
    torch.cuda.get_device_properties = lambda device: SimpleNamespace(uuid=uuid)  # type: ignore[assignment]
    torch.cuda.set_device = lambda device: None
    dist.init_process_group = lambda backend, **options: init("gloo", **options)  # type: ignore[assignment]


def meet(world: World, uuids: Sequence[str], port: int) -> str:
    """Open a world in which each rank sees one GPU; the device it takes, or why it is refused."""

    dist.destroy_process_group()
    os.environ["MASTER_PORT"] = str(port)
    give_gpu(uuids[world.rank])
    try:
        with open_world("auto") as opened:
            return str(opened.device)
    except UserError as error:
        return str(error)


def test_ranks_with_a_gpu_of_their_own_each_take_cuda_0(port: int) -> None:
    assert run_ranks(3, meet, ["a", "b", "c"], port) == ["cuda:0"] * 3


def test_ranks_that_share_a_gpu_are_refused(port: int) -> None:
    for sentence in run_ranks(3, meet, ["a", "b", "a"], port):
        assert sentence.startswith("ranks 0 and 2 share one GPU on ") and "(GPU-a): start one process" in sentence


def test_a_rank_without_a_gpu_among_others_with_one_is_refused(port: int) -> None:
    for sentence in run_ranks(2, meet, ["a", ""], port):
        assert sentence.startswith("rank 1 on ") and "has no GPU while other ranks have one" in sentence


def test_gpus_without_a_uuid_are_told_by_their_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """Integrated GPUs (Jetson) may report zeros: two hosts' GPUs are no shared one, two ranks of one host share it."""
    zeros = SimpleNamespace(uuid="00000000-0000-0000-0000-000000000000")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: zeros)
    places = []
    for host in ("one", "other"):
        monkeypatch.setattr(socket, "gethostname", lambda name=host: name)
        places.append((gpus.identity(torch.device("cuda", 0)), host))
    gpus.check_places(places)
    with pytest.raises(UserError, match=r"ranks 0 and 2 share one GPU on one \(cuda:0 of one\)"):
        gpus.check_places([*places, places[0]])


@pytest.mark.costly("a process that imports torch, as a user's does")
def test_a_training_in_a_job_with_gpus_ends_with_one_sentence(tmp_path: Path) -> None:
    """A real command: no NVIDIA driver, in a SLURM job that was given GPUs."""
    command = [sys.executable, "-m", "pipeline.train", "--data", str(tmp_path), "--runs", str(tmp_path)]
    job = environment({"SLURM_GPUS_ON_NODE": "8", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "NoDevFiles"})
    done = subprocess.run(command, env=job, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    started, error = done.stderr.splitlines()
    assert started.startswith("starting: ") and error.startswith("error: torch can use no GPU here: ")


@pytest.mark.gpu
def test_a_real_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    host = gpus.inspect()
    assert host.driver and host.gpus >= gpus.usable() >= 1
    device = gpus.take("auto", 0)
    assert device == torch.device("cuda", 0) and gpus.identity(device).startswith("GPU-")


@pytest.mark.parametrize(
    ("mode", "exclusive"), [(0, False), (1, True), (3, True), (pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND), False)]
)
def test_a_gpu_that_serves_one_process(
    monkeypatch: pytest.MonkeyPatch, mode: int | pynvml.NVMLError, exclusive: bool
) -> None:
    """As NVML says of the GPU of this UUID; its numbers are those of nvml.h."""

    def mode_of(gpu: str) -> int:
        assert gpu == "handle of GPU-5d0a-3"
        if isinstance(mode, int):
            return mode
        raise mode

    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid=f"5d0a-{device.index}")
    )
    for name in ("nvmlInit", "nvmlShutdown"):
        monkeypatch.setattr(pynvml, name, lambda: None)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByUUID", "handle of {}".format)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetComputeMode", mode_of)
    assert gpus.is_exclusive(torch.device("cuda", 3)) == exclusive
    assert not gpus.is_exclusive(torch.device("cpu"))


@pytest.mark.gpu
def test_nvml_tells_the_mode_of_a_real_gpu() -> None:
    assert pynvml.nvmlInit() is None
    try:
        handle = pynvml.nvmlDeviceGetHandleByUUID(gpus.identity(torch.device("cuda", 0)))
        assert gpus.is_exclusive(torch.device("cuda", 0)) == (pynvml.nvmlDeviceGetComputeMode(handle) != 0)
    finally:
        pynvml.nvmlShutdown()
