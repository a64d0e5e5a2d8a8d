"""Neurons of every kind as ONNX, run in onnxruntime: spikes EQUAL to the kernels'."""

import pytest
import torch
from torch import nn

from cos_ext import IFNode, Neuron
from cos_ext.export.onnx_file import model_of
from cos_ext.export.plain import PlainNeurons

pytest.importorskip("onnxscript", reason="onnx files need onnxscript (extra onnx)")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs onnxruntime (extra onnx)")

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


class Several(nn.Module):
    """Several nodes in a row of results; those with static input read the first step."""

    def __init__(self, nodes):
        super().__init__()
        self.nodes = nn.ModuleList(PlainNeurons(node) for node in nodes)
        self.static = [node.static_input for node in nodes]

    def forward(self, *inputs):
        x, residual = inputs
        first = x.unflatten(0, (T, -1))[0]
        given = [(first,) if static else (x, residual) for static in self.static]
        return torch.stack([node(*each) for node, each in zip(self.nodes, given)])


class Chain(nn.Sequential):
    """Exported modules take any number of inputs."""

    def forward(self, *inputs):
        return super().forward(*inputs)


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


def run(model, **inputs):
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (result,) = session.run(None, {name: x.numpy() for name, x in inputs.items()})
    return torch.from_numpy(result)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_spikes_are_equal(family):
    nodes = [node_of(**settings) for settings in FAMILIES[family]]
    x = currents(2)
    model = model_of(Several(nodes), (x, x.roll(1)), ("x", "residual"), steps=T)
    for batch in (1, 5):
        x = currents(batch)
        residual = torch.randn_like(x)
        found = run(model, x=x, residual=residual)
        for node, settings, spikes in zip(nodes, FAMILIES[family], found):
            first = x.unflatten(0, (T, -1))[0]
            given = (first,) if node.static_input else (x, residual)
            with torch.no_grad():
                expected = node(*given)
            assert expected.count_nonzero() > 10, settings
            # NaN and huge currents too: a GPU is not asked what it makes of these.
            assert torch.equal(spikes.nan_to_num(-7), expected.nan_to_num(-7)), settings


def test_neurons_of_one_kind_are_one_function():
    a, b = (PlainNeurons(IFNode(theta, timesteps=2)) for theta in (0.5, 0.7))
    other = PlainNeurons(IFNode(0.5, timesteps=2, v_reset=0.0))
    x = torch.rand(4, 3)
    model = model_of(Chain(a, b, other), (x,), ("x",), steps=2)
    assert [f.name for f in model.functions] == ["Neurons1", "Neurons2"]
    calls = [node.op_type for node in model.graph.node if node.domain == "cos_ext"]
    assert calls == ["Neurons1", "Neurons1", "Neurons2"]
    domains = {node.domain for function in model.functions for node in function.node}
    assert domains == {""} and {node.domain for node in model.graph.node} <= {"", "cos_ext"}
    for batch in (1, 3):
        x = torch.rand(2 * batch, 3)
        nodes = nn.Sequential(
            IFNode(0.5, timesteps=2), IFNode(0.7, timesteps=2), IFNode(0.5, timesteps=2, v_reset=0)
        )
        assert torch.equal(run(model, x=x), nodes(x))
