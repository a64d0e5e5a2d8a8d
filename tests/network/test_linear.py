"""Linear layers of spikes in a network, by events beside dense."""

import copy
import pickle

import pytest
import torch
from test_convolution import chosen, ways
from test_layout import exact
from torch import nn

import cos_ext
from cos_ext import QCFS, convert
from cos_ext.network.convolution import SpikeLinear


class Perceptron(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.act1 = nn.Linear(12, 100), QCFS(4, 1.0)
        self.wide, self.act2 = nn.Linear(100, 70, bias=False), QCFS(4, 1.0)
        self.last = nn.Linear(70, 3)

    def forward(self, x):
        return self.last(self.act2(self.wide(self.act1(self.first(x)))))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(3, 12), (3, 5, 12), (3, 2, 4, 12), (0, 12)])
def test_linear_layers_by_events(dtype, shape):
    torch.manual_seed(0)
    network = convert(exact(Perceptron()), timesteps=4, rho=4).to(dtype)
    assert chosen(network) == {"wide": True, "last": False}, "210 weights are too few"
    events, dense = ways(network, (torch.randint(0, 5, shape) / 4).to(dtype))
    assert chosen(network) == {"wide": False, "last": False}
    assert torch.equal(events, dense) and events.shape == (4, *shape[:-1], 3)


def test_random_weights_in_float64():
    network = convert(Perceptron().double(), timesteps=4, rho=4, iterations=None)
    events, dense = ways(network, torch.randn(50, 12, dtype=torch.float64))
    assert (events - dense).abs().max() <= 1e-9 and dense.unique().numel() > 50


def test_the_plan_and_set_layer():
    network = convert(Perceptron(), timesteps=4)
    assert [layer[:3] for layer in network.plan().layers] == [
        ("first", "Linear", "dense"),
        ("wide", "Linear", "events"),
        ("last", "Linear", "dense"),
    ]
    reasons = {entry.site: entry.reason for entry in network.report.entries}
    assert reasons["wide"] == reasons["last"] == "reads spikes"
    network.set_layer("last", convolution="events")
    assert chosen(network) == {"wide": True, "last": True}
    assert repr(network.module.wide) == "Linear(in_features=100, out_features=70, bias=False)"


def test_too_many_weights_are_dense():
    with torch.device("meta"):
        layers = [nn.Linear(8192, 2048), nn.Linear(8192, 2049)]
    for layer, by_events in zip(layers, (True, False)):
        made = SpikeLinear.of(layer)
        made.choose("auto")
        assert made.by_events == by_events


def test_weights_that_change_files_and_copies(tmp_path):
    network = convert(exact(Perceptron()), timesteps=4, rho=4)
    network.convolution, x = "events", torch.randint(0, 5, (3, 12)) / 4
    before = network(x)
    network.save(tmp_path / "network")
    for other in (
        copy.deepcopy(network),
        pickle.loads(pickle.dumps(network)),
        cos_ext.load_network(tmp_path / "network", Perceptron()),
    ):
        assert chosen(other) == {"wide": True, "last": True} and other.module.wide._packed is None
        assert torch.equal(other(x), before)
    with torch.no_grad():
        network.module.wide.weight.mul_(-1)
    events, dense = ways(network, x)
    assert torch.equal(events, dense) and not torch.equal(events, before)


def test_what_needs_the_dense_one_has_it():
    network = convert(exact(Perceptron()), timesteps=2, rho=2)
    x = torch.randint(0, 5, (3, 12)) / 4
    network.convolution, expected = "events", network(x)
    network.module.wide.weight.requires_grad_()
    with torch.no_grad():
        assert torch.equal(network(x), expected)
    spikes = torch.eye(100)
    network.module.wide(spikes).sum().backward()
    assert torch.equal(network.module.wide.weight.grad, torch.ones(70, 100))
    made = torch.compile(network.module.wide.requires_grad_(False), fullgraph=True)
    assert torch.allclose(made(spikes), network.module.wide.weight.t())


class Head(nn.Module):
    """A convolution and a linear layer behind poolings."""

    def __init__(self, pool, count):
        super().__init__()
        self.first, self.act = nn.Conv2d(3, 32, 3, padding=1), QCFS(4, 1.0)
        self.pool, self.last = pool, nn.Linear(count, 8)

    def forward(self, x):
        return self.last(self.pool(self.act(self.first(x))).flatten(1))


@pytest.mark.parametrize("fuse", [True, False])
@pytest.mark.parametrize(
    ("pool", "count", "sparse"),
    [
        (nn.AvgPool2d(2), 512, True),
        (nn.AvgPool2d(4), 128, True),
        (nn.AvgPool2d(8), 32, False),
        (nn.AdaptiveAvgPool2d(1), 32, False),
        (nn.AdaptiveAvgPool2d((2, 2)), 128, False),
        (nn.MaxPool2d(2), 512, True),
        (nn.Identity(), 2048, True),
    ],
    ids=str,
)
def test_means_over_many_are_not_mostly_0(pool, count, sparse, fuse):
    network = convert(exact(Head(pool, count)), timesteps=4, fuse=fuse, max_pool="before")
    network.convolution = "events"
    assert chosen(network) == ({"last": True} if sparse else {})
    events, dense = ways(network, torch.randint(0, 5, (2, 3, 8, 8)) / 4)
    assert torch.allclose(events, dense, atol=1e-5)
