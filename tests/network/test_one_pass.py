"""A convolution by events and the neurons that read it, in one pass: every bit is that of two."""

import copy
import pickle

import pytest
import torch
from test_layout import images
from torch import nn

from cos_ext import QCFS, convert
from cos_ext._neuron import layer
from cos_ext.network import one_pass


class Net(nn.Module):
    """Layers with a residual, BatchNorm, a pooling, a stride, and a convolution that two read."""

    def __init__(self, channels=20):
        super().__init__()
        self.first, self.act0 = nn.Conv2d(3, channels, 3, padding=1), QCFS(4, 1.0)
        self.one, self.act1 = nn.Conv2d(channels, channels, 3, padding=1), QCFS(4, 0.2)
        self.two, self.act2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False), QCFS(4, 0.6)
        self.norm, self.pool = nn.BatchNorm2d(channels), nn.AvgPool2d(2)
        self.three, self.act3 = nn.Conv2d(channels, 40, 3, stride=2, padding=1), QCFS(4, 0.1)
        self.four, self.act4 = nn.Conv2d(40, 70, 1), QCFS(4, 0.1)
        self.both, self.act5 = nn.Conv2d(70, 8, 3, padding=1), QCFS(4, 0.1)
        self.last = nn.Linear(8, 5)

    def forward(self, x):
        h = self.act0(self.first(x))
        h = self.act2(self.norm(self.two(self.act1(self.one(h)))) + h)
        h = self.act3(self.three(self.pool(h)))
        h = self.both(self.act4(self.four(h)))
        return self.last((self.act5(h) + 0.5 * h).mean((2, 3)))


class Passes:
    """Counts the layers that run in one pass, and runs networks in two."""

    def __init__(self, patch):
        self.count, self.patch, operator = 0, patch, layer.layer

        def counted(*arguments, **named):
            self.count += 1
            return operator(*arguments, **named)

        patch.setattr(layer, "layer", counted)

    def two(self, run):
        with self.patch.context() as patch:
            patch.setattr(one_pass, "waiting", lambda *_: frozenset())
            before = self.count
            out = run()
            assert self.count == before
        return out


@pytest.fixture
def passes(monkeypatch):
    return Passes(monkeypatch)


def by_events(model, **settings):
    network = convert(model, **settings)
    network.convolution = "events"
    return network


SETTINGS = [
    {"timesteps": 4, "rho": 4},
    {"timesteps": 1},
    {"timesteps": 3, "rho": 2, "iterations": None},
    {"timesteps": 8, "rho": 5, "emission": "even"},
    {"timesteps": 7, "rho": 3, "emission": "front", "fuse": "bias"},
    {"timesteps": 4, "rho": 2, "fold_batchnorm": False},
    {"timesteps": 4, "rho": 2, "fuse": False},
    {"timesteps": 20, "rho": 8, "memory_format": torch.contiguous_format},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [6, 18])
def test_one_pass_changes_no_bit(passes, dtype, settings, size):
    network, x = by_events(Net(), **settings).to(dtype), images(3, size).to(dtype)
    one = network(x)
    sums = settings.get("fuse", True) and settings.get("fold_batchnorm", True)
    # A sum or BatchNorm may read one. One pass gives channels_last.
    assert passes.count == (0 if "memory_format" in settings else 4 if sums else 3)
    assert torch.equal(one, passes.two(lambda: network(x)))
    assert one.unique().numel() > 5
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    assert torch.equal(network(x), one)
    torch.set_num_threads(threads)


@pytest.mark.parametrize("settings", [{"calibration": "srp"}, {"calibration": "parallel"}])
def test_what_has_no_one_pass(passes, settings):
    network, x = by_events(Net(), timesteps=4, rho=4, **settings), images()
    assert torch.equal(network(x), passes.two(lambda: network(x)))
    assert passes.count == 0


def test_thresholds_by_channel(passes):
    network, x = by_events(Net(), timesteps=4, rho=4), images(2)
    for node in network.nodes().values():
        node.v_threshold = node.v_threshold * torch.linspace(0.5, 1, 4)[:, None, None].repeat(
            5, 1, 1
        )
        break
    network.nodes()["act1"].v_threshold = torch.linspace(0.5, 1, 20)[:, None, None]
    one = network(x)
    assert passes.count == 4 and torch.equal(one, passes.two(lambda: network(x)))
    network.nodes()["act1"].v_threshold = torch.ones(19, 1, 1)
    with pytest.raises(ValueError, match="v_threshold must broadcast"):
        network(x)


def test_who_looks_sees_currents_and_spikes(passes):
    network, x = by_events(Net(), timesteps=4, rho=4), images()
    expected, seen = network(x), []
    assert passes.count == 4
    for site in ("one", "act1"):
        for register in ("register_forward_hook", "register_forward_pre_hook"):
            hook = getattr(network.module.get_submodule(site), register)(
                lambda m, given, *out: seen.extend([*given, *out])
            )
            assert torch.equal(network(x), expected)
            hook.remove()
    assert len(seen) == 6 and all(type(t) is torch.Tensor for t in seen)
    with network.record():
        network(x)
    network.statistics([x], progress=False)
    assert passes.count == 4, "none of these in one pass"


def test_other_neurons_in_their_place(passes):
    network, x = by_events(Net(), timesteps=4, rho=4), images()
    network.module.act1 = nn.Identity()
    assert torch.equal(network(x), passes.two(lambda: network(x)))
    assert passes.count == 3
    network.module.act4.forward = lambda currents: currents.clamp(0, 1)
    assert torch.equal(network(x), passes.two(lambda: network(x)))
    assert passes.count == 5


class Changed(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x) + 0.1


def wrap(module, name):
    module._modules[name] = Changed(module._modules[name])


def patch_forward(module, name):
    own = getattr(module, name).forward
    getattr(module, name).forward = lambda *x: own(*x) * 2


def edit(module, name):
    node = next(n for n in module.graph.nodes if n.target == name)
    with module.graph.inserting_after(node):
        after = module.graph.call_function(torch.relu, (node,))
    node.replace_all_uses_with(after)
    after.args = (node,)
    module.recompile()


@pytest.mark.parametrize("change", [wrap, patch_forward, edit])
@pytest.mark.parametrize("name", ["one", "act1"])
def test_changed_networks(passes, change, name):
    network, x = by_events(Net(), timesteps=4, rho=4), images()
    before = network(x)
    passes.count = 0
    change(network.module, name)
    after = network(x)
    assert passes.count == (4 if (change, name) == (edit, "act1") else 3)
    assert torch.equal(after, passes.two(lambda: network(x)))
    assert (change, name) == (edit, "act1") or not torch.equal(after, before)


def test_outside_a_run_a_convolution_gives_currents():
    network = by_events(Net(), timesteps=4, rho=4)
    spikes = torch.randint(0, 2, (8, 20, 6, 6)).float().to(memory_format=torch.channels_last)
    assert type(network.module.one(spikes)) is torch.Tensor
    seen = []

    class Look(torch.fx.Interpreter):
        def run_node(self, node):
            seen.append(super().run_node(node))
            return seen[-1]

    Look(network.module).run(images())
    assert len(seen) > 10 and not any(isinstance(value, layer.Pending) for value in seen)


def test_copies(passes):
    network, x = by_events(Net(), timesteps=4, rho=4), images()
    expected = network(x)
    for other in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        passes.count = 0
        assert torch.equal(other(x), expected) and passes.count == 4
        other.module.act1.v_threshold.mul_(3)
        assert torch.equal(network(x), expected), "copies have neurons of their own"
        assert not torch.equal(other(x), expected)


def test_gradients_of_residuals_are_asked_for(passes):
    network, x = by_events(Net(), timesteps=4, rho=4), images()
    network.module.norm = nn.Identity()
    network.nodes()["act1"].in_bias = torch.zeros(20, 1, 1, requires_grad=True)
    with pytest.raises(RuntimeError, match="no gradient"):
        network(x)


def test_an_image_smaller_than_the_window():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), QCFS(4, 1.0), nn.Conv2d(4, 4, 5), QCFS(4, 1.0))
    network = by_events(model, timesteps=2)
    for size in (2, 4):
        with pytest.raises(RuntimeError, match=f"at least the window's 5, got {size} with"):
            network(images(1, size))


def test_an_empty_batch(passes):
    network = by_events(Net(), timesteps=4, rho=4)
    assert network(images(0)).shape == (4, 0, 5)
