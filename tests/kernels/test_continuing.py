"""IFNode whose potential goes on from call to call, or is shown after every step."""

import copy
import itertools
import pickle

import numpy
import pytest
import torch
from test_gradients import gradients, plain

from cos_ext import IFNode, functional
from cos_ext._neuron import continuing
from cos_ext._neuron.runs import Run, running
from cos_ext.surrogate import ATan, Sigmoid, Triangle


def foreign(u):
    """A surrogate that the kernels do not have."""
    return ATan(3.0)(u)


NODES = [
    {},
    {"surrogate": Triangle(0.5), "detach_reset": True},
    {"v_reset": 0.1, "surrogate": Sigmoid()},
    {"v_threshold": torch.linspace(0.5, 1.5, 5)[:, None], "v_init": 0.2},
    {"surrogate": foreign},
]
NAMES = ["soft", "detached", "hard", "a θ each", "foreign"]
CHUNKS = [(7,), (1, 6), (3, 2, 2), (1,) * 7]
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


def in_chunks(node, x, sizes):
    node.reset()
    return torch.cat([node(part) for part in x.split(sizes)])


def potentials(x, node):
    """v after every step, by the equations."""
    v, theta, found = node.v_init.expand(x.shape[1:]), node.v_threshold, []
    for current in x:
        m = v + current
        v = torch.where(m >= theta, m - theta if node.v_reset is None else node.v_reset, m)
        found.append(v)
    return torch.stack(found)


@pytest.mark.parametrize("settings", NODES, ids=NAMES)
@pytest.mark.parametrize("sizes", CHUNKS, ids=str)
def test_chunks_are_one_simulation(settings, sizes):
    whole, node = IFNode(**settings), IFNode(**settings, keep_state=True)
    for dtype in DTYPES:
        x = (1.5 * torch.rand(7, 2, 5, 6) - 0.3).to(dtype)
        spikes = in_chunks(node, x, sizes)
        assert torch.equal(spikes, whole(x))
        assert node.v.dtype == functional.state_dtype(dtype)
        leaf = x.clone().requires_grad_()
        assert torch.equal(in_chunks(node, leaf, sizes), spikes)
        last = potentials(x.to(node.v.dtype), whole)[-1]
        if dtype in (torch.float32, torch.float64):
            assert torch.equal(node.v.detach(), last)


@pytest.mark.parametrize("settings", NODES, ids=NAMES)
@pytest.mark.parametrize("sizes", CHUNKS, ids=str)
def test_the_gradient_goes_through_the_chunks(settings, sizes):
    learn = ("v_threshold", "v_init")
    whole = IFNode(**settings, learn=learn).double()
    node = IFNode(**settings, learn=learn, keep_state=True).double()
    x, weights = torch.rand(7, 2, 5, 6).double(), torch.randn(7, 2, 5, 6).double()
    spikes, (grad,) = gradients(whole, x, weights=weights)
    own, (found,) = gradients(lambda x: in_chunks(node, x, sizes), x, weights=weights)
    assert torch.equal(own, spikes) and torch.allclose(found, grad, atol=1e-12)
    for net in (whole, node):
        net.zero_grad()
        out = net(x) if net is whole else in_chunks(net, x, sizes)
        (out * weights).sum().backward()
    for name in learn:
        wanted, own = (getattr(net, name).grad for net in (whole, node))
        assert own.shape == wanted.shape and torch.allclose(own, wanted, atol=1e-11)


@pytest.mark.parametrize("settings", NODES, ids=NAMES)
def test_detach_cuts_the_gradient_between_chunks(settings):
    node = IFNode(**settings, keep_state=True).double()
    x, weights = torch.rand(6, 2, 5, 6).double(), torch.randn(6, 2, 5, 6).double()
    found, start = torch.zeros_like(x), node.v_init
    for part in (slice(0, 4), slice(4, 6)):
        leaf = x[part].clone().requires_grad_()
        (node(leaf) * weights[part]).sum().backward()
        node.detach()
        found[part] = leaf.grad

        def loop(x, start=start):
            own = (node.v_threshold, start, node.v_reset, node.surrogate, node.detach_reset)
            return plain(x, *own)

        if node.surrogate is not foreign:  # the plain loop has formulas for the kernels' alone
            wanted = gradients(loop, x[part], weights=weights[part])[1][0]
            assert torch.allclose(found[part], wanted, atol=1e-12)
        start = node.v
        assert not start.requires_grad
    assert found.any()


def test_a_potential_that_nobody_differentiates_costs_no_loop(monkeypatch):
    """In chunks without a gradient between them the backward pass is the kernel's."""

    def refuse(*_, **__):
        raise AssertionError("the plain loop ran")

    x = torch.rand(4, 3, requires_grad=True)
    node = IFNode(keep_state=True)
    node(x)
    (expected,) = torch.autograd.grad(IFNode()(x).sum() * 2, x)
    node.reset()
    monkeypatch.setattr(continuing, "loop", refuse)
    assert torch.equal(torch.autograd.grad(node(x).sum() * 2, x)[0], expected)
    node.reset()
    node(x)
    with pytest.raises(AssertionError, match="the plain loop ran"):
        node.v.sum().backward()


def test_gradients_of_one_of_the_two():
    x = torch.rand(4, 3).double()
    for settings in NODES[:3]:
        node = IFNode(**settings, keep_state=True).double()
        leaf = x.clone().requires_grad_()
        spikes, v = functional.if_forward(
            leaf,
            1.0,
            node.v_init,
            v_reset=node.v_reset,
            return_v=True,
            surrogate=node.surrogate,
            detach_reset=node.detach_reset,
        )[:2]
        (wanted,) = torch.autograd.grad(v.square().sum(), leaf)
        assert torch.equal(node(leaf), spikes)
        assert torch.allclose(torch.autograd.grad(node.v.square().sum(), leaf)[0], wanted)


@pytest.mark.parametrize("settings", NODES, ids=NAMES)
@pytest.mark.parametrize("of_v", [False, True])
def test_an_input_that_is_the_same_at_every_step(settings, of_v):
    """Expanded over time it has one gradient, the sum of those of the steps."""
    node = IFNode(**settings, keep_state=True, learn=("v_threshold", "v_init")).double()
    x, weights = torch.rand(2, 5, 6).double(), torch.randn(4, 2, 5, 6).double()
    found = []
    for over_time in (lambda x: x.expand(4, -1, -1, -1), lambda x: torch.stack([x] * 4)):
        node.reset()
        node.zero_grad()
        leaf = x.clone().requires_grad_()
        spikes = node(over_time(leaf))
        ((spikes * weights).sum() + (node.v.square().sum() if of_v else 0)).backward()
        found.append([spikes.detach(), leaf.grad, *(p.grad for p in node.parameters())])
    assert torch.equal(found[0][0], found[1][0]) and found[0][1].any()
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(*found))
    node = IFNode(**settings, timesteps=4, static_input=True, keep_state=True).double()
    leaf = x.clone().requires_grad_()
    (node(leaf).unflatten(0, (4, 2)) * weights).sum().backward()
    assert of_v or torch.allclose(leaf.grad, found[1][1], atol=1e-12)


def test_steps_and_chunks_go_on_from_each_other():
    node, x = IFNode(keep_state=True, step_mode="s"), torch.rand(6, 4)
    parts = [node(x[0])[None], node(x[1])[None]]
    node.step_mode = "m"
    parts.append(node(x[2:5]))
    node.step_mode = "s"
    parts.append(node(x[5])[None])
    assert torch.equal(torch.cat(parts), IFNode()(x))


def test_chunks_with_time_in_the_batch():
    x = torch.rand(6, 3, 4)
    node = IFNode(timesteps=2, keep_state=True, store_v_seq=True)
    spikes = [node(part.flatten(0, 1)).unflatten(0, (2, 3)) for part in x.split(2)]
    assert torch.equal(torch.cat(spikes), IFNode()(x))
    assert torch.equal(node.v_seq, potentials(x, node)[4:]) and torch.equal(node.v, node.v_seq[-1])
    static = IFNode(timesteps=3, static_input=True, keep_state=True)
    twice = torch.cat([static(x[0]), static(x[0])]).unflatten(0, (6, 3))
    assert torch.equal(twice, IFNode()(x[:1].expand(6, -1, -1)))


@pytest.mark.parametrize("settings", NODES, ids=NAMES)
def test_the_potentials_after_every_step(settings):
    whole, node = IFNode(**settings).double(), IFNode(**settings, store_v_seq=True).double()
    x, weights = torch.rand(7, 2, 5, 6).double(), torch.randn(7, 2, 5, 6).double()
    assert node.v_seq is None
    for _ in range(2):  # without keep_state a call is a whole simulation
        assert torch.equal(node(x), whole(x)) and node.v is None
        assert torch.equal(node.v_seq, potentials(x, whole))
    leaf = x.clone().requires_grad_()
    (node(leaf) * weights).sum().backward(retain_graph=True)
    assert torch.allclose(leaf.grad, gradients(whole, x, weights=weights)[1][0], atol=1e-12)
    assert torch.autograd.grad(node.v_seq.sum(), leaf)[0].any()
    for other in (copy.deepcopy(node), pickle.loads(pickle.dumps(node))):
        assert torch.equal(other.v_seq, node.v_seq) and not other.v_seq.requires_grad
    node.reset()
    assert node.v_seq is None
    node.store_v_seq = False
    node(x)
    assert node.v_seq is None


def test_what_stands_around_them():
    """A residual, scale and bias, pooled spikes, counts and statistics."""
    x, residual = torch.rand(4, 2, 3, 4, 4), torch.rand(4, 2, 3, 4, 4)
    whole, node = IFNode(timesteps=2), IFNode(timesteps=2, keep_state=True, store_v_seq=True)
    for each in (whole, node):
        each.in_scale, each.in_bias = torch.tensor(0.5), torch.full((3, 1, 1), 0.1)
        each.pool = (2, 2)
    run = Run(counts=True)
    with torch.no_grad(), running(run):
        whole.timesteps = 4
        wanted = whole(x.flatten(0, 1), residual.flatten(0, 1)).unflatten(0, (4, 2))
        pairs = zip(x.split(2), residual.split(2))
        parts = [node(a.flatten(0, 1), b.flatten(0, 1)).unflatten(0, (2, 2)) for a, b in pairs]
    assert torch.equal(torch.cat(parts), wanted)
    assert run.emitted[node][0] == run.emitted[whole][0] > 0
    assert run.emitted[node][1] == run.emitted[whole][1]
    with running(Run(statistics=True)), pytest.raises(ValueError, match="keep_state and store_v_"):
        node(x[:2].flatten(0, 1))


def test_in_place():
    node, x = IFNode(keep_state=True, inplace=True), torch.rand(4, 3)
    wanted, given = IFNode()(x), x.clone()
    spikes = node(given[:2])
    assert spikes.data_ptr() == given.data_ptr()
    assert torch.equal(torch.cat([spikes, node(given[2:])]), wanted)
    leaf = torch.rand(4, 3, requires_grad=True)
    node.reset()
    before = leaf.clone()
    node(leaf).sum().backward()
    assert torch.equal(leaf, before)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"keep_state": True, "rho": 2}, "need rho = 0.*got 2"),
        ({"store_v_seq": True, "rho": 2, "calibration": "srp"}, "need rho = 0"),
        ({"store_v_seq": True, "step_mode": "s"}, "store_v_seq needs step_mode 'm'"),
    ],
)
def test_what_does_not_fit_together(settings, message):
    with pytest.raises(ValueError, match=message):
        IFNode(**settings)
    node = IFNode()
    with pytest.raises(ValueError, match=message):
        node.configure(**settings)
    assert not node.keep_state and not node.store_v_seq


@pytest.mark.parametrize("name", ["static_input", "keep_state", "store_v_seq"])
def test_switches_are_true_or_false(name):
    node = IFNode(timesteps=2)
    for wrong in ("no", 2, None):
        with pytest.raises(TypeError, match=f"{name} must be True or False, got {wrong!r}"):
            setattr(node, name, wrong)
        with pytest.raises(TypeError, match=f"{name} must be True or False"):
            IFNode(timesteps=2, **{name: wrong})
    setattr(node, name, numpy.bool_(True))
    assert getattr(node, name) is True


@pytest.mark.parametrize("settings", [{}, {"keep_state": True}, {"store_v_seq": True}], ids=str)
def test_no_steps_are_told(settings):
    for learns in (False, True):
        with pytest.raises(ValueError, match=r"must be \[T, \*neurons\] with 1 <= T.* \(0, 3\)"):
            IFNode(**settings)(torch.rand(0, 3, requires_grad=learns))
        with pytest.raises(ValueError, match=r"must be \[T, \*neurons\] with 1 <= T.* \(\)"):
            IFNode(**settings)(torch.tensor(1.0, requires_grad=learns))


def test_what_does_not_fit_the_kept_potential():
    node = IFNode(keep_state=True)
    node(torch.rand(2, 3, 4))
    for x in (torch.rand(2, 2, 4), torch.rand(2, 3, 4).double()):
        with pytest.raises(ValueError, match=r"must fit the kept potential.*call reset\(\)"):
            node(x)
    node.reset()
    assert node(torch.rand(2, 2, 4)).shape == (2, 2, 4)
    leaf = torch.rand(2, 3, requires_grad=True)
    with pytest.raises(ValueError, match="v_reset must be finite"):
        IFNode(keep_state=True, v_reset=float("-inf"))(leaf)


def test_a_potential_that_is_left_is_told():
    node, x = IFNode(step_mode="s"), torch.rand(3, 4)
    node(x[0])
    node.step_mode = "m"
    with pytest.warns(UserWarning, match="a potential is kept from earlier calls.*keep_state=True"):
        spikes = node(x)
    assert torch.equal(spikes, IFNode()(x))
    node.reset()
    node(x)
    node.keep_state = True
    node(x)
    node(x)


def test_settings_are_seen_and_copied():
    node = IFNode(keep_state=True, store_v_seq=True)
    assert "keep_state=True, store_v_seq=True" in repr(node) and "keep_state" not in repr(IFNode())
    node(torch.rand(2, 3))
    other = pickle.loads(pickle.dumps(node))
    x = torch.rand(2, 3)
    assert other.keep_state and torch.equal(other(x), node(x))
    state = IFNode().__dict__
    new = ("keep_state", "store_v_seq", "time")
    settings = {k: v for k, v in state["_settings"].items() if k not in new}
    old = IFNode.__new__(IFNode)
    old.__setstate__({**{k: v for k, v in state.items() if k != "v_seq"}, "_settings": settings})
    assert not old.keep_state and not old.store_v_seq and old.v_seq is None
    assert torch.equal(old(x), IFNode()(x))


def test_time_comes_first_where_it_is_said():
    x = torch.rand(4, 4, 3)
    node = IFNode(timesteps=4, time="first", rho=2)
    assert torch.equal(node(x), IFNode(rho=2)(x))
    for wrong in (torch.rand(8, 3), torch.rand(3, 4, 3), torch.tensor(1.0)):
        with pytest.raises(ValueError, match="first dimension must be timesteps = 4, got shape"):
            node(wrong)
    assert "time='first'" in repr(node) and "time=" not in repr(IFNode())
    node.time = "batch"
    assert torch.equal(node(x.flatten(0, 1)).unflatten(0, (4, 4)), IFNode(rho=2)(x))
    with pytest.raises(ValueError, match=r"time must be one of \('batch', 'first'\), got 'last'"):
        node.time = "last"
    with pytest.raises(ValueError, match="static_input has no dimension for time"):
        IFNode(timesteps=4, time="first", static_input=True)
    kept = IFNode(timesteps=2, time="first", keep_state=True, store_v_seq=True)
    assert torch.equal(torch.cat([kept(part) for part in x.split(2)]), IFNode()(x))


EVERY = {
    "time": ["batch", "first"],
    "step_mode": ["m", "s"],
    "v_reset": [None, 0.1],
    "inplace": [False, True],
    "timesteps": [None, 2],
    "static_input": [False, True],
    "keep_state": [False, True],
    "store_v_seq": [False, True],
    "rho": [0, 2],
    "calibration": ["cos", "srp", "parallel", "none"],
}


def test_no_gradient_wanted_no_error():
    """Grad mode is on, and nothing requires a gradient: as without, in every mode that there is."""
    ran = 0
    for values in itertools.product(*EVERY.values()):
        settings = dict(zip(EVERY, values))
        try:
            node, other = IFNode(**settings), IFNode(**settings)
        except ValueError:  # they do not fit together
            continue
        x = torch.rand(4, 3, 2)
        x = x[:2] if node.timesteps and node.time == "first" and node.step_mode == "m" else x
        spikes = node(x.clone())
        with torch.no_grad():
            assert torch.equal(spikes, other(x.clone()))
        assert not spikes.requires_grad
        ran += 1
    assert ran > 100


def test_it_compiles():
    torch._dynamo.reset()
    node = IFNode(keep_state=True)
    x = torch.rand(4, 3, requires_grad=True)
    wanted = torch.autograd.grad(node(x).square().sum(), x)[0]
    node.reset()
    compiled = torch.compile(node, backend="aot_eager")
    assert torch.allclose(torch.autograd.grad(compiled(x).square().sum(), x)[0], wanted)
