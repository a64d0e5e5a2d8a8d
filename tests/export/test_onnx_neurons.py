"""Neurons of every kind as ONNX, run in onnxruntime: spikes EQUAL to the kernels'."""

import pytest
import torch
from every_neuron import FAMILIES, T, arguments, currents, node_of
from torch import nn

from cos_ext import IFNode
from cos_ext.export.onnx_file import model_of
from cos_ext.export.plain import PlainNeurons

pytest.importorskip("onnxscript", reason="onnx files need onnxscript (extra onnx)")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs onnxruntime (extra onnx)")


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
        residual = currents(batch)
        found = run(model, x=x, residual=residual)
        for node, settings, spikes in zip(nodes, FAMILIES[family], found):
            with torch.no_grad():
                expected = node(*arguments(node, x, residual))
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
