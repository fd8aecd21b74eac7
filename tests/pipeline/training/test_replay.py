"""Recorded updates: replaying a recording is the training that would have been, to the bit.

The GPU test records CUDA graphs. The others record the operators of the same update on the CPU, and replay them with the
tensors and numbers that they had then: a graph's terms, under which nothing that the host decides is decided again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pipeline.base.command import UserError
from pipeline.models.resnet import build
from pipeline.process.world import World
from pipeline.training.batchnorm import plan_groups
from pipeline.training.replay import WARM_UP, CudaGraphs, Recorder, cuda_graphs
from pipeline.training.step import StepConfig, TrainingStep
from tests.ranks import ALONE

BATCH, GROUP, CLASSES = 16, 4, 5
RATES = [0.1] * 6 + [0.01] * 6 + [0.1]  # the last returns to a rate that was recorded once
POISONED = 4  # the update whose images hold a value that is not a number; it is a replayed one


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


def trained(device: str, recorder: Recorder | None, **more: Any) -> tuple[dict[str, Tensor], Tensor]:
    """(every tensor that the updates at RATES left, metrics [updates, 3])."""
    where = torch.device(device)
    world = World(rank=0, size=1, local_rank=0, local_size=1, device=where)
    generator = torch.Generator().manual_seed(1)
    step = TrainingStep(
        build("resnet8", classes=CLASSES, generator=torch.Generator().manual_seed(0)),
        StepConfig(**{"batch": BATCH, "reduction": "tree", **more}),
        plan_groups(BATCH, GROUP, 0, 1),
        world,
        recorder,
    )
    for number, lr in enumerate(RATES):
        images = torch.randn(BATCH, 16, 16, 3, generator=generator)
        labels = torch.randint(CLASSES, (BATCH,), generator=generator)
        if number == POISONED:
            images[0, 0, 0, 0] = float("nan")
        step.step(images.to(where), labels.to(where), lr)
    left = {f"model.{name}": value for name, value in step.model.state_dict().items()}
    momenta = [state["momentum_buffer"] for state in step.optimizer.state.values()]
    left |= {f"momentum.{number}": value for number, value in enumerate(momenta)}
    left["statistics"] = step.statistics.rows
    if step.average:
        left |= {f"average.{name}": value for name, value in step.average.model.state_dict().items()}
        left["average statistics"] = step.average.statistics.rows
        assert step.average.updates == len(RATES)
    left = {name: value.detach().cpu().clone() for name, value in left.items()}
    metrics = torch.from_numpy(step.take_metrics())
    step.close()
    return left, metrics


def same(one: tuple[dict[str, Tensor], Tensor], other: tuple[dict[str, Tensor], Tensor]) -> None:
    for name, value in one[0].items():
        assert torch.equal(value, other[0][name]), name
    assert torch.equal(one[1].nan_to_num(-1), other[1].nan_to_num(-1))


@pytest.mark.parametrize(
    "more",
    [{}, {"precision": "bf16"}, {"label_smoothing": 0.1, "ema_decay": 0.05}],  # 0.05: below (1 + t) / (10 + t) at once
    ids=["float32", "bf16", "smoothing and average"],
)
def test_a_replayed_training_is_the_training(more: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    recorder = Operators()
    replayed = trained("cpu", recorder, **more)
    same(trained("cpu", None, **more), replayed)
    assert recorder.recordings == 2, "one at each rate that stayed"
    assert recorder.replays == sum(RATES.count(rate) - WARM_UP for rate in (0.1, 0.01)) - 1
    assert replayed[1][:, 2].tolist() == [float(number != POISONED) for number in range(len(RATES))]


def test_a_decay_that_still_grows_is_not_replayed() -> None:
    """The average's decay is another number at each of the first updates: an update with the last one's would be wrong."""
    torch.set_num_threads(1)
    recorder = Operators()
    same(trained("cpu", None, ema_decay=0.9), trained("cpu", recorder, ema_decay=0.9))
    assert recorder.recordings == 0


def test_only_a_lone_gpu_records() -> None:
    several = World(rank=0, size=2, local_rank=0, local_size=2, device=torch.device("cuda", 0))
    assert cuda_graphs(True, ALONE) is None and cuda_graphs(True, several) is None


@pytest.mark.gpu
@pytest.mark.parametrize(
    "more",
    [{}, {"precision": "bf16"}, {"label_smoothing": 0.1, "ema_decay": 0.05}, {"precision": "bf16", "compile_crop": 16}],
    ids=["float32", "bf16", "smoothing and average", "compiled"],
)
def test_cuda_graphs_compute_the_same_bits(more: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    same(trained("cuda", None, **more), trained("cuda", CudaGraphs(torch.device("cuda", 0)), **more))


@pytest.mark.gpu
def test_work_that_waits_for_the_device_is_refused() -> None:
    recorder = CudaGraphs(torch.device("cuda", 0))
    values = torch.ones(3, device="cuda")
    with pytest.raises(UserError, match="could not be recorded as a CUDA graph"):
        recorder.record(lambda: values * values.sum().item())
