"""IFNode where gradients are wanted."""

import copy
import pickle

import pytest
import torch
from test_gradients import gradients, plain
from torch import nn

from cos_ext import IFNode
from cos_ext import functional as F
from cos_ext.surrogate import ATan, Sigmoid, Triangle


def loop_of(node):
    return lambda x: plain(
        x, node.v_threshold, node.v_init, node.v_reset, node.surrogate, node.detach_reset
    )


NODES = [
    {},
    {"surrogate": Triangle(0.5), "detach_reset": True},
    {"v_reset": 0.1, "surrogate": Sigmoid()},
    {"v_threshold": torch.linspace(0.5, 1.5, 5)[:, None], "v_init": 0.2},
]


@pytest.mark.parametrize("settings", NODES, ids=str)
@pytest.mark.parametrize("inplace", [False, True])
def test_a_node_has_the_gradient_of_the_loop(settings, inplace):
    node, x = IFNode(**settings, inplace=inplace).double(), torch.rand(4, 2, 5, 6).double()
    weights, before = torch.randn_like(x), x.clone()
    spikes, (grad,) = gradients(node, x, weights=weights)
    wanted, (expected,) = gradients(loop_of(node), x, weights=weights)
    assert torch.equal(spikes, wanted) and torch.allclose(grad, expected, atol=1e-12)
    assert torch.equal(x, before), "nothing is written over what a gradient needs"
    with torch.no_grad():
        assert torch.equal(node(x.clone()), spikes)
    folded = IFNode(**settings, inplace=inplace, timesteps=4).double()
    flat, (grad,) = gradients(folded, x.flatten(0, 1), weights=weights.flatten(0, 1))
    assert torch.equal(flat, spikes.flatten(0, 1))
    assert torch.allclose(grad, expected.flatten(0, 1), atol=1e-12)


@pytest.mark.parametrize("settings", NODES, ids=str)
def test_step_by_step_is_the_same(settings):
    many, x = IFNode(**settings).double(), torch.rand(4, 2, 5, 6).double()
    one = IFNode(**settings, step_mode="s", inplace=True).double()
    weights = torch.randn_like(x)
    spikes, (grad,) = gradients(many, x, weights=weights)

    def steps(x):
        one.reset()
        return torch.stack([one(row) for row in x])

    alone, (single,) = gradients(steps, x, weights=weights)
    assert torch.equal(spikes, alone) and torch.allclose(grad, single, atol=1e-12)


def test_a_static_input():
    node = IFNode(timesteps=5, static_input=True).double()
    x, weights = torch.rand(2, 5, 6).double(), torch.randn(10, 5, 6).double()
    spikes, (grad,) = gradients(node, x, weights=weights)
    wanted, (expected,) = gradients(
        lambda x: loop_of(node)(x.expand(5, -1, -1, -1)).flatten(0, 1), x, weights=weights
    )
    assert torch.equal(spikes, wanted) and torch.allclose(grad, expected, atol=1e-12)


def test_what_a_node_learns():
    node = IFNode(torch.rand(5, 1) + 0.5, learn=("v_threshold", "v_init")).double()
    assert [name for name, _ in node.named_parameters()] == ["v_threshold", "v_init"]
    x, weights = torch.rand(4, 2, 5, 6).double(), torch.randn(4, 2, 5, 6).double()
    (node(x) * weights).sum().backward()
    leaves = [p.detach().clone().requires_grad_() for p in node.parameters()]
    out = plain(x, *leaves, None, ATan(), False)
    expected = torch.autograd.grad((out * weights).sum(), leaves)
    for parameter, wanted in zip(node.parameters(), expected):
        assert parameter.grad.shape == (5, 1) and torch.allclose(parameter.grad, wanted)
    fixed = IFNode(torch.rand(5, 1))
    assert not list(fixed.parameters()) and fixed.state_dict().keys() == node.state_dict().keys()
    fixed.double().load_state_dict(node.state_dict())
    assert torch.equal(fixed(x), node(x).detach())
    node.load_state_dict({"v_threshold": node.v_threshold, "v_init": torch.zeros(5, 6).double()})
    assert node.v_init.shape == (5, 6) and isinstance(node.v_init, nn.Parameter)
    half = IFNode(learn=["v_threshold"], timesteps=2)
    assert [name for name, _ in half.named_parameters()] == ["v_threshold"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        spikes = half(nn.functional.linear(torch.rand(4, 3), torch.rand(6, 3)))
        assert spikes.dtype == torch.bfloat16
    spikes.float().sum().backward()
    assert half.v_threshold.grad is not None


@pytest.mark.parametrize("learn", ["v_threshold", ("bias",), (1,)])
def test_what_it_cannot_learn(learn):
    with pytest.raises(ValueError, match="learn must be a sequence of"):
        IFNode(learn=learn)


@pytest.mark.parametrize("surrogate", [Triangle, "atan", 2.0])
def test_what_is_no_surrogate(surrogate):
    with pytest.raises(TypeError, match=r"surrogate must be one of.*such as Triangle\(\)"):
        IFNode(surrogate=surrogate)
    with pytest.raises(TypeError, match="surrogate must be one of"):
        F.if_forward(torch.rand(3, 4, requires_grad=True), 1.0, surrogate=surrogate)


def test_a_step_of_booleans_has_no_gradient_of_its_own():
    x = torch.rand(4, 3, requires_grad=True)
    spikes = IFNode(surrogate=lambda u: u >= 0)(x)
    assert torch.equal(spikes, IFNode()(x.detach()))


def test_a_threshold_that_is_learnt_away_is_told():
    node = IFNode(learn=("v_threshold",))
    with torch.no_grad():
        node.v_threshold.sub_(2)
    with pytest.raises(ValueError, match="v_threshold must be positive"):
        node(torch.rand(4, 3))


def test_calibrated_neurons_have_no_gradient():
    x = torch.rand(4, 3, requires_grad=True)
    for settings in ({"rho": 2}, {"rho": 2, "calibration": "srp"}):
        with pytest.raises(RuntimeError, match="calibration has no gradient"):
            IFNode(**settings)(x)
        assert IFNode(**settings)(x.detach()).shape == (4, 3)
    light = IFNode(calibration="light")
    light.bias = torch.tensor(0.1)
    light(x).sum().backward()
    assert x.grad.any()


def test_a_copy_of_a_node_between_steps():
    node = IFNode(0.5, step_mode="s", learn=("v_threshold",))
    node(torch.rand(4))
    other = copy.deepcopy(node)
    assert torch.equal(other.v, node.v) and node.v.requires_grad and not other.v.requires_grad


def test_copies_and_old_pickles():
    node = IFNode(surrogate=Triangle(2.0), detach_reset=True, learn=("v_threshold",))
    for other in (copy.deepcopy(node), pickle.loads(pickle.dumps(node))):
        assert other.surrogate == Triangle(2.0) and other.detach_reset
        assert isinstance(other.v_threshold, nn.Parameter)
    state = IFNode().__dict__
    old = IFNode.__new__(IFNode)
    old.__setstate__({k: v for k, v in state.items() if k not in ("surrogate", "detach_reset")})
    x = torch.rand(4, 3, requires_grad=True)
    old(x).sum().backward()
    expected = torch.autograd.grad(F.if_forward(x, 1.0).spikes.sum(), x)[0]
    assert torch.equal(x.grad, expected)


class Soft(nn.Module):
    def forward(self, u):
        return ATan(3.0)(u)


def test_a_surrogate_that_is_a_module():
    x, weights = torch.rand(4, 5).double(), torch.randn(4, 5).double()
    node = pickle.loads(pickle.dumps(IFNode(surrogate=Soft()).double()))
    one = gradients(node, x, weights=weights)[1][0]
    two = gradients(IFNode(surrogate=ATan(3.0)).double(), x, weights=weights)[1][0]
    assert torch.allclose(one, two, atol=1e-12)


class Scaled(nn.Module):
    """A surrogate that learns."""

    def __init__(self):
        super().__init__()
        self.size = nn.Parameter(torch.tensor(2.0))

    def forward(self, u):
        return self.size * ATan()(u)


def test_surrogates_follow_each_other():
    """A module is a child of the node, its parameters are the node's; a function is neither."""
    x, learnt = torch.rand(4, 5, requires_grad=True), Scaled()
    node = IFNode(surrogate=learnt)
    assert [name for name, _ in node.named_parameters()] == ["surrogate.size"]
    node(x).sum().backward()
    assert learnt.size.grad is not None
    for surrogate in (Triangle(), Soft(), ATan(3.0), Scaled(), torch.sigmoid):
        node.surrogate = surrogate
        assert node.surrogate is surrogate
        assert list(node.children()) == ([surrogate] if isinstance(surrogate, nn.Module) else [])
        kept = pickle.loads(pickle.dumps(node)).surrogate
        assert type(kept) is type(surrogate)
    assert "surrogate.size" not in node.state_dict()
    with pytest.raises(TypeError, match="surrogate must be one of"):
        node.surrogate = Triangle
    assert node.surrogate is torch.sigmoid


def test_a_loaded_start_of_another_shape_learns_as_before():
    state = {"v_threshold": torch.tensor(1.0), "v_init": torch.full((3,), 0.25)}
    for learns in (True, False):
        node = IFNode(learn=("v_init", "v_init"))
        node.v_init.requires_grad_(learns)
        node.load_state_dict(state)
        assert node.v_init.requires_grad is learns and node.v_init.shape == (3,)
        assert [name for name, _ in node.named_parameters()] == ["v_init"]


def test_a_convolutional_network_learns():
    """Where a bar lies in an image, to the last one, at T = 4."""
    torch.manual_seed(0)
    x = torch.zeros(64, 1, 8, 8)
    y = torch.arange(64) % 4
    for image, place in zip(x, y):
        image[0, 2 * place : 2 * place + 2] = 1
    x += 0.2 * torch.randn_like(x)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 8, 3, padding=1)
            self.act1 = IFNode(timesteps=4, static_input=True, learn=("v_threshold",))
            self.conv2, self.norm = nn.Conv2d(8, 8, 3, 2, padding=1), nn.BatchNorm2d(8)
            self.act2, self.last = IFNode(timesteps=4, detach_reset=True), nn.Linear(128, 4)

        def forward(self, x):
            h = self.act2(self.norm(self.conv2(self.act1(self.conv(x)))))
            return self.last(h.flatten(1)).unflatten(0, (4, -1)).mean(0)

    net = Net()
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    for _ in range(60):
        loss = nn.functional.cross_entropy(net(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (net(x).argmax(1) == y).all()
