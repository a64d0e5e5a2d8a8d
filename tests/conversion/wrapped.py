"""Models whose forward is a given function, for the tests of single rules of conversion. No tests
here.
"""

import torch
from torch import nn

from cos_ext import QCFS, SpikingNetwork, convert


class Wrapped(nn.Module):
    """A model whose forward is the given function of (self, x), with some layers to use."""

    def __init__(self, forward, **layers):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.act = QCFS(4, 1.0)
        self.head = nn.Linear(4 * 36, 3)
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.function = forward

    def forward(self, x):
        return self.function(self, x)


IMAGES = torch.rand(2, 1, 6, 6)


def lossless(model, **options):
    """In float64, with rho = T = L = 4 and exact calibration, the network's rate is the model's
    output.
    """
    model = model.double().eval()
    with torch.no_grad():
        expected = model(IMAGES.double())
    network = convert(
        model, timesteps=4, rho=4, iterations=None, example_input=IMAGES.double(), **options
    )
    assert isinstance(network, SpikingNetwork)
    torch.testing.assert_close(network.rate(IMAGES.double()), expected, rtol=0, atol=1e-9)
    return network


class InPlace(nn.Module):
    """Linear layers and activations for the in-place cases; `function` is the forward."""

    def __init__(self, function, inplace=True):
        super().__init__()
        self.a, self.b, self.c, self.d, self.e = (nn.Linear(6, 6, bias=False) for _ in range(5))
        self.norm, self.identity = nn.BatchNorm1d(6), nn.Identity()
        self.q1, self.q2, self.relu = QCFS(4, 0.5), QCFS(4, 0.7), nn.ReLU(inplace=inplace)
        self.function = function

    def forward(self, x):
        return self.function(self, x)
