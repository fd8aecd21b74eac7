"""Which normalization directly follows which convolution, as the modules of a net declare it.

A module class that holds both declares its pairs by its children's names: conv_norm_pairs = (("conv1", "bn1"), ...).
A pair promises that the norm's input is the convolution's output and that nothing else reads that output. Evaluation
folds exactly these norms, so a class must not declare a pair for the look of its names: in a pre-activation block bn1
comes before conv1.
"""

from __future__ import annotations

from torch import nn

Pairs = tuple[tuple[str, str], ...]


def conv_norm_pairs(net: nn.Module) -> dict[str, str]:
    """Convolution -> the norm that directly follows it, by their names in `net`, in the order of its modules.

    Asserts that every module with batch normalization of its own declares its pairs. For a net of other code, whoever
    brings it declares them: `()` on each of its modules leaves it as it is.
    """
    pairs: dict[str, str] = {}
    for name, module in net.named_modules():
        declared: Pairs | None = getattr(module, "conv_norm_pairs", None)
        has_norm = any(isinstance(child, nn.BatchNorm2d) for child in module.children())
        assert declared is not None or not has_norm, (
            f"{type(module).__name__} has batch normalization, so its class must declare conv_norm_pairs, "
            "() where no norm directly follows a convolution"
        )
        prefix = f"{name}." if name else ""
        pairs |= {prefix + conv: prefix + norm for conv, norm in declared or ()}
    return pairs


def response_layers(net: nn.Module) -> dict[str, nn.Module]:
    """The 3x3 convolutions by name -> the module whose output is the layer's response (section 4.2).

    A response is taken after BN and before anything else: at the norm that directly follows the convolution, or at the
    convolution itself where none does. In a bottleneck the middle layer alone is 3x3; the 7x7 of the ImageNet nets and
    projections are not. The first layer of the CIFAR nets is.
    """
    pairs, modules = conv_norm_pairs(net), dict(net.named_modules())
    layers = {
        name: modules[pairs.get(name, name)]
        for name, module in modules.items()
        if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3)
    }
    assert layers, f"{type(net).__name__} has no 3x3 layers"
    return layers
