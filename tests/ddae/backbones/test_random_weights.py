"""Networks with random weights."""

import pytest
import torch
from torch import nn

from ddae.backbones.random_weights import draw_weights


def test_nothing_of_the_training_is_left():
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 100))
    with torch.no_grad():
        for tensor in network.state_dict().values():
            tensor.fill_(7)
    draw_weights(network)
    assert not any((tensor == 7).any() for tensor in network.state_dict().values())
    assert torch.equal(network[1].running_mean, torch.zeros(8)) and torch.equal(network[1].running_var, torch.ones(8))
    assert float(network[2].weight.detach().std()) == pytest.approx(8**-0.5, rel=0.1)
