"""A net's weights are a function of the seed alone, and distributed as section 3.4 says."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.models.resnet import build
from tests.helpers import ROOT


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def checksum(net: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, value in net.state_dict().items():
        digest.update(name.encode() + value.numpy().tobytes())
    return digest.hexdigest()


def test_same_seed_same_weights() -> None:
    state = torch.get_rng_state()
    first = checksum(build("resnet20", classes=10, generator=generator(5)))
    assert torch.equal(torch.get_rng_state(), state), "the global generator was used"
    torch.manual_seed(77)
    assert checksum(build("resnet20", classes=10, generator=generator(5))) == first
    assert checksum(build("resnet20", classes=10, generator=generator(6))) != first
    assert checksum(build("resnet20", classes=10)) == checksum(build("resnet20", classes=10, generator=generator(0)))
    # plain nets and option A start from the same weights: Fig. 4 compares the shortcuts alone
    assert checksum(build("plain20", classes=10, generator=generator(5))) == first


def test_weights_do_not_depend_on_vector_instructions() -> None:
    """float32 draws do: measured on the same machine with and without AVX2."""
    code = (
        "import hashlib, torch; from pipeline.models.resnet import build; d = hashlib.sha256();"
        "net = build('resnet20', classes=10, generator=torch.Generator().manual_seed(5));"
        "[d.update(k.encode() + v.numpy().tobytes()) for k, v in net.state_dict().items()];"
        "print(torch.backends.cpu.get_cpu_capability(), d.hexdigest())"
    )
    environment = os.environ | {"ATEN_CPU_CAPABILITY": "default", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["DEFAULT", checksum(build("resnet20", classes=10, generator=generator(5)))]


@pytest.mark.parametrize("arch", ["resnet34", "resnet50"])
def test_initial_distributions(arch: str) -> None:
    net = build(arch, classes=1000, shortcut="B", generator=generator(0))
    for name, module in net.named_modules():
        if isinstance(module, nn.Conv2d):
            weight = module.weight.detach().double()
            std = np.sqrt(2 / (weight.shape[0] * weight.shape[2] * weight.shape[3]))  # n = k^2 d, d filters
            margin = 5 / np.sqrt(weight.numel())  # five standard errors of the mean, seven of the deviation
            assert abs(weight.mean()) < margin * std, name
            assert abs(weight.std() / std - 1) < margin, name
            assert weight.abs().max() > 3.5 * std, f"{name} is not normal"
        elif isinstance(module, nn.BatchNorm2d):
            assert module.eps == 1e-5
            assert (module.weight == 1).all() and (module.bias == 0).all()
            assert module.running_mean is not None and module.running_var is not None
            assert (module.running_mean == 0).all() and (module.running_var == 1).all()
            assert module.num_batches_tracked == 0
    assert abs(net.fc.weight.std() / 0.01 - 1) < 0.01 and (net.fc.bias == 0).all()
