"""Networks as NIR graphs and back: the same outputs, and what is refused."""

import copy
import itertools

import pytest
import torch
from torch import nn

import cos_ext
from cos_ext import ConversionError, Neuron, convert, from_nir, to_nir

nir = pytest.importorskip("nir", reason="NIR graphs need nir (extra nir)")
T = 6


class Residual(nn.Module):
    """A residual sum, groups, pooling by windows and over the plane, and a view."""

    def __init__(self):
        super().__init__()
        self.first, self.inner = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.last, self.norm = nn.Conv2d(8, 8, 3, padding=1, groups=2), nn.BatchNorm2d(8)
        self.a, self.b, self.c = nn.ReLU(), nn.ReLU(), nn.ReLU()
        self.windows, self.plane, self.head = (
            nn.AvgPool2d(2),
            nn.AdaptiveAvgPool2d(1),
            nn.Linear(8, 5),
        )

    def forward(self, x):
        x = self.a(self.norm(self.first(x)))
        x = self.c(self.last(self.b(self.inner(x))) + x)
        x = self.plane(self.windows(x))
        return self.head(x.view(x.size(0), -1))


def hard(model, *, v_reset=0.05, dtype=torch.float64, **options):
    """A network whose neurons NIR has."""
    network = convert(model.eval().to(dtype), timesteps=T, **options)
    for node in network.nodes().values():
        node.v_reset, node.v_init = v_reset, torch.zeros_like(node.v_threshold)
    return network


def chain():
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))


THETAS = {"a": 0.4, "b": 0.3, "c": torch.linspace(0.2, 0.5, 8).view(8, 1, 1)}
NEURONS = {
    "integrate and fire": (None, {"IF"}),
    "leaky": (Neuron(leak=0.9), {"LIF"}),
    "valued": (Neuron(emitted=0.7), {"IF"}),
}


@pytest.mark.parametrize("fold", [True, False])
@pytest.mark.parametrize("name", NEURONS)
def test_there_and_back(name, fold, tmp_path):
    neuron, kinds = NEURONS[name]
    network = hard(Residual(), thresholds=THETAS, neuron=neuron)
    x, path = torch.rand(4, 3, 8, 8, dtype=torch.float64), tmp_path / "network.nir"
    expected = network(x)
    assert expected.std(0).count_nonzero() > 5  # the steps differ
    graph = to_nir(network, path, x[:1], dt=1e-3, fold=fold)
    found = [type(node).__name__ for node in graph.nodes.values()]
    assert kinds == {kind for kind in found if kind.endswith("IF")} and found.count("IF") in (0, 3)
    if not fold:
        assert found.count("Scale") == 3
    for source in (graph, path, str(path)):
        again = from_nir(source, timesteps=T, dt=1e-3)
        assert torch.allclose(again(x), expected, rtol=0, atol=1e-12)  # a spike is 0.2 and more
    assert all(node.v_reset == 0.05 for node in again.nodes().values())


def test_float32_is_equal_where_sums_are_exact(tmp_path):
    model = chain()
    with torch.no_grad():
        for layer in model[::2]:
            layer.weight.mul_(16).round_().div_(16)
            layer.bias.zero_()
    network = hard(model, dtype=torch.float32, v_reset=0.0, thresholds={"1": 0.25, "3": 0.5})
    x = torch.randint(0, 9, (7, 6)) / 8
    graph = to_nir(network, None, x)
    assert graph.nodes["1"].v_threshold.max() < 0.25  # a potential at θ fires in NIR, too
    again = from_nir(graph, timesteps=T)
    assert next(again.parameters()).dtype == torch.float32
    assert torch.equal(again(x), network(x)) and network(x).any()


def test_the_equations_of_nir():
    """The graph, step by step, as NIR's own equations say."""
    network = hard(chain(), thresholds={"1": 0.3, "3": 0.2}, neuron=Neuron(leak=0.8))
    x, dt = torch.rand(5, 6, dtype=torch.float64), 1e-2
    nodes = to_nir(network, None, x, dt=dt).nodes
    state = dict.fromkeys(("1", "3"), 0.0)
    for out in network(x):
        value = x.numpy()
        for name in ("0", "1", "2", "3", "4"):
            node = nodes[name]
            if isinstance(node, nir.Affine):
                value = value @ node.weight.T + node.bias
                continue
            v = state[name]
            v = v + dt / node.tau * (node.v_leak - v + node.r * value)
            spikes = v > node.v_threshold
            state[name], value = (~spikes) * v + spikes * node.v_reset, spikes * 1.0
        assert torch.allclose(out, torch.from_numpy(value), atol=1e-12)


def test_sums_of_pools_and_gains_are_read():
    weight = (torch.arange(12.0).view(3, 4) / 4).numpy()
    nodes = {
        "input": nir.Input({"input": torch.tensor([1, 4, 4]).numpy()}),
        "pool": nir.SumPool2d(*(torch.tensor(two).numpy() for two in ([2, 2], [2, 2], [0, 0]))),
        "flat": nir.Flatten({"input": torch.tensor([1, 2, 2]).numpy()}, 0, -1),
        "weights": nir.Linear(weight),
        "neurons": nir.IF(*(torch.full((3,), value).numpy() for value in (0.5, 2.0, 0.0))),
        "out": nir.Output({"output": torch.tensor([3]).numpy()}),
    }
    names = list(nodes)
    network = from_nir(nir.NIRGraph(nodes, list(itertools.pairwise(names))), timesteps=3)
    x = torch.randint(0, 3, (40, 1, 4, 4)) / 2
    current = 0.5 * (4 * nn.AvgPool2d(2)(x)).flatten(1) @ torch.from_numpy(weight).T
    v, expected, ties = torch.zeros(40, 3), [], 0
    for _ in range(3):
        v = v + current
        ties += (v == 2).sum()
        expected.append((v > 2).float())
        v = torch.where(v > 2, 0.0, v)
    assert torch.equal(network(x), torch.stack(expected)) and network(x).any()
    assert ties > 0  # at which NIR's neurons do not fire


def refused(network, x):
    with pytest.raises(ValueError, match="NIR cannot carry") as error:
        to_nir(network, None, x)
    return str(error.value)


def test_what_nir_cannot_carry_is_listed(tmp_path):
    x, thresholds = torch.rand(2, 6), {"1": 0.3, "3": 0.3}
    model = chain()
    told = refused(convert(model, timesteps=4, rho=4, thresholds=thresholds), x)
    assert "1: it watches 4 steps" in told and "3: it watches 4 steps" in told
    network = convert(model, timesteps=4, thresholds=thresholds)
    assert "reset by subtraction" in refused(network, x)
    network.nodes()["1"].v_reset = network.nodes()["3"].v_reset = 0.0
    assert "v(0) is not 0" in refused(network, x)

    def told_of(**options):
        return refused(hard(chain(), dtype=torch.float32, thresholds=thresholds, **options), x)

    assert "one level, up, and know no levels" in told_of(neuron=Neuron(levels=(0, 2)))
    assert "know no step_bias" in told_of(neuron=Neuron(step_bias=torch.zeros(T)))
    assert "leak is above 1" in told_of(neuron=Neuron(leak=1.5))
    assert "v_reset is infinite" in told_of(v_reset=-torch.inf)
    assert "scale or bias is fused" in told_of(fuse="bias")


class Odd(nn.Module):
    def __init__(self, change):
        super().__init__()
        self.conv, self.relu, self.change = nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), change

    def forward(self, x):
        return self.change(self.relu(self.conv(x)))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (nn.MaxPool2d(2), "no node for MaxPool2d"),
        (nn.AvgPool2d(2, padding=1), "at edges"),
        (nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular"), "pads with zeros"),
        (nn.AdaptiveAvgPool2d(3), "windows differ"),
        (nn.Linear(4, 2), "reads vectors"),
        (lambda x: x + x, "not x + x"),
        (lambda x: x.transpose(1, 2), "no node for transpose"),
    ],
)
def test_layers_without_a_node_are_refused(change, reason):
    network = hard(Odd(change), dtype=torch.float32, thresholds={"relu": 0.3}, max_pool="spike")
    assert reason in refused(network, torch.rand(1, 1, 4, 4))


def test_a_refusal_and_a_failure_leave_the_file(tmp_path, monkeypatch):
    network = hard(chain(), dtype=torch.float32, thresholds={"1": 0.3, "3": 0.3})
    path, x = tmp_path / "network.nir", torch.rand(2, 6)
    path.write_bytes(b"before")
    soft = convert(chain(), timesteps=2, thresholds={"1": 0.3, "3": 0.3})
    with pytest.raises(ValueError, match="subtraction"):
        to_nir(soft, path, x)

    def full(part, graph):
        part.write_bytes(b"half")
        raise OSError("full")

    monkeypatch.setattr(nir, "write", full)
    with pytest.raises(OSError, match="full"):
        to_nir(network, path, x)
    assert path.read_bytes() == b"before" and list(tmp_path.iterdir()) == [path]


def test_arguments(tmp_path):
    network = hard(chain(), dtype=torch.float32, thresholds={"1": 0.3, "3": 0.3})
    x = torch.rand(2, 6)
    with pytest.raises(TypeError, match="must be a SpikingNetwork"):
        to_nir(chain(), None, x)
    with pytest.raises(ValueError, match="dt must be positive"):
        to_nir(network, None, x, dt=0.0)
    with pytest.raises(FileNotFoundError):
        to_nir(network, tmp_path / "none" / "network.nir", x)
    with pytest.raises(FileNotFoundError, match="no file"):
        from_nir(tmp_path / "none", timesteps=2)
    (tmp_path / "text").write_text("no HDF5")
    with pytest.raises(ValueError, match="damaged"):
        from_nir(tmp_path / "text", timesteps=2)
    with pytest.raises(TypeError, match="NIRGraph"):
        from_nir(3, timesteps=2)


def graph_with(**nodes):
    """A graph of the chain, with some nodes instead of its own."""
    x = torch.rand(2, 6)
    network = hard(chain(), dtype=torch.float32, thresholds={"1": 0.3, "3": 0.3})
    graph = copy.deepcopy(to_nir(network, None, x))
    graph.nodes.update(nodes)
    return graph


def test_graphs_that_cannot_be_read_are_refused():
    ones = torch.ones(16).numpy()

    def told(graph):
        with pytest.raises(ValueError) as error:
            from_nir(graph, timesteps=2)
        return str(error.value)

    both = {"1": nir.LI(ones, ones, ones), "3": nir.Delay(ones[:8])}
    listed = told(graph_with(**both))
    assert "1 (LI): it sends potentials" in listed and "3 (Delay)" in listed
    assert "v_leak is not 0" in told(graph_with(**{"1": nir.LIF(ones * 2, ones, ones, ones)}))
    assert "τ must be above dt" in told(
        graph_with(**{"1": nir.LIF(ones / 2, ones, ones * 0, ones)})
    )
    differ = torch.arange(16.0).numpy()
    assert "differ in v_reset" in told(graph_with(**{"1": nir.IF(ones, ones, differ)}))
    assert "must not be negative" in told(graph_with(**{"1": nir.IF(ones, -ones)}))
    circle = graph_with()
    circle.edges.append(("3", "2"))
    assert "no circles" in told(circle)
    second = graph_with()
    second.nodes["more"] = nir.Input({"input": torch.tensor([6]).numpy()})
    assert "one Input" in told(second)
    with pytest.raises(ConversionError):
        from_nir(graph_with(**{"1": nir.Scale(ones), "3": nir.Scale(ones[:8])}), timesteps=2)


def test_a_network_with_hard_reset_is_not_saved_without_it(tmp_path):
    network = hard(chain(), dtype=torch.float32, thresholds={"1": 0.3, "3": 0.3})
    with pytest.raises(ValueError, match=r"to_nir"):
        network.save(tmp_path / "network.safetensors")
    assert list(tmp_path.iterdir()) == []
    assert isinstance(network, cos_ext.SpikingNetwork)
