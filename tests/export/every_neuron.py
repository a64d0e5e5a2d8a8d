"""Nodes with every kind of setting, and currents for them. No tests here."""

import torch

from cos_ext import IFNode, Neuron

T, CHANNELS = 3, 3
CALIBRATED = {"rho": 3, "iterations": 1}
SIGNED = Neuron(levels=(-1, 1), lower=0.5)
FAMILIES = {
    "plain": [{}, {"v_reset": 0.1}, {"v_init": 0.0}, {"static_input": True}],
    "calibrated": [
        CALIBRATED,
        {"rho": 2, "iterations": 2},
        {"rho": 3, "iterations": None},
        {**CALIBRATED, "emission": "even"},
        {"rho": 3, "emission": "front", "static_input": True},
    ],
    "rivals": [
        {"rho": 2, "calibration": "srp"},
        {"rho": 2, "calibration": "parallel"},
        {"calibration": "light"},
    ],
    "levels": [
        {"neuron": Neuron(levels=(0, 4), upper=0.5)},
        {"neuron": Neuron(levels=(-1, 1), lower=0.0, strict=False, count=(0, 3))},
        {"neuron": SIGNED, "v_reset": 0.0},
        {"neuron": SIGNED, "rho": 2, "iterations": 2},
        {"neuron": SIGNED, "rho": 3, "emission": "even"},
        {"neuron": Neuron(levels=(0, 2)), "rho": 2, "emission": "block"},
    ],
    "values": [
        {"neuron": Neuron(emitted=torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1), leak=0.9)},
        {"neuron": Neuron(step_bias=torch.linspace(-1, 1, T * CHANNELS).view(T, CHANNELS))},
        {"neuron": Neuron(step_scale=(2.0, 1.0, 0.5), silent=1)},
    ],
    "ladders": [
        {"neuron": Neuron(ladder=3, ratio=0.75, gated=True)},
        {"neuron": Neuron(levels=(-1, 1), lower=1.0, prediction=True)},
    ],
}


def currents(batch):
    """Random ones, and multiples of θ / 4, which meet thresholds exactly; and some that are huge,
    infinite or NaN.
    """
    x = torch.randn(T, batch, CHANNELS, 4, 5)
    x[:, :, 1] = (x[:, :, 1] * 8).round() / 16
    x[:, :, 2] *= torch.tensor([1e-6, 1.0, 30.0, 1e20]).view(4, 1)
    x[1, 0, 0, 0, :3] = torch.tensor([torch.inf, -torch.inf, torch.nan])
    return x.flatten(0, 1)


def node_of(**settings):
    theta = torch.tensor([0.3, 0.25, 1.7]).view(CHANNELS, 1, 1)
    node = IFNode(theta, timesteps=T, **settings).eval()
    if settings.get("calibration") == "light":
        node.bias = torch.linspace(-0.1, 0.2, CHANNELS).view(CHANNELS, 1, 1)
    elif settings.get("calibration") not in ("srp", "parallel"):
        node.in_scale = torch.linspace(0.7, 1.3, CHANNELS).view(CHANNELS, 1, 1)
        node.in_bias = torch.linspace(-0.1, 0.1, CHANNELS).view(CHANNELS, 1, 1)
    return node


def arguments(node, x, residual):
    """What a node is called with: the first step alone where its input is static."""
    return (x.unflatten(0, (T, -1))[0],) if node.static_input else (x, residual)
