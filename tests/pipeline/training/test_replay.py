"""Recorded updates: replaying a recording is the training that would have been, to the bit.

The GPU test records CUDA graphs. The others record the operators of the same update on the CPU, and replay them with the
tensors and numbers that they had then: a graph's terms, under which nothing that the host decides is decided again.
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.torch_version import TorchVersion
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pipeline.base.command import UserError
from pipeline.models.resnet import build
from pipeline.process.world import World
from pipeline.training.batchnorm import plan_groups
from pipeline.training.flat import FlatGradients
from pipeline.training.optimizer import OptimizerConfig
from pipeline.training.replay import WARM_UP, CudaGraphs, Recorder, cuda_graphs
from pipeline.training.step import StepConfig, TrainingStep
from tests.ranks import ALONE, run_ranks

BATCH, GROUP, CLASSES = 16, 4, 5
RATES = [0.1] * 5 + [0.01] * 3 + [0.1]
POISONED = 4  # the update whose images hold a value that is not a number; it is a replayed one
Left = tuple[dict[str, Tensor], Tensor]  # (tensors by name, metrics [updates, 3])


class Operators(TorchDispatchMode):
    """A `Recorder` of the operators that work is made of, on the CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []
        self.before: dict[int, tuple[Tensor, Tensor]] = {}  # storages that work found: a tensor and its contents
        self.own: set[int] = set()  # storages that work made
        self.recordings = self.replays = 0

    def run(self, work: Callable[[], Tensor]) -> Tensor:
        return work()

    def record(self, work: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        self.calls, self.before, self.own = [], {}, set()
        with self:
            result = work()
        with torch.no_grad():
            for tensor, contents in self.before.values():
                tensor.untyped_storage().copy_(contents.untyped_storage())
        self.recordings += 1
        calls = self.calls
        return lambda: self._replay(calls), result

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for tensor in tensors_in((args, kwargs)):
            place = tensor.untyped_storage().data_ptr()
            if place not in self.own and place not in self.before:
                kept = torch.empty(0, dtype=tensor.dtype).set_(tensor.untyped_storage().clone())
                self.before[place] = (tensor, kept)
        out = func(*args, **kwargs)
        self.own |= {tensor.untyped_storage().data_ptr() for tensor in tensors_in(out)} - self.before.keys()
        self.calls.append((func, args, kwargs, out))  # keeps every tensor, so that no memory is used twice
        return out

    def _replay(self, calls: list[tuple[Any, Any, Any, Any]]) -> None:
        self.replays += 1
        with torch.no_grad():
            for func, args, kwargs, out in calls:
                fresh = func(*args, **kwargs)
                for place, value in zip(tensors_in(out), tensors_in(fresh), strict=True):
                    if place.untyped_storage().data_ptr() != value.untyped_storage().data_ptr():
                        place.detach().copy_(value)


def tensors_in(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def opened(world: World, recorder: Recorder | None, **more: Any) -> TrainingStep:
    """The step of a small net, with the values of StepConfig that `more` holds."""
    return TrainingStep(
        build("resnet8", classes=CLASSES, generator=torch.Generator().manual_seed(0)),
        StepConfig(**{"batch": BATCH, "reduction": "tree", **more}),
        plan_groups(BATCH, GROUP, world.rank, world.size),
        world,
        recorder,
    )


def updated(step: TrainingStep, numbers: range, rates: Sequence[float] = RATES) -> Left:
    """Make these updates; what they leave."""
    device, rows = step.world.device, step.plan.rows
    for number in numbers:
        generator = torch.Generator().manual_seed(number)
        images = torch.randn(BATCH, 16, 16, 3, generator=generator)
        labels = torch.randint(CLASSES, (BATCH,), generator=generator)
        if number == POISONED:
            images[0, 0, 0, 0] = float("nan")
        step.step(images[rows].to(device), labels[rows].to(device), rates[number])
    left: dict[str, Tensor] = {f"model.{name}": value for name, value in step.model.named_parameters()}
    momenta = [state["momentum_buffer"] for state in step.optimizer.state.values()]
    left |= {f"momentum.{number}": value for number, value in enumerate(momenta)}
    left["statistics"] = step.statistics.all_groups()
    if step.average:
        left |= {f"average.{name}": value for name, value in step.average.model.named_parameters()}
        left["average statistics"] = step.average.statistics.all_groups()
        assert step.average.updates == numbers.stop
    left = {name: value.detach().cpu().clone() for name, value in left.items()}
    return left, torch.from_numpy(step.take_metrics())


def trained(world: World, recorder: Recorder | None, rates: Sequence[float] = RATES, **more: Any) -> Left:
    """What the updates at `rates` leave."""
    step = opened(world, recorder, **more)
    left = updated(step, range(len(rates)), rates)
    step.close()
    return left


def same(one: Left, other: Left) -> None:
    for name, value in one[0].items():
        assert torch.equal(value, other[0][name]), name
    assert torch.equal(one[1].nan_to_num(-1), other[1].nan_to_num(-1))


def digest(left: Left) -> str:
    values = [*left[0].values(), left[1].nan_to_num(-1)]
    return hashlib.sha256(b"".join(value.contiguous().numpy().tobytes() for value in values)).hexdigest()


FINE_TUNING = {"optimizer": OptimizerConfig(body_lr_factor=0.1), "freeze_bn": True}
AVERAGE = {"label_smoothing": 0.1, "ema_decay": 0.9}  # a decay that grows over the first 90 updates


@pytest.mark.parametrize(
    "more",
    [{}, {"precision": "bf16"}, AVERAGE, FINE_TUNING],
    ids=["float32", "bf16", "smoothing and average", "fine-tuning"],
)
def test_a_replayed_training_is_the_training(more: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    recorder = Operators()
    replayed = trained(ALONE, recorder, **more)
    same(trained(ALONE, None, **more), replayed)
    assert recorder.recordings == 2, "its two pieces, for all rates and decays"
    assert recorder.replays == 2 * (len(RATES) - WARM_UP)
    assert replayed[1][:, 2].tolist() == [float(number != POISONED) for number in range(len(RATES))]


def test_a_rate_that_always_changes_is_replayed_too() -> None:
    torch.set_num_threads(1)
    rates = [0.1 * (1 + math.cos(math.pi * number / 8)) / 2 for number in range(8)]
    recorder = Operators()
    same(trained(ALONE, None, rates), trained(ALONE, recorder, rates))
    assert recorder.recordings == 2


def test_a_run_that_goes_on_replays_the_same() -> None:
    torch.set_num_threads(1)
    halfway = len(RATES) // 2
    first = opened(ALONE, Operators(), **AVERAGE)
    _, metrics = updated(first, range(halfway))
    second = opened(ALONE, Operators(), **AVERAGE)
    second.model.load_state_dict(first.model.state_dict())
    second.optimizer.load_state_dict(copy.deepcopy(first.optimizer.state_dict()))
    second.statistics.load_all_groups(first.statistics.all_groups())
    assert first.average and second.average
    second.average.model.load_state_dict(first.average.model.state_dict())
    second.average.statistics.load_all_groups(first.average.statistics.all_groups())
    second.average.updates = first.average.updates
    left, more_metrics = updated(second, range(halfway, len(RATES)))
    same(trained(ALONE, None, **AVERAGE), (left, torch.cat([metrics, more_metrics])))


def recorded_and_not(world: World, kinds: list[dict[str, Any]]) -> list[str]:
    """The digest of each kind of training, which is the same with a recorder and with DDP."""
    digests = []
    for more in kinds:
        recorder = Operators()
        replayed = trained(world, recorder, **more)
        same(trained(world, None, **more), replayed)
        assert recorder.recordings == 2 and recorder.replays == 2 * (len(RATES) - WARM_UP)
        digests.append(digest(replayed))
    return digests


@pytest.mark.parametrize("size", [2, 4])
def test_ranks_replay_the_training_of_one(size: int) -> None:
    """2 ranks have two micro-batches each, 4 ranks have one."""
    torch.set_num_threads(1)
    kinds: list[dict[str, Any]] = [AVERAGE] if size == 4 else [{}, AVERAGE, FINE_TUNING]
    expected = [digest(trained(ALONE, None, **more)) for more in kinds]
    for digests in run_ranks(size, recorded_and_not, kinds):
        assert digests == expected


def test_other_sums_over_ranks_are_replayed() -> None:
    """On two ranks, where every order of summing gives the same bits."""
    compressed = {"reduction": "allreduce", "gradient_compression": "bf16"}
    one, other = run_ranks(2, recorded_and_not, [{"reduction": "allreduce"}, compressed])
    assert one == other and one[0] != one[1], "the compression must round"


def test_groups_that_span_ranks_are_refused() -> None:
    half = World(rank=0, size=8, local_rank=0, local_size=8, device=torch.device("cpu"))
    with pytest.raises(UserError, match="span ranks, here 2 of 8: start at most 4 processes"):
        opened(half, Operators())


def test_a_cpu_records_nothing() -> None:
    assert cuda_graphs(True, ALONE) is None


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch) -> CudaGraphs:
    """Recordings without a GPU: work just runs."""
    for name in ("Stream", "CUDAGraph", "graph"):
        monkeypatch.setattr(torch.cuda, name, lambda *_, **__: nullcontext())
    monkeypatch.delenv("TORCH_DIST_USE_NCCL2", raising=False)
    return CudaGraphs(torch.device("cuda", 0))


def fail(error: Exception) -> None:
    raise error


@pytest.mark.parametrize(
    ("ranks", "version", "environment", "older"),
    [
        (2, "2.15.0+cu132", {}, "TORCH_DIST_USE_NCCL2=0 in its environment (torch's older NCCL backend) or with "),
        (2, "2.15.0+cu132", {"TORCH_DIST_USE_NCCL2": "0"}, ""),
        (2, "2.10.0+cu128", {}, ""),
        (1, "2.15.0+cu132", {}, ""),
        (0, "2.15.0+cu132", {}, ""),
    ],
    ids=["torch 2.15", "older NCCL", "torch 2.10", "group of one", "no group"],
)
def test_what_cannot_be_recorded_is_one_sentence(
    ranks: int,
    version: str,
    environment: dict[str, str],
    older: str,
    emulated: CudaGraphs,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch, "__version__", TorchVersion(version))
    monkeypatch.setattr(dist, "is_initialized", lambda: ranks > 0)
    monkeypatch.setattr(dist, "get_world_size", lambda: ranks)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError) as refused:
        emulated.record(lambda: fail(RuntimeError("operation not permitted\nwhen stream is capturing")))
    assert str(refused.value) == (
        "the update could not be recorded as a CUDA graph (operation not permitted when stream is capturing): start the same "
        f"command again with {older}--cuda-graph false, which goes on from the last checkpoint"
    )


def test_memory_that_ends_while_recording_is_told_as_such(
    emulated: CudaGraphs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A benchmark leaves out what does not fit."""
    ends = torch.OutOfMemoryError("CUDA out of memory")
    with pytest.raises(torch.OutOfMemoryError):
        emulated.record(lambda: fail(ends))

    @contextmanager
    def invalidated(*_: object, **__: object) -> Iterator[None]:
        try:
            yield
        finally:
            raise RuntimeError("capture was invalidated")

    monkeypatch.setattr(torch.cuda, "graph", invalidated)
    with pytest.raises(torch.OutOfMemoryError):
        emulated.record(lambda: fail(ends))


GPU = World(rank=0, size=1, local_rank=0, local_size=1, device=torch.device("cuda", 0))


@pytest.mark.gpu
@pytest.mark.parametrize(
    "more",
    [{}, {"precision": "bf16"}, AVERAGE, {"precision": "bf16", "compile_crop": 16}],
    ids=["float32", "bf16", "smoothing and average", "compiled"],
)
def test_cuda_graphs_compute_the_same_bits(more: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    same(trained(GPU, None, **more), trained(GPU, CudaGraphs(GPU.device), **more))


@pytest.mark.gpu
@pytest.mark.parametrize("reduction", ["tree", "allreduce"])
def test_nccl_sums_between_cuda_graphs(reduction: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A group of one: NCCL allows no second rank on a GPU. The path is that of several ranks."""
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    expected = trained(GPU, None, reduction=reduction)
    store = dist.HashStore()
    dist.init_process_group("cpu:gloo,cuda:nccl", rank=0, world_size=1, store=store)
    try:
        step = opened(GPU, CudaGraphs(GPU.device), reduction=reduction)
        step.reducer.groups = [dist.new_group()]
        step.reducer.flat = FlatGradients(step.reducer.parameters, 1)
        step.reducer.flat.broadcast_parameters()
        same(expected, updated(step, range(len(RATES))))
        step.close()
    finally:
        dist.destroy_process_group()


@pytest.mark.gpu
def test_a_recording_has_a_stream_of_its_own() -> None:
    """torch hands out 32 streams in turn."""
    own = CudaGraphs(GPU.device).stream
    assert own.cuda_stream not in {torch.cuda.Stream(GPU.device).cuda_stream for _ in range(64)}


@pytest.mark.gpu
def test_work_that_waits_for_the_device_is_refused() -> None:
    recorder = CudaGraphs(torch.device("cuda", 0))
    values = torch.ones(3, device="cuda")
    with pytest.raises(UserError, match="could not be recorded as a CUDA graph"):
        recorder.record(lambda: values * values.sum().item())
