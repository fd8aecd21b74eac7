"""torch.compile in the training step: the same trajectory as without, the same bits on any number of ranks."""

from __future__ import annotations

import copy
import hashlib
import os
import shutil
from collections.abc import Iterator
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch._dynamo.backends.registry import lookup_backend
from torch.nn.parallel import DistributedDataParallel

import pipeline.training.step
from pipeline.models.resnet import Shortcut, build
from pipeline.process.world import World
from pipeline.training import compiling
from pipeline.training.batchnorm import plan_groups
from pipeline.training.compiling import CompileBy, compiler_threads
from pipeline.training.reduction import GradientReducer
from pipeline.training.step import StepConfig, TrainingStep
from tests.ranks import ALONE, run_ranks

BATCH, GROUP, STEPS, SIDE = 16, 4, 4, 8
COMPILER = shutil.which("g++") or shutil.which("clang++")
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler, which torch.compile needs on a CPU")


def train(
    world: World, compiled: bool, group: int = GROUP, shortcut: Shortcut = "default", by: CompileBy = "stages"
) -> tuple[str | None, str, np.ndarray]:
    """(why it was not compiled, SHA-256 of the weights, losses) after STEPS updates of a small net, in float32."""
    plan = plan_groups(BATCH, group, world.rank, world.size)
    step = TrainingStep(
        build("resnet8", classes=5, shortcut=shortcut, generator=torch.Generator().manual_seed(0)),
        StepConfig(batch=BATCH, reduction="tree", compile_crop=SIDE if compiled else None, compile_by=by),
        plan,
        world,
    )
    assert all(parameter.grad is None for parameter in step.model.parameters())
    generator = torch.Generator().manual_seed(1)
    for _ in range(STEPS):
        images = torch.randn(BATCH, SIDE, SIDE, 3, generator=generator)
        labels = torch.randint(5, (BATCH,), generator=generator)
        step.step(images[plan.rows], labels[plan.rows], 0.05)
    step.statistics.average_into_model(step.statistics.all_groups(), STEPS)
    values = [value.contiguous().numpy().tobytes() for value in step.model.state_dict().values()]
    losses = step.take_metrics()[:, 0]
    step.close()
    return step.not_compiled, hashlib.sha256(b"".join(values)).hexdigest(), losses


def alone(*arguments: Any) -> tuple[str | None, str, np.ndarray]:
    torch.set_num_threads(1)
    torch._dynamo.reset()
    return train(ALONE, *arguments)


@pytest.mark.costly("torch.compile imports itself and traces the net before it misses the compiler")
def test_where_compiling_fails_training_goes_on_without_and_says_why(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # nothing was compiled before
    with torch._inductor.config.patch({"cpp.cxx": ("/nonexistent/c++",)}):
        reason, digest, _ = alone(True)
    assert reason is not None and reason.startswith("rank 0:") and "c++" in reason.lower()
    assert digest == alone(False)[1]


@needs_compiler
@pytest.mark.slow  # compiles for half a minute
@pytest.mark.parametrize("by", ["stages", "net"])
def test_compiled_updates_are_those_of_the_eager_net_and_of_any_number_of_ranks(by: CompileBy) -> None:
    reason, digest, losses = alone(True, GROUP, "default", by)
    assert reason is None
    _, eager_digest, eager_losses = alone(False)
    assert digest != eager_digest  # it was compiled
    np.testing.assert_allclose(losses, eager_losses, rtol=1e-4)
    for ranks in (2, 4):
        assert {found for _, found, _ in run_ranks(ranks, train, True, GROUP, "default", by, timeout=400)} == {digest}


@needs_compiler
@pytest.mark.slow  # compiles for half a minute
@pytest.mark.parametrize("shortcut", ["A", "B"])  # B: two normalizations that do not wait for one another
def test_groups_that_span_ranks_exchange_their_statistics_inside_the_compiled_net(shortcut: Shortcut) -> None:
    reasons, digests, losses = zip(*run_ranks(4, train, True, BATCH // 2, shortcut, timeout=400), strict=True)
    assert set(reasons) == {None} and len(set(digests)) == 1
    _, eager_digest, eager_losses = run_ranks(4, train, False, BATCH // 2, shortcut)[0]
    assert digests[0] != eager_digest  # it was compiled
    np.testing.assert_allclose(losses[0], eager_losses, rtol=1e-4)
    _, _, alone_losses = alone(False, BATCH // 2, shortcut)
    np.testing.assert_allclose(losses[0], alone_losses, rtol=1e-4)


@needs_compiler
@pytest.mark.slow  # compiles twice
def test_a_rank_that_cannot_compile_is_no_trap_for_the_others(tmp_path: Path) -> None:
    """It never reaches the collectives that the others' compiled nets would wait in."""
    reasons, digests, _ = zip(*run_ranks(2, one_cannot, str(tmp_path), timeout=400), strict=True)
    assert len(set(reasons)) == 1 and "rank 1:" in reasons[0]
    assert set(digests) == {run_ranks(2, train, False, BATCH)[0][1]}


def one_cannot(world: World, cache: str) -> tuple[str | None, str, np.ndarray]:
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache  # nothing was compiled before
    compiler = "/nonexistent/c++" if world.rank == 1 else COMPILER or "c++"
    with torch._inductor.config.patch({"cpp.cxx": (compiler,)}):
        return train(world, True, BATCH)


# ---- what is compiled, and when: with a backend that computes as PyTorch does and is quick

STAGES = 3  # of resnet8


class Graphs:
    """Stands for torch.compile's backend: counts the graphs; the one with the number `fails_at` cannot be compiled."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.count, self.fails_at, self.compile = 0, fails_at, torch.compile

    def __call__(self, function: Any, **more: Any) -> Any:
        return self.compile(function, backend=self.backend, **more)

    def backend(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        self.count += 1
        if self.count == self.fails_at:
            raise RuntimeError(f"graph {self.count} has no kernels")
        return lookup_backend("aot_eager")(graph, inputs)


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Graphs]:
    torch.set_num_threads(1)
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", counted := Graphs())
    yield counted
    torch._dynamo.reset()


def step_of(by: CompileBy, **more: Any) -> TrainingStep:
    net = build("resnet8", classes=5, generator=torch.Generator().manual_seed(0))
    config = StepConfig(**{"batch": 8, "compile_crop": SIDE, "compile_by": by, **more})
    return TrainingStep(net, config, plan_groups(8, GROUP, 0, 1), ALONE)


def mini_batch(side: int = SIDE, dtype: torch.dtype = torch.float32, rows: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(rows, side, side, 3, generator=generator)
    return images.to(dtype), torch.randint(5, (rows,), generator=generator)


BY = pytest.mark.parametrize(("by", "parts"), [("stages", STAGES), ("net", 1)])


@BY
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_net_is_compiled_once_for_the_images_that_the_loader_gives(
    by: CompileBy, parts: int, dtype: torch.dtype, graphs: Graphs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline.training.step, "images_dtype", lambda precision, device: dtype)  # bfloat16: a GPU's
    step = step_of(by, precision="bf16")
    assert step.not_compiled is None and graphs.count == parts
    for _ in range(2):
        step.step(*mini_batch(dtype=step.images_dtype), 0.1)
    assert graphs.count == parts
    step.close()


@pytest.mark.costly("compiles nine graphs")
@BY
def test_crop_sizes_are_compiled_up_to_the_limit(
    by: CompileBy, parts: int, graphs: Graphs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiling, "SHAPES_AT_MOST", 3)
    step = step_of(by)
    for side in (SIDE, 12, 16, SIDE, 12):
        step.step(*mini_batch(side), 0.1)
    assert graphs.count == 3 * parts
    step.step(*mini_batch(20), 0.1)
    assert graphs.count == 3 * parts and np.isfinite(step.take_metrics()[:, 0]).all()
    step.close()


@BY
def test_a_compiled_net_keeps_its_names_and_is_not_compiled_for_anything_but_updates(
    by: CompileBy, parts: int, graphs: Graphs
) -> None:
    step = step_of(by)
    assert list(step.model.state_dict()) == list(build("resnet8", classes=5).state_dict())
    step.batch_statistics(mini_batch(12)[0])
    inference = copy.deepcopy(step.model)  # what evaluations fold and run
    inference(torch.zeros(2, 3, 20, 20))
    with torch.compiler.set_stance("force_eager"):
        step.model(torch.zeros(2, 3, 24, 24))
    assert graphs.count == parts
    step.model(torch.zeros(2, 3, 24, 24))  # only then
    assert graphs.count == 2 * parts
    step.close()


@pytest.mark.parametrize("fails_at", [1, 2, STAGES])
def test_a_stage_that_cannot_be_compiled_leaves_the_whole_net_uncompiled(
    fails_at: int, graphs: Graphs, monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs.fails_at = fails_at
    step = step_of("stages")
    assert step.not_compiled is not None and f"graph {fails_at} has no kernels" in step.not_compiled
    whole = TrainingStep(copy.deepcopy(step.model), StepConfig(batch=8), plan_groups(8, GROUP, 0, 1), ALONE)
    for one in (step, whole):
        one.step(*mini_batch(), 0.1)
    for ours, theirs in zip(step.model.state_dict().values(), whole.model.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)
    step.close()
    whole.close()


@pytest.mark.costly("two worlds of two ranks, of which one traces a net")
def test_a_rank_whose_second_stage_cannot_be_compiled_meets_the_others_as_often_as_they_meet_it() -> None:
    """Groups span the ranks: the others' forward passes wait for its statistics, in each of their normalizations."""
    reasons, digests, _ = zip(*run_ranks(2, second_stage_fails, timeout=60), strict=True)
    assert len(set(reasons)) == 1 and "rank 1:" in reasons[0] and "graph 2 has no kernels" in reasons[0]
    assert set(digests) == {run_ranks(2, train, False, BATCH)[0][1]}


def second_stage_fails(world: World) -> tuple[str | None, str, np.ndarray]:
    torch.compile = Graphs(fails_at=2 if world.rank == 1 else None)  # type: ignore[assignment]
    return train(world, True, BATCH)


@pytest.mark.costly("two ranks compile a net, forward and backward")
@BY
def test_gradients_of_late_stages_travel_before_the_backward_pass_of_the_first(by: CompileBy, parts: int) -> None:
    for events in run_ranks(2, order_of_events, by, timeout=60):
        assert events.count("a compiled backward begins") == parts and events.count("a bucket is sent") > 3
        last = max(at for at, event in enumerate(events) if event == "a compiled backward begins")
        assert ("a bucket is sent" in events[:last]) == (by == "stages"), events


class SmallBuckets(DistributedDataParallel):
    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more, bucket_cap_mb=0.01)  # type: ignore[arg-type] # 2,600 weights, a tenth of a stage


def order_of_events(world: World, by: CompileBy) -> list[str]:
    """What happens in the backward pass of the third update, in order; the first ones find out the order of buckets."""
    events: list[str] = []
    send = GradientReducer.hook

    @wraps(send)
    def noting(self: GradientReducer, state: object, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
        events.append("a bucket is sent")
        return send(self, state, bucket)

    torch.compile = Graphs()  # type: ignore[assignment]
    GradientReducer.hook = noting  # type: ignore[method-assign]
    pipeline.training.step.DistributedDataParallel = SmallBuckets  # type: ignore[attr-defined]
    step = TrainingStep(
        build("resnet8", classes=5, generator=torch.Generator().manual_seed(0)),
        StepConfig(batch=8, compile_crop=SIDE, compile_by=by),
        plan_groups(8, GROUP, world.rank, world.size),
        world,
    )

    def note_beginnings(module: object, inputs: object, scores: Tensor) -> None:
        for node in compiled_nodes(scores.grad_fn):
            node.register_prehook(lambda gradients: events.append("a compiled backward begins"))

    step.network.register_forward_hook(note_beginnings)
    images, labels = mini_batch(rows=8 // world.size)
    for _ in range(3):
        events.clear()
        step.step(images, labels, 0.1)
    step.close()
    return events


def compiled_nodes(node: Any) -> set[Any]:
    seen: set[Any] = set()
    waiting = [node]
    while waiting:
        if (one := waiting.pop()) is not None and one not in seen:
            seen.add(one)
            waiting += [before for before, _ in one.next_functions]
    return {one for one in seen if "CompiledFunction" in one.name()}


# ---- how many compilers


@pytest.mark.parametrize(
    ("device", "cores", "threads"), [("cuda", 8, 8), ("cuda", 1, 1), ("cuda", 192, 32), ("cpu", 64, 1)]
)
def test_a_rank_with_a_gpu_compiles_on_its_cores(device: str, cores: int, threads: int) -> None:
    world = World(rank=0, size=8, local_rank=0, local_size=8, device=torch.device(device), cores=cores)
    assert compiler_threads(world) == threads


def test_a_users_number_of_compilers_stands(graphs: Graphs, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch._inductor.config as inductor

    monkeypatch.setattr(inductor, "compile_threads", 7)
    monkeypatch.setenv("TORCHINDUCTOR_COMPILE_THREADS", "7")
    step_of("net").close()
    assert inductor.compile_threads == 7
    monkeypatch.delenv("TORCHINDUCTOR_COMPILE_THREADS")
    step_of("net").close()
    assert inductor.compile_threads == 1  # a CPU's
