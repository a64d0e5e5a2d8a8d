"""What the tests of the energy report share: operations counted in plain torch, by layers of ones
on where the inputs are not 0, and a network to count in. No tests here.
"""

import copy

import pytest
import torch
from torch import nn

from cos_ext import QCFS


def report_of(network, *batches, **options):
    return network.energy_report(batches, progress=False, **options)


def layers_of(report):
    """The layers of a report by site."""
    return {layer.site: layer for layer in report.layers}


def inputs_and_kinds(report):
    """What each layer reads, and its MACs."""
    return {layer.site: (layer.input, layer.macs) for layer in report.layers}


def ones(layer):
    """The layer with weights 1 and no bias, in float64: of an indicator, it gives how many inputs
    each output adds.
    """
    layer = copy.deepcopy(layer).double()
    nn.init.ones_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def inputs_of(network, site, *inputs):
    """What a module of the network reads, [S, B, ...]."""
    seen = []
    hook = network.module.get_submodule(site).register_forward_pre_hook(
        lambda m, args: seen.append(args[0].clone())
    )
    network(*inputs)
    hook.remove()
    return seen[0].unflatten(0, (-1, len(inputs[0])))


def expected(network, site, *inputs):
    """Operations at each step and MACs of one pass, per image: every output of a layer of ones says
    what was added to it.
    """
    x, layer = inputs_of(network, site, *inputs), ones(network.module.get_submodule(site))
    steps = [layer((step != 0).double()).sum().item() / x.shape[1] for step in x]
    return pytest.approx(steps, rel=1e-12), layer(torch.ones_like(x[0, :1]).double()).sum().item()


def chain(layer, levels=3, channels=4):
    """Neurons on the image itself, the layer, neurons, and the output."""
    return nn.Sequential(nn.Identity(), QCFS(levels, 1.0), layer, QCFS(levels, 0.5))


class Net(nn.Module):
    """A static layer and a static shortcut, a residual block, an average pooling, a classifier."""

    def __init__(self):
        super().__init__()
        self.first, self.act1 = nn.Conv2d(2, 6, 3, padding=1), QCFS(4, 0.5)
        self.second, self.act2 = nn.Conv2d(6, 6, 3, padding=1), QCFS(4, 0.5)
        self.third, self.act3 = nn.Conv2d(6, 6, 3, padding=1), QCFS(4, 0.5)
        self.image = nn.Conv2d(2, 6, 1)
        self.pool, self.fc = nn.AvgPool2d(3), nn.Linear(24, 5)

    def forward(self, x):
        y = self.act1(self.first(x))
        z = self.act2(self.second(y) + self.image(x))
        z = self.act3(self.third(z) + y)
        return self.fc(self.pool(z).flatten(1))


def make_net():
    model = Net().eval()
    for layer in (model.second, model.third):
        layer.weight.data.mul_(3)
    return model
