"""A network with weights that no training has seen, to compare a trained one with."""

import torch
from torch import nn


@torch.no_grad()
def draw_weights(network: nn.Module, seed: int = 0) -> None:
    """Draw every weight of a network anew, in place: matrices and kernels from N(0, 1 / fan-in), the size at which
    signals keep their own (LeCun et al. 1998); of vectors, biases become 0 and scales 1. Layers that start at zero in
    training, as the last one of a block often does, are drawn as well, or the network would pass its input on. What
    batch normalisation has seen in training is forgotten."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(network.named_parameters()):
        if parameter.ndim >= 2:
            fan_in = parameter[0].numel()
            drawn = torch.randn(parameter.shape, generator=generator) / fan_in**0.5
            parameter.copy_(drawn.to(parameter.dtype))
        elif parameter.is_floating_point():
            parameter.fill_(0 if name.endswith("bias") else 1)
    for module in network.modules():
        if callable(reset := getattr(module, "reset_running_stats", None)):
            reset()
