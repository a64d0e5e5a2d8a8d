"""Networks under rival calibrations in plain torch, and a small model for them. No tests here."""

import copy

import torch
from torch import nn

RIVALS = ("srp", "parallel", "light", "none")


# Networks
def images_of(test_set, count, start=0):
    return test_set.normalise(test_set.images[start : start + count])


def plain_network(network, x, emitted):
    """The network's layers, each replaced by `emitted(site, theta, v_init, x_seq)` in plain torch;
    [T, B, classes].
    """
    plain = copy.deepcopy(network)
    plain.calibration = "none"
    steps = plain._steps
    for site, node in plain.nodes().items():

        def forward(x, site=site, node=node):
            x_seq = x.expand(steps, *x.shape) if node.static_input else x.unflatten(0, (steps, -1))
            return emitted(site, node.v_threshold, node.v_init, x_seq).flatten(0, 1)

        node.forward = forward
    return plain(x)


def in_double(shipped_model):
    return copy.deepcopy(shipped_model).double()


def small(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Conv2d(3, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 4)
    ).eval()


THRESHOLDS = {"1": torch.tensor([1.0, 0.5, 0.75]).view(3, 1, 1), "3": 0.5}
