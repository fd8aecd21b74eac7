"""LAMB against its formulas in NumPy float64; skipped updates; checkpoints."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.base.command import UserError
from pipeline.training.lamb import Lamb
from pipeline.training.optimizer import OptimizerConfig, build_optimizer, set_learning_rate

CONFIG = OptimizerConfig(kind="lamb", lr=0.01, weight_decay=0.02, decay_norm_and_bias=False)
SHAPES = {"convolution": (4, 3, 2, 2), "scale": (4,), "fc": (5, 4), "zeros": (3, 2)}


def weights(dtype: torch.dtype = torch.float64) -> nn.ParameterDict:
    random = np.random.default_rng(0)
    made = {name: torch.from_numpy(random.normal(size=shape)).to(dtype) for name, shape in SHAPES.items()}
    made["zeros"].zero_()
    return nn.ParameterDict(made)


def gradients(number: int, scale: float = 1.0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(100 + number)
    return {name: scale * random.normal(size=shape) for name, shape in SHAPES.items()}


def optimizer_of(model: nn.Module, config: OptimizerConfig = CONFIG) -> Lamb:
    optimizer = build_optimizer(model, config)
    assert isinstance(optimizer, Lamb)
    return optimizer


def updated(
    optimizer: Lamb, model: nn.ParameterDict, news: dict[str, np.ndarray], lr: float, skip: bool = False
) -> None:
    for name, gradient in news.items():
        model[name].grad = torch.from_numpy(gradient).to(model[name].dtype)
    set_learning_rate(optimizer, lr, CONFIG)
    optimizer.found_inf = torch.tensor(float(skip))
    optimizer.step()


def lr_of(number: int) -> float:
    return 0.01 * (1 - number / 10)


@pytest.mark.parametrize(("clip", "scale"), [(1.0, 1.0), (1.0, 0.01), (0.0, 3.0)], ids=["clipped", "small", "no limit"])
def test_updates_are_those_of_the_formulas(clip: float, scale: float) -> None:
    """Reference: timm's Lamb (bias correction, decay inside the step, no trust ratio without decay) written out."""
    model = weights()
    optimizer = optimizer_of(model, replace(CONFIG, lamb_clip_norm=clip))
    values = {name: value.detach().numpy().copy() for name, value in model.items()}
    first, second = ({name: np.zeros(shape) for name, shape in SHAPES.items()} for _ in range(2))
    for number in range(8):
        news = gradients(number, scale)
        updated(optimizer, model, news, lr_of(number))
        length = np.sqrt(sum((gradient**2).sum() for gradient in news.values()))
        shrink = max(1.0, length / clip) if clip else 1.0
        for name, gradient in news.items():
            gradient = gradient / shrink
            first[name] = 0.9 * first[name] + 0.1 * gradient
            second[name] = 0.999 * second[name] + 0.001 * gradient**2
            step = first[name] / (1 - 0.9 ** (number + 1))
            step = step / (np.sqrt(second[name] / (1 - 0.999 ** (number + 1))) + 1e-6)
            if name != "scale":
                step = step + 0.02 * values[name]
                lengths = np.linalg.norm(values[name]), np.linalg.norm(step)
                step = step * (lengths[0] / lengths[1] if min(lengths) > 0 else 1.0)
            values[name] = values[name] - lr_of(number) * step
            np.testing.assert_allclose(model[name].detach(), values[name], rtol=1e-10, atol=1e-13, err_msg=name)
    assert float(optimizer.updates) == 8 and [group["lr"] for group in optimizer.param_groups] == [lr_of(7)] * 2


@pytest.mark.parametrize("first", [True, False], ids=["the first", "a later one"])
def test_a_skipped_update_leaves_no_trace(first: bool) -> None:
    plain, skipping = weights(torch.float32), weights(torch.float32)
    one, other = optimizer_of(plain), optimizer_of(skipping)
    for number in range(3):
        if number == (0 if first else 2):
            poisoned = gradients(50)
            poisoned["fc"][0, 0] = np.nan
            poisoned["scale"][1] = np.inf
            updated(other, skipping, poisoned, 0.5, skip=True)
        updated(one, plain, gradients(number), lr_of(number))
        updated(other, skipping, gradients(number), lr_of(number))
    same(plain, one, skipping, other)


def test_a_loaded_state_goes_on_to_the_bit() -> None:
    whole = weights(torch.float32)
    optimizer = optimizer_of(whole)
    for number in range(3):
        updated(optimizer, whole, gradients(number), lr_of(number))
    again = copy.deepcopy(whole)
    restored = optimizer_of(again)
    restored.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for number in range(3, 6):
        updated(optimizer, whole, gradients(number), lr_of(number))
        updated(restored, again, gradients(number), lr_of(number))
    same(whole, optimizer, again, restored)


def same(model: nn.ParameterDict, optimizer: Lamb, other: nn.ParameterDict, of_other: Lamb) -> None:
    assert optimizer.updates == of_other.updates
    for name, value in model.items():
        assert torch.equal(value, other[name]), name
        for key in ("exp_avg", "exp_avg_sq"):
            assert torch.equal(optimizer.state[value][key], of_other.state[other[name]][key]), (name, key)


def test_impossible_values_are_refused() -> None:
    with pytest.raises(UserError, match=r"lamb_betas is \[0.9, 1.0\]"):
        OptimizerConfig(lamb_betas=(0.9, 1.0))
    with pytest.raises(UserError, match=r"lamb_eps must be above 0"):
        OptimizerConfig(lamb_eps=0.0)
