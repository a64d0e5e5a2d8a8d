"""What convert() fuses into the passes of neurons: which, that the spikes stay EQUAL, and that
everything else still sees them.
"""

from __future__ import annotations

import copy

import pytest
import torch
import zoo
from quantised import thresholds_of
from torch import nn
from torch.nn import functional as TF

import cos_ext
from cos_ext import QCFS, IFNode, convert
from cos_ext.network.pooling import PooledBefore

pytestmark = pytest.mark.usefixtures("one_thread")
TRACED = [name for name in zoo.CONVERTS if name != "untraceable"]


def spikes_of(network, inputs):
    """Outputs and the spikes of every layer, all passes apart."""
    seen = {}
    hooks = [
        node.register_forward_hook(lambda m, i, o, site=site: seen.__setitem__(site, o.clone()))
        for site, node in network.nodes().items()
    ]
    with network._by_steps():
        outputs = network(*inputs)
    for hook in hooks:
        hook.remove()
    return outputs, seen


def pair(name, fuse=True, **options):
    """A network of the zoo, fused and not, in float64."""
    make, shapes = zoo.CONVERTS[name]
    model, inputs = zoo.prepared(name, make).double(), zoo.inputs_of(shapes)
    inputs = tuple(x.double() for x in inputs)
    with torch.no_grad():
        thresholds = thresholds_of(model, inputs)
    options = {
        "timesteps": 5,
        "rho": 3,
        "thresholds": thresholds,
        "max_pool": "before",
        "example_input": inputs,
        **options,
    }
    return convert(model, fuse=fuse, **options), convert(model, fuse=False, **options), inputs


class Net(nn.Module):
    """All that can be fused: a residual, a shortcut with a bias, a BatchNorm behind a sum, pools of
    2 x 2 and of the whole plane.
    """

    def __init__(self):
        super().__init__()
        self.stem, self.first, self.second = (
            nn.Conv2d(2, 4, 3, padding=1),
            nn.Conv2d(4, 4, 3, padding=1),
            nn.Conv2d(4, 4, 1),
        )
        self.shortcut, self.third, self.norm = (
            nn.Conv2d(4, 4, 1),
            nn.Conv2d(4, 6, 1),
            nn.BatchNorm2d(4),
        )
        self.acts = nn.ModuleList(QCFS(4, 0.7 + 0.1 * i) for i in range(5))
        self.pool, self.head = nn.AvgPool2d(2), nn.Linear(6, 3)

    def forward(self, x):
        x = self.acts[0](self.stem(x))
        x = self.acts[1](self.second(self.acts[2](self.first(x))) + self.shortcut(x))
        x = self.pool(x)
        x = self.acts[3](self.norm(TF.pad(x, (1, 1, 1, 1))))
        return self.head(TF.adaptive_avg_pool2d(self.acts[4](self.third(x)), 1).flatten(1))


def net(dtype=torch.float32):
    torch.manual_seed(3)
    model = Net()
    model.norm.running_mean.uniform_(-0.2, 0.2)
    model.norm.running_var.uniform_(0.5, 2)
    with torch.no_grad():
        model.norm.weight.uniform_(0.5, 1.5)
        model.norm.bias.uniform_(-0.2, 0.2)
    return model.eval().to(dtype)


def test_what_is_fused_is_reported_and_gone_from_the_graph():
    network = convert(net(), timesteps=4, rho=2, example_input=torch.randn(2, 2, 8, 8))
    fused = {
        entry.site: entry.reason for entry in network.report.entries if entry.status == "fused"
    }
    assert fused.pop("norm").endswith("; scale and bias of acts.3")  # after why it was not folded
    assert fused == {
        "add": "the residual of acts.1",
        "pool": "the spikes of acts.1 are pooled on the way out",
        "adaptive_avg_pool2d": "the spikes of acts.4 are pooled on the way out",
    }
    called = [
        network.module.get_submodule(n.target)
        for n in network.module.graph.nodes
        if n.op == "call_module"
    ]
    assert not any(isinstance(module, (nn.BatchNorm2d, nn.AvgPool2d)) for module in called)
    assert [tuple(node.pool) for node in network.nodes().values() if node.pool] == [(2, 2), (0, 0)]
    assert sum(isinstance(module, PooledBefore) for module in called) == 2
    assert network.module.second.bias is not None
    with_bias = convert(
        net(), timesteps=4, rho=2, fuse="bias", example_input=torch.randn(2, 2, 8, 8)
    )
    moved = {entry.site for entry in with_bias.report.entries if "its bias into" in entry.reason}
    assert moved == {"first", "second", "shortcut", "third"}
    assert (
        with_bias.module.second.bias is None and with_bias.module.stem.bias is not None
    )  # the stem runs once
    none = convert(net(), timesteps=4, rho=2, fuse=False)
    assert not any(entry.status == "fused" for entry in none.report.entries)


@pytest.mark.parametrize("fuse", [True, "bias"])
@pytest.mark.parametrize(
    "settings",
    [
        {"rho": 0},
        {"rho": 3},
        {"rho": 3, "iterations": None},
        {"rho": 3, "emission": "even"},
        {"rho": 3, "calibration": "srp"},
        {"rho": 3, "calibration": "parallel"},
    ],
    ids=str,
)
def test_the_network_is_the_same(settings, fuse):
    x = torch.randn(3, 2, 8, 8, dtype=torch.float64)
    ours, theirs = (
        convert(net(torch.float64), timesteps=5, fuse=f, **settings) for f in (fuse, False)
    )
    for layout in (x, x.to(memory_format=torch.channels_last)):
        before = layout.clone()
        assert torch.allclose(ours(layout), theirs(layout), rtol=0, atol=1e-12)
        assert torch.equal(layout, before)
    (outputs, spikes), (expected, apart) = spikes_of(ours, (x,)), spikes_of(theirs, (x,))
    assert torch.allclose(outputs, expected, rtol=0, atol=1e-12)
    assert all(torch.allclose(spikes[site], apart[site], rtol=0, atol=1e-12) for site in apart)


def test_residuals_and_small_windows_are_equal_in_float32():
    class Exact(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.a, self.b = (
                nn.Conv2d(2, 4, 3, padding=1),
                nn.Conv2d(4, 4, 3, padding=1),
                nn.Conv2d(4, 4, 3, padding=1),
            )
            self.acts, self.pool, self.head = (
                nn.ModuleList(QCFS(4, 0.5) for _ in range(3)),
                nn.AvgPool2d(2),
                nn.Linear(64, 3),
            )

        def forward(self, x):
            x = self.acts[0](self.stem(x))
            x = self.pool(self.acts[1](self.a(x) + x))
            return self.head(self.acts[2](self.b(x) + x).flatten(1))

    model, x = Exact().eval(), torch.randn(5, 2, 8, 8)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for rho in (0, 2):
            ours, theirs = (
                convert(copy.deepcopy(model).to(dtype), timesteps=3, rho=rho, fuse=fuse)
                for fuse in (True, False)
            )
            assert any(entry.status == "fused" for entry in ours.report.entries)
            assert torch.equal(ours(x.to(dtype)), theirs(x.to(dtype)))


@pytest.mark.parametrize("name", TRACED)
def test_the_zoo(name):
    for fuse in (True, "bias"):
        ours, theirs, inputs = pair(name, fuse)
        assert torch.allclose(ours(*inputs), theirs(*inputs), rtol=0, atol=1e-9)
        ours.rho = theirs.rho = 0
        assert torch.allclose(ours(*inputs), theirs(*inputs), rtol=0, atol=1e-9)


def test_evaluation_counts_the_same_spikes(shipped_model, test_set):
    ours, theirs = (convert(shipped_model, timesteps=4, rho=3, fuse=fuse) for fuse in (True, False))
    for rho in (3, 0):
        ours.rho = theirs.rho = rho
        found, expected = (
            cos_ext.evaluate(n, test_set.first(30).batches(10), progress=False)
            for n in (ours, theirs)
        )
        assert (found.accuracy, found.spike_rate) == (expected.accuracy, expected.spike_rate)
    assert torch.allclose(
        ours(torch.ones(1, 1, 28, 28)), theirs(torch.ones(1, 1, 28, 28)), atol=1e-4
    )


def test_reports_and_fits_see_the_layers_as_they_are():
    images = [torch.randn(6, 2, 8, 8, dtype=torch.float64) for _ in range(2)]
    ann = net(torch.float64)
    ours, theirs = (convert(ann, timesteps=4, rho=3, fuse=fuse) for fuse in (True, False))
    for measure in (
        lambda n: cos_ext.offset_spike_report(ann, n, images, progress=False),
        lambda n: n.energy_report(images, progress=False).acs,
        lambda n: n.statistics(images, progress=False),
    ):
        assert measure(ours) == measure(theirs)
    for fit in (
        lambda n: cos_ext.fit_light(n, ann, images, progress=False),
        lambda n: cos_ext.fit_v_init(n, images, progress=False),
    ):
        ours, theirs = (convert(ann, timesteps=4, rho=3, fuse=fuse) for fuse in (True, False))
        found, expected = fit(ours), fit(theirs)
        assert found.keys() == expected.keys() and all(
            torch.allclose(found[site], expected[site]) for site in found
        )
        assert torch.allclose(ours(images[0]), theirs(images[0]), atol=1e-10)


@pytest.mark.parametrize("fuse", [True, "bias", False])
def test_saved_and_loaded(fuse, tmp_path):
    network, x = convert(net(), timesteps=3, rho=2, fuse=fuse), torch.randn(2, 2, 8, 8)
    network.save(tmp_path / "n.safetensors")
    again = cos_ext.load_network(tmp_path / "n.safetensors", net())
    assert torch.equal(again(x), network(x)) and again.options["fuse"] == fuse


def test_compiles_whole():
    network, x = convert(net(), timesteps=3, rho=2, fuse="bias"), torch.randn(2, 2, 8, 8)
    assert torch.equal(torch.compile(network, fullgraph=True, backend="aot_eager")(x), network(x))


def test_what_does_not_fit_the_kernel_is_done_apart():
    node = IFNode(0.5, timesteps=2)
    node.pool = (2, 2)
    x, residual = torch.randn(4, 3, 5, 5), torch.randn(4, 1, 1, 1)
    expected = TF.avg_pool2d(
        IFNode(0.5, timesteps=2)(x + residual), 2
    )  # a broadcast sum, and windows that leave a rest
    assert torch.equal(node(x.clone(), residual), expected)
    many = IFNode(0.5, timesteps=5000)
    many.in_bias = torch.full((), 0.125)
    assert torch.equal(
        many(torch.zeros(5000, 2)), IFNode(0.5, timesteps=5000)(torch.full((5000, 2), 0.125))
    )
    single = IFNode(0.5, step_mode="s")
    single.in_bias = torch.full((), 0.125)
    assert torch.equal(single(torch.zeros(2)), IFNode(0.5, step_mode="s")(torch.full((2,), 0.125)))


@pytest.mark.parametrize("fuse", ["all", 1, None])
def test_bad_fuse(fuse):
    with pytest.raises(ValueError, match="fuse must be"):
        convert(net(), timesteps=2, fuse=fuse)


def test_a_number_is_no_residual():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two, self.acts = (
                nn.Linear(3, 4),
                nn.Linear(4, 5),
                nn.ModuleList(QCFS(4, 1.0) for _ in range(2)),
            )

        def forward(self, x):
            y = self.two(self.acts[0](self.one(x)))
            return self.acts[1](y + y.size(1))

    x = torch.randn(3, 3)
    ours, theirs = (convert(Net().eval(), timesteps=2, rho=2, fuse=fuse) for fuse in (True, False))
    theirs.load_state_dict(ours.state_dict())
    assert torch.equal(ours(x), theirs(x))
