"""Convolutions of spikes in a network, by events beside dense."""

import copy
import pickle

import pytest
import torch
import zoo
from test_layout import Dense, exact, images
from threads import differences
from torch import nn
from zoo_networks import converted

import cos_ext
from cos_ext import QCFS, convert
from cos_ext.network.convolution import OfSpikes, SpikeConv2d


def ways(network, *inputs):
    """The outputs by events and dense."""
    network.convolution = "events"
    events = network(*inputs)
    network.convolution = "dense"
    return events, network(*inputs)


def chosen(network):
    return {n: m.by_events for n, m in network.module.named_modules() if isinstance(m, OfSpikes)}


# Networks without a layer of spikes that is a module of its own.
NONE = {"functional", "reused blocks"}


@pytest.mark.parametrize("name", [n for n in zoo.CONVERTS if n != "untraceable"])
def test_the_zoo_by_events(name):
    network, x = converted(name, iterations=None, emission="calibrated")
    assert bool(chosen(network)) == (name not in NONE)
    events, dense = ways(network, *x)
    assert (events - dense).abs().max() <= 1e-9 * max(1, dense.abs().max())


class Mixed(nn.Module):
    """A static convolution, spiking ones, one with groups, and one module called on both."""

    def __init__(self):
        super().__init__()
        self.first, self.act1 = nn.Conv2d(3, 32, 3, padding=1), QCFS(4, 1.0)
        self.wide, self.act2 = nn.Conv2d(32, 32, 3, padding=1), QCFS(4, 1.0)
        self.groups, self.act3 = nn.Conv2d(32, 32, 3, padding=1, groups=32), QCFS(4, 1.0)
        self.same, self.act4 = nn.Conv2d(32, 3, 3, padding="same"), QCFS(4, 1.0)
        self.point, self.act5 = nn.Conv2d(3, 32, 1), QCFS(4, 1.0)
        self.last = nn.Conv2d(32, 4, 1)

    def forward(self, x):
        h = self.act3(self.groups(self.act2(self.wide(self.act1(self.first(x))))))
        h = self.act4(self.same(h))
        return self.last(self.act5(self.point(h) + self.point(x)))


def test_which_convolutions_may_go_by_events():
    network = convert(exact(Mixed()), timesteps=4, rho=4)
    assert network.convolution == "auto"
    assert chosen(network) == {"wide": True, "last": False}
    network.convolution = "events"
    assert chosen(network) == {"wide": True, "last": True}
    network.convolution = "dense"
    assert chosen(network) == {"wide": False, "last": False}
    events, dense = ways(network, images())
    assert torch.equal(events, dense) and dense.unique().numel() > 10


class Grouped(nn.Module):
    def __init__(self, groups, bias=True):
        super().__init__()
        self.first, self.act1 = nn.Conv2d(3, 64, 3, padding=1), QCFS(4, 1.0)
        self.wide = nn.Conv2d(64, 96, 3, stride=2, padding=1, groups=groups, bias=bias)
        self.act2, self.last = QCFS(4, 1.0), nn.Conv2d(96, 4, 1)

    def forward(self, x):
        return self.last(self.act2(self.wide(self.act1(self.first(x)))))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("groups", [2, 4, 8])
@pytest.mark.parametrize("layout", ["auto", torch.contiguous_format])
def test_groups_that_are_not_thin_go_by_events(groups, bias, dtype, layout):
    model = exact(Grouped(groups, bias))
    network = convert(model, timesteps=4, rho=4, memory_format=layout).to(dtype)
    assert chosen(network) == {**({"wide": True} if groups < 8 else {}), "last": True}
    events, dense = ways(network, images().to(dtype))
    assert torch.equal(events, dense) and events.unique().numel() > 5
    with torch.no_grad():
        network.module.wide.weight.mul_(-1)
    again, dense = ways(network, images().to(dtype))
    assert torch.equal(again, dense) and not torch.equal(again, events)


def test_the_plan_and_the_report_say_what_runs():
    network = convert(Mixed(), timesteps=4)
    lines = {layer.site: layer for layer in network.plan().layers}
    assert [*lines] == ["first", "wide", "groups", "same", "point", "last"]
    assert {site for site, layer in lines.items() if layer.runs == "events"} == {"wide"}
    rule = "weights, 256 to 16777216 go by events"
    assert lines["wide"].reason == f'convolution is "auto": 9216 {rule}'
    assert lines["last"].reason == f'convolution is "auto": 128 {rule}'
    assert lines["groups"].reason == "a group of it has 1 channels, 16 or more go by events"
    assert lines["same"].reason == "its padding is 'same', zeros"
    assert lines["first"].reason == lines["point"].reason == "what it reads is not mostly 0"
    assert str(network.plan()).splitlines()[2].split()[:3] == ["wide", "Conv2d", "events"]
    reasons = {entry.site: entry.reason for entry in network.report.entries}
    assert reasons["wide"] == "reads spikes" and not reasons["groups"]
    away = network.to("meta").plan().layers[1]
    assert away[2:] == ("dense", "it is on meta, events are for a CPU")


class Filled(nn.Module):
    """Convolutions of what was spikes: some is 0 no more."""

    def __init__(self):
        super().__init__()
        for name in ("norm", "image", "up", "plus", "twice", "pooled", "both"):
            conv = nn.Conv2d(8 if name == "both" else 7 if name == "image" else 4, 4, 3, padding=1)
            self.add_module(name, conv)
        self.first, self.act = nn.Conv2d(3, 4, 3, padding=1), QCFS(4, 1.0)
        self.bn, self.pool = nn.BatchNorm2d(4), nn.MaxPool2d(1)

    def forward(self, x):
        h = self.act(self.first(x))
        up = nn.functional.interpolate(h, scale_factor=1.0, mode="bilinear")
        filled = self.norm(self.bn(h)) + self.image(torch.cat([h, x], 1)) + self.up(up)
        sparse = self.pooled(nn.functional.avg_pool2d(h, 1)) + self.twice(h + h)
        return filled + self.plus(h + 1) + sparse + self.both(torch.cat([h, h], 1))


def test_what_is_0_no_more_is_dense():
    network = convert(Filled(), timesteps=4, rho=4)
    network.convolution = "events"
    assert chosen(network) == dict.fromkeys(("pooled", "twice", "both"), True)
    events, dense = ways(network, images())
    assert torch.allclose(events, dense, atol=1e-5)


def test_one_layer_by_itself():
    network = convert(exact(Mixed()), timesteps=4, rho=4)
    network.set_layer("last", convolution="events")
    network.set_layer("wide", convolution="dense")
    assert chosen(network) == {"wide": False, "last": True}
    assert network.plan().layers[1].reason == 'convolution is "dense"'
    network.convolution = "events"
    assert chosen(network) == {"wide": False, "last": True}
    with pytest.raises(ValueError, match="convolution must be"):
        network.set_layer("wide", convolution="sparse")
    for site, changes in {
        "wide": {"rho": 2},
        "act1": {"convolution": "dense"},
        "first": {"convolution": "dense"},
        "nowhere": {"convolution": "dense"},
        "last": {"convolution": "dense", "rho": 1},
    }.items():
        with pytest.raises(ValueError, match=r"those are \['wide', 'last'\]"):
            network.set_layer(site, **changes)
    assert chosen(network) == {"wide": False, "last": True}
    network.set_layer("wide")
    assert chosen(network) == {"wide": True, "last": True}
    network.set_layer("act1", rho=2)
    assert network.nodes()["act1"].rho == 2


@pytest.mark.parametrize("execution", ["steps", "counts"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_dtypes_counts_and_parts(dtype, execution):
    network = convert(exact(Dense()), timesteps=4, rho=4, emission="even", execution=execution)
    network, x = network.to(dtype), images(7).to(dtype)
    events, dense = ways(network, x)
    assert torch.equal(events, dense) and dense.unique().numel() > 4
    network.convolution, network.memory_limit = "events", None
    whole = network(x)
    network.memory_limit = network.activation_bytes(x[:3]) + whole.numel() * whole.element_size()
    assert torch.equal(network(x), whole)


def test_samples_do_not_depend_on_the_batch_nor_on_threads():
    network = convert(Dense().double(), timesteps=4, rho=4)
    network.convolution, x, hidden = "events", images(6).double(), []
    network.memory_limit = None
    network.module.two.register_forward_hook(lambda m, i, out: hidden.append(out.clone()))
    threads = torch.get_num_threads()
    try:
        for n in (1, 3):
            torch.set_num_threads(n)
            network(x)
    finally:
        torch.set_num_threads(threads)
    network(x[2:3])
    one, three, alone = hidden
    assert torch.equal(one, three)
    assert torch.equal(alone.unflatten(0, (4, 1)), one.unflatten(0, (4, 6))[:, 2:3])


def test_weights_whose_memory_is_used_again():
    conv = SpikeConv2d.of(exact(nn.Conv2d(32, 32, 3)).requires_grad_(False))
    conv.by_events, x = True, torch.randint(0, 2, (2, 32, 5, 5)).float()
    for _ in range(20):  # malloc hands out the same memory again
        first = conv(x)
        shape = conv.weight.shape
        conv.weight.data = torch.empty(0)
        conv.weight.data = torch.randint(-2, 3, shape).float()
        assert torch.equal(conv(x), nn.functional.conv2d(x, conv.weight, conv.bias))
    assert first.any()


def test_gradients_and_odd_biases():
    conv = SpikeConv2d.of(exact(nn.Conv2d(32, 32, 3)).requires_grad_(False))
    conv.by_events, x = True, torch.randint(0, 2, (2, 32, 5, 5)).float()
    expected = nn.functional.conv2d(x, conv.weight, conv.bias)
    assert torch.equal(conv(x), expected)
    assert conv(x.clone().requires_grad_()).requires_grad
    wide = torch.zeros(64)
    wide[::2] = conv.bias
    conv.bias = nn.Parameter(wide[::2], requires_grad=False)
    assert torch.equal(conv(x), expected)


def test_weights_that_change_are_packed_anew():
    network = convert(exact(Mixed()), timesteps=4, rho=4)
    network.convolution, x = "events", images()
    before = network(x)
    conv = network.module.wide
    packed = conv._weight()
    assert conv._weight() is packed, "packed once"
    with torch.no_grad():
        conv.weight.mul_(-1)
    assert conv._weight() is not packed
    events, dense = ways(network, x)
    assert torch.equal(events, dense) and not torch.equal(events, before)
    conv.weight.data = conv.weight.data * -1
    network.convolution = "events"
    assert torch.equal(network(x), before)
    network.double()
    assert torch.equal(network(x.double()).float(), before)
    network.load_state_dict(
        {
            k: torch.zeros_like(v) if "wide.weight" in k else v
            for k, v in network.state_dict().items()
        }
    )
    events, dense = ways(network, x.double())
    assert torch.equal(events, dense)


def test_files_and_copies(tmp_path):
    network = convert(exact(Mixed()), timesteps=4, rho=4)
    network.convolution, x = "events", images()
    network.set_layer("last", convolution="dense")
    expected = network(x)
    assert not any("packed" in name for name in network.state_dict())
    network.save(tmp_path / "network")
    for other in (
        copy.deepcopy(network),
        pickle.loads(pickle.dumps(network)),
        cos_ext.load_network(tmp_path / "network", Mixed()),
    ):
        assert other.convolution == "events"
        assert chosen(other) == {"wide": True, "last": False}
        assert other.module.wide._packed is None
        assert torch.equal(other(x), expected)


def test_what_needs_the_dense_one_has_it():
    network = convert(exact(Mixed()), timesteps=2, rho=2)
    x, seen = images(), []
    packing = SpikeConv2d._weight

    def noted(self):
        seen.append(1)
        return packing(self)

    network.convolution = "events"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SpikeConv2d, "_weight", noted)
        network(x)
        assert len(seen) == 2
        network.energy_report([x], progress=False)
        network.statistics([x], progress=False)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            network(x)
        network.activation_bytes(x)
        network.memory_limit = None
        torch.compile(network, backend="eager")(x)
        assert len(seen) == 2
    dense = network.energy_report([x], progress=False)
    network.convolution = "dense"
    assert str(network.energy_report([x], progress=False)) == str(dense)


def test_threads_share_a_network():
    network = convert(exact(Mixed()), timesteps=4, rho=4)
    network.convolution = "events"
    inputs = [images(3) for _ in range(4)]
    expected = [network(x) for x in inputs]
    network.double().float()  # packed anew, by whoever comes first
    assert differences(network, inputs, expected) == 0


@pytest.mark.parametrize(("value", "error"), [("sparse", ValueError), (None, TypeError)])
def test_other_ways_are_refused(value, error):
    network = convert(Dense(), timesteps=2)
    with pytest.raises(error, match="convolution must be"):
        network.convolution = value
    assert network.convolution == "auto"
