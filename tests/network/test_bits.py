"""Spikes between layers as bits: every bit of the output is as without, and nobody outside sees
them.
"""

import pytest
import torch
from test_layout import images
from test_one_pass import SETTINGS, by_events
from torch import nn

from cos_ext import QCFS, IFNode
from cos_ext._functional.events import Bits
from cos_ext._neuron import layer
from cos_ext.network import one_pass


class Block(nn.Module):
    """Of a residual network; its shortcut hands on what it is given, or is a convolution."""

    def __init__(self, channels, outputs, shortcut):
        super().__init__()
        self.conv1, self.act1 = nn.Conv2d(channels, outputs, 3, padding=1), QCFS(4, 0.4)
        self.conv2, self.act2 = nn.Conv2d(outputs, outputs, 3, padding=1), QCFS(4, 0.5)
        self.shortcut = shortcut

    def forward(self, x):
        return self.act2(self.conv2(self.act1(self.conv1(x))) + self.shortcut(x))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.act = nn.Conv2d(3, 20, 3, padding=1), QCFS(4, 1.0)
        self.one = Block(20, 20, nn.Sequential())
        self.two = Block(20, 20, nn.Identity())
        self.three = Block(20, 70, nn.Conv2d(20, 70, 1))
        self.pool, self.last = nn.AvgPool2d(2), nn.Linear(70, 5)

    def forward(self, x):
        h = self.three(self.two(self.one(self.act(self.stem(x)))))
        return self.last(self.pool(h).mean((2, 3)))


ALL = 6  # layers whose spikes may be bits; the last pools


@pytest.fixture
def emitted(monkeypatch):
    """Counts the layers that emit bits."""
    found = []
    for name in ("layer", "bits_of"):
        operator = getattr(layer, name)

        def counted(*arguments, operator=operator, **named):
            out = operator(*arguments, **named)
            found.extend([out] if isinstance(out, Bits) else [])
            return out

        monkeypatch.setattr(layer, name, counted)
    return found


def without(patch, run):
    with patch.context() as patched:
        patched.setattr(one_pass, "waiting", lambda *_: frozenset())
        return run()


def check(network, x, emitted, patch, count):
    """Equal to what it is without, and so many layers emit bits."""
    emitted.clear()
    out = network(x)
    assert len(emitted) == count
    assert torch.equal(out, without(patch, lambda: network(x)))
    assert out.unique().numel() > 5
    return out


@pytest.mark.parametrize("settings", SETTINGS[:4], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [6, 18])
def test_bits_change_nothing(emitted, monkeypatch, dtype, settings, size):
    network, x = by_events(Net(), **settings).to(dtype), images(3, size).to(dtype)
    check(network, x, emitted, monkeypatch, ALL)
    assert all(
        torch.equal(b.values().unique(), torch.stack([b.level * 0, b.level])) for b in emitted
    )


def test_parts_of_the_batch_and_threads(emitted, monkeypatch):
    network, x = by_events(Net(), timesteps=4, rho=4), images(5, 18)
    expected = check(network, x, emitted, monkeypatch, ALL)
    for threads in (1, 3):
        torch.set_num_threads(threads)
        assert torch.equal(network(x), expected)
    torch.set_num_threads(2)
    network.memory_limit = 4 << 20
    assert torch.equal(network(x), expected)
    assert network(images(0)).shape == (4, 0, 5)


@pytest.mark.parametrize("channels", [512, 600, 2048])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_residual_of_one_pixel_whose_sum_is_pooled(emitted, monkeypatch, dtype, channels):
    torch.manual_seed(0)
    wide = Block(16, channels, nn.Conv2d(16, channels, 1))
    wide.conv1, wide.conv2 = nn.Conv2d(16, 16, 1), nn.Conv2d(16, channels, 1)
    last = Block(channels, 16, nn.Identity())
    last.conv1, last.conv2 = nn.Conv2d(channels, 16, 1), nn.Conv2d(16, channels, 1)
    model = nn.Sequential(
        *(nn.Conv2d(3, 16, 6), QCFS(4, 1.0), wide, last),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 5)),
    ).eval()
    network = by_events(model, timesteps=4, rho=4, iterations=None).to(dtype)
    x = images(3, 6).to(dtype)
    out = check(network, x, emitted, monkeypatch, 4)
    network.convolution = "dense"
    assert torch.allclose(out, network(x), atol=1e-4)


def test_levels_by_channel_are_values(emitted, monkeypatch):
    network, x = by_events(Net(), timesteps=4, rho=4), images(2)
    network.nodes()["one.act1"].v_threshold = torch.linspace(0.2, 0.4, 20)[:, None, None]
    check(network, x, emitted, monkeypatch, ALL - 1)


def test_dense_layers_read_values(emitted, monkeypatch):
    network, x = by_events(Net(), timesteps=4, rho=4), images(2)
    network.set_layer("two.conv1", convolution="dense")
    check(network, x, emitted, monkeypatch, ALL - 1)
    network.set_layer("two.conv2", convolution="dense")
    # The spikes of one.act2 are a residual of what is not in one pass.
    check(network, x, emitted, monkeypatch, ALL - 2)
    network.convolution = "dense"
    network.set_layer("two.conv1")
    network.set_layer("two.conv2")
    check(network, x, emitted, monkeypatch, 0)


def test_a_shortcut_that_changes(emitted, monkeypatch):
    network, x = by_events(Net(), timesteps=4, rho=4), images(2)
    before = check(network, x, emitted, monkeypatch, ALL)
    handle = network.module.two.shortcut.register_forward_hook(lambda m, args, out: out * 2)
    with_hook = network(x)
    assert not emitted[ALL:] and not torch.equal(with_hook, before)
    handle.remove()
    network.module.two.shortcut = nn.Hardtanh(0.0, 0.3)
    assert not torch.equal(check(network, x, emitted, monkeypatch, ALL - 1), before)
    network.module.two.shortcut = nn.Identity()
    network.module.two.shortcut.forward = lambda spikes: spikes * 2
    assert torch.equal(check(network, x, emitted, monkeypatch, ALL - 1), with_hook)


def test_who_looks_sees_values(emitted):
    network, x = by_events(Net(), timesteps=4, rho=4), images(2)
    network(x)
    emitted.clear()
    seen = []
    for module in network.module.modules():
        handle = module.register_forward_hook(lambda m, given, out: seen.extend([*given, out]))
        network(x)
        handle.remove()
    with network.record():
        network(x)
    assert not emitted
    assert len(seen) > 40 and not any(isinstance(v, (Bits, layer.Pending)) for v in seen)


def test_neurons_of_ones_own(emitted, monkeypatch):
    network, x = by_events(Net(), timesteps=4, rho=4), images(2)

    class Own(IFNode):
        def forward(self, x, residual=None):
            assert type(x) is torch.Tensor and residual is None
            return super().forward(x)

    own = Own(0.4, timesteps=4, rho=4)
    own.in_bias = network.module.two.act1.in_bias
    network.module.two.act1 = own
    check(network, x, emitted, monkeypatch, ALL - 1)


def test_weights_that_ask_for_gradients(emitted):
    network, x = by_events(Net(), timesteps=4, rho=4), images(2)
    expected = network(x)
    network.module.two.conv1.weight.requires_grad_()
    with pytest.raises(RuntimeError, match="no gradient"):
        network(x)
    with torch.no_grad():
        assert torch.equal(network(x), expected)


def test_one_module_under_two_names(monkeypatch):
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(3, 16, 3, padding=1), QCFS(4, 1.0), nn.Conv2d(16, 16, 1), QCFS(4, 0.3)),
        *(nn.Conv2d(16, 16, 1), nn.AvgPool2d(2), QCFS(4, 0.2), nn.Flatten(), nn.Linear(144, 3)),
    )
    for first, second in (("2", "4"), ("3", "6")):
        network, x = by_events(model, timesteps=4, rho=2), images(2)
        setattr(network.module, second, getattr(network.module, first))
        found = [without(monkeypatch, lambda: network(x))]  # noqa: B023  # called at once
        assert torch.equal(network(x), found[0])


def test_vmap():
    network, x = by_events(Net(), timesteps=2, calibration="none", rho=0), images(4)
    for node in network.nodes().values():
        node.inplace = False
    network.memory_limit = None
    each = torch.func.vmap(network)(x.unsqueeze(1))
    assert torch.allclose(each.squeeze(2).movedim(0, 1), network(x), atol=1e-5)


class Twice(nn.Module):
    """One Identity, called on what it gave."""

    def __init__(self):
        super().__init__()
        self.stem, self.act = nn.Conv2d(3, 20, 3, padding=1), QCFS(4, 1.0)
        self.same, self.conv, self.act1 = nn.Identity(), nn.Conv2d(20, 20, 1), QCFS(4, 0.3)

    def forward(self, x):
        return self.act1(self.conv(self.same(self.same(self.act(self.stem(x))))))


def test_a_module_that_reads_itself(emitted, monkeypatch):
    network, x = by_events(Twice(), timesteps=4, rho=4), images(2)
    assert torch.equal(network(x), without(monkeypatch, lambda: network(x)))
