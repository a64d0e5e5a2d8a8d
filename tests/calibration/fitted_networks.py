"""A network of exact sums, in which the split of the data cannot change a current, and its fit. No
tests here.
"""

import torch
from torch import nn

from cos_ext import QCFS, convert, fit_v_init

RHO = 4


class Small(nn.Module):
    """A static layer, a residual branch, a max pooling that alone reads its neurons, one layer
    after a Linear.

    Weights and images are multiples of 1/64: every sum is exact, so that the split into batches
    cannot change a current.
    """

    def __init__(self):
        super().__init__()
        self.first, self.act1 = nn.Conv2d(2, 6, 3, padding=1), QCFS(4, 0.5)
        self.second, self.act2 = nn.Conv2d(6, 6, 3, padding=1), QCFS(4, 0.5)
        self.third, self.act3 = nn.Conv2d(6, 4, 1), QCFS(4, 0.5)
        self.pool = nn.MaxPool2d(2)
        self.hidden, self.act4 = nn.Linear(36, 12), QCFS(4, 0.5)
        self.last = nn.Linear(12, 3)

    def forward(self, x):
        x = self.act1(self.first(x))
        x = self.pool(self.act3(self.third(self.act2(self.second(x)) + x)))
        return self.last(self.act4(self.hidden(x.flatten(1))))


def small(kind=Small):
    torch.manual_seed(1)
    model = kind().double().eval()
    for layer, gain in (
        (model.first, 2),
        (model.second, 6),
        (model.third, 6),
        (model.hidden, 8),
        (model.last, 1),
    ):
        layer.weight.data.mul_(gain * 64).round_().div_(64)
        layer.bias.data.mul_(64).round_().div_(64)
    return model


def small_network(**options):
    return convert(small(), **{"timesteps": RHO, "rho": RHO, "max_pool": "before", **options})


def fit(network, batches, **options):
    return fit_v_init(network, batches, progress=False, **options)


def unchanged(network, before):
    now = network.state_dict()
    assert list(now) == list(before) and all(torch.equal(now[name], before[name]) for name in now)
    assert network.static_calibration is None and network.timesteps == RHO
    for node in network.nodes().values():
        assert (
            not node._forward_pre_hooks
            and node.timesteps == max(RHO, node.rho)
            and node.v_init.shape == ()
        )
