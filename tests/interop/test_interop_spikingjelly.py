"""The neuron with SpikingJelly's contract: against what record_learning.py recorded of its own, and
by itself. SpikingJelly is not needed; where it is installed the same must hold.
"""

from __future__ import annotations

import copy
import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from cos_ext import surrogate
from cos_ext.interop._memory import MemoryModule
from cos_ext.interop.spikingjelly import FUSED, IFNode

with np.load(Path(__file__).parents[1] / "golden" / "spikingjelly_learning.npz") as record:
    RECORD = {name: record[name] for name in record.files}
X, OF_SPIKES, OF_V = (torch.from_numpy(RECORD[name]) for name in ("x", "of_spikes", "of_v"))
CASES = range(len(RECORD["spikes"]))
FIRST = 5  # steps of the first call, record_learning.py


def theirs(name, alpha, spiking=True):
    """What stands for SpikingJelly's surrogate of that name: the same by all that is looked at."""

    def call(self, x):
        return FUSED[name](alpha)(x) if self.spiking else torch.sigmoid(x)

    body = {"__module__": "spikingjelly.activation_based.surrogate", "__call__": call}
    made = type(name, (), body)()
    made.alpha, made.spiking = alpha, spiking
    return made


def name_of(n):
    return "-".join(
        str(RECORD[k][n]) for k in ("surrogate", "v_threshold", "v_reset", "detach_reset")
    )


def node_of(n, function=None, **settings):
    name, v_reset = str(RECORD["surrogate"][n]), float(RECORD["v_reset"][n])
    return IFNode(
        float(RECORD["v_threshold"][n]),
        None if math.isnan(v_reset) else v_reset,
        function or theirs(name, 2.0 if name == "ATan" else 4.0 if name == "Sigmoid" else 1.0),
        bool(RECORD["detach_reset"][n]),
        **settings,
    )


def run(node, x):
    """Two calls without a reset between them, or eight in step mode "s"; and what is recorded."""
    x = x.clone().requires_grad_()
    if node.step_mode == "s":
        spikes = torch.stack([node(row) for row in x])
    else:
        spikes = torch.cat([node(x[:FIRST]), node(x[FIRST:])])
    ((OF_SPIKES * spikes).sum() + (OF_V * node.v).sum()).backward()
    return spikes.detach(), node.v.detach(), x.grad


@pytest.mark.parametrize("n", CASES, ids=name_of)
@pytest.mark.parametrize("step_mode", ["s", "m"])
def test_spikes_potentials_and_gradients_are_spikingjellys(n, step_mode):
    spikes, v_seq, grad = (
        torch.from_numpy(RECORD[name][n]) for name in ("spikes", "v_seq", "grad")
    )
    for stored in (False, True):
        node = node_of(n, step_mode=step_mode, store_v_seq=stored)
        own, v, own_grad = run(node, X)
        assert torch.equal(own, spikes.float())
        assert torch.equal(v, v_seq[-1])
        assert torch.allclose(own_grad, grad, rtol=1e-4, atol=1e-5)
        if stored:
            assert torch.equal(node.v_seq, v_seq if step_mode == "s" else v_seq[FIRST:])


@pytest.mark.parametrize("n", CASES, ids=name_of)
def test_the_kernels_and_plain_torch_agree(n):
    known = node_of(n, step_mode="m")
    other = node_of(n, lambda u: known.surrogate_function(u), step_mode="m")
    assert known._kernel() is not None and other._kernel() is None
    for own, plain in zip(run(known, X.double()), run(other, X.double())):
        assert torch.allclose(own, plain, rtol=0, atol=1e-12)
    with torch.no_grad():
        known.reset()
        spikes = torch.cat([known(X[:FIRST]), known(X[FIRST:])])
    assert torch.equal(spikes, torch.from_numpy(RECORD["spikes"][n]).float())


@pytest.mark.parametrize("kind", surrogate.KERNELS)
@pytest.mark.parametrize("theta", [0.5, 1.0, 2.0])
def test_this_librarys_surrogates_are_functions_of_the_distance_to_the_threshold(kind, theta):
    function = kind(0.7)
    for v_reset in (None, 0.1):
        known = IFNode(theta, v_reset, function, step_mode="m")
        other = IFNode(theta, v_reset, lambda u: function(u), step_mode="m")
        for own, plain in zip(run(known, theta * X.double()), run(other, theta * X.double())):
            assert own.any() and torch.allclose(own, plain, rtol=0, atol=1e-12)
    x = torch.tensor([[1.5 * theta], [0.0]], dtype=torch.float64, requires_grad=True)
    IFNode(theta, None, function, step_mode="m")(x)[0].sum().backward()
    assert torch.allclose(x.grad[0], function.derivative(x.detach()[0] - theta))


def test_which_surrogates_the_kernels_take():
    for name, kind in FUSED.items():
        assert IFNode(0.5, surrogate_function=theirs(name, 3.0))._kernel() == kind(1.5)
    assert IFNode()._kernel() == surrogate.Sigmoid(4.0)
    assert IFNode(2.0, surrogate_function=surrogate.Triangle(0.5))._kernel() == surrogate.Triangle()
    fast = surrogate.FastSigmoid(2.0)
    assert IFNode(surrogate_function=fast)._kernel() == fast
    assert IFNode(2.0, surrogate_function=fast)._kernel() is None
    refused = [theirs("SoftSign", 2.0), theirs("ATan", 2.0, spiking=False), theirs("ATan", -1.0)]
    learnt = theirs("ATan", nn.Parameter(torch.tensor(2.0)))
    homonym = type("ATan", (), {"__call__": lambda self, u: u, "alpha": 2.0, "spiking": True})()
    for function in (*refused, learnt, homonym, torch.sigmoid):
        assert IFNode(surrogate_function=function)._kernel() is None
    node = IFNode()
    node.v_threshold = torch.tensor([0.5, 2.0])
    assert node._kernel() is None
    assert node(torch.ones(3, 2)).tolist() == [[1, 0]] * 3


def test_a_surrogate_that_does_not_spike_is_called():
    node = IFNode(surrogate_function=theirs("ATan", 2.0, spiking=False), v_reset=None)
    x = torch.rand(2, 3)
    assert torch.equal(node(x), torch.sigmoid(x - 1.0))
    assert torch.equal(node.v, x - torch.sigmoid(x - 1.0))


def test_the_state_goes_on_until_reset():
    node, x = IFNode(1.0, -0.5, step_mode="m"), torch.rand(6, 2, 3)
    assert node.v == -0.5
    whole = node(x)
    node.reset()
    assert node.v == -0.5
    parts = [node(x[:2]), node(x[2:3])]
    node.step_mode = "s"
    parts += [node(row)[None] for row in x[3:]]
    assert torch.equal(torch.cat(parts), whole)
    assert node(torch.full((4,), 1.25)).tolist() == [0.0] * 4  # another shape starts anew
    assert node.v.tolist() == [0.75] * 4
    node.double()
    assert node.v.dtype == torch.float64
    node(torch.rand(4).half())
    assert node.v.dtype == torch.float16


def test_detach_keeps_the_potential_and_cuts_the_graph():
    node, x = IFNode(step_mode="m", store_v_seq=True), torch.rand(3, 2, requires_grad=True)
    node(x)
    before = node.v.clone()
    node.detach()
    assert torch.equal(node.v, before) and not node.v.requires_grad
    assert not node.v_seq.requires_grad
    y = torch.rand(3, 2, requires_grad=True)
    node(y).sum().backward()
    assert x.grad is None and y.grad.any()


def test_v_seq():
    node, x = IFNode(step_mode="m"), torch.rand(4, 3)
    node(x)
    assert node.v_seq is None
    node.store_v_seq = True
    node(x)
    assert node.v_seq.shape == (4, 3) and torch.equal(node.v_seq[-1], node.v)
    node.reset()
    assert node.v_seq is None
    node.step_mode = "s"
    node(x[0])
    node(x[1, :2])
    assert node.v_seq.shape == (1, 2)  # neurons of another shape
    node.store_v_seq = False
    assert node.v_seq is None


def test_copies():
    node = IFNode(0.5, None, surrogate.ATan(), True, "m", store_v_seq=True)
    node(torch.rand(3, 2, requires_grad=True))
    for other in (copy.deepcopy(node), pickle.loads(pickle.dumps(node))):
        assert torch.equal(other.v, node.v) and not other.v.requires_grad
        assert torch.equal(other.v_seq, node.v_seq) and repr(other) == repr(node)
        other.reset()
        assert other.v == 0.0 and isinstance(node.v, torch.Tensor)
    assert "v_threshold=0.5, v_reset=None, detach_reset=True, step_mode=m" in repr(node)


def test_nothing_is_in_a_state_dict():
    net = nn.Sequential(nn.Linear(3, 2), IFNode())
    net(torch.rand(1, 3))
    assert list(net.state_dict()) == ["0.weight", "0.bias"]
    net.load_state_dict(net.state_dict())
    assert not list(net[1].parameters())


def test_backends():
    node = IFNode(step_mode="m", backend="triton")
    assert node.backend == "triton" and "cupy" in node.supported_backends
    with pytest.raises(NotImplementedError, match="must be one of .*'cupy'.* got 'metal'"):
        node.backend = "metal"
    with pytest.raises(NotImplementedError, match="step mode 's'"):
        IFNode(backend="triton")


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"v_threshold": "1"}, TypeError, "v_threshold must be a float"),
        ({"v_reset": torch.zeros(1)}, TypeError, "v_reset must be a float"),
        (
            {"surrogate_function": surrogate.ATan},
            TypeError,
            "surrogate_function must be a function",
        ),
        ({"surrogate_function": "atan"}, TypeError, "surrogate_function must be a function"),
        ({"step_mode": "x"}, ValueError, "step_mode"),
    ],
)
def test_what_is_refused(settings, error, message):
    with pytest.raises(error, match=message):
        IFNode(**settings)


def test_no_steps_are_told():
    for settings in ({}, {"store_v_seq": True}, {"surrogate_function": torch.sigmoid}):
        node = IFNode(step_mode="m", **settings)
        with pytest.raises(ValueError, match=r"must be \[T, \*neurons\] with 1 <= T.* \(0, 3\)"):
            node(torch.rand(0, 3))
        with pytest.raises(ValueError, match=r"must be \[T, \*neurons\] with 1 <= T.* \(\)"):
            node(torch.tensor(1.0))
        assert node.v == 0.0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision(dtype):
    node, x = IFNode(0.3, None, step_mode="m"), torch.rand(6, 5).to(dtype)
    spikes = node(x)
    assert (
        spikes.dtype == dtype and node.v.dtype == dtype and set(spikes.unique().tolist()) == {0, 1}
    )
    theta = torch.tensor(0.3).to(dtype).float()
    v = torch.zeros(5)
    for row, own in zip(x.float(), spikes):
        fired = v + row >= theta
        v = v + row - theta * fired
        assert torch.equal(own != 0, fired)


def test_functional_forms_touch_no_memory():
    node, x = IFNode(0.5), torch.rand(4, 3)
    (spikes,), (v,) = node.multi_step_functional_forward((x,), (0.0,))
    assert node.v == 0.0
    (first,), (after,) = node.single_step_functional_forward((x[0],), (0.0,))
    assert torch.equal(first, spikes[0]) and node.v == 0.0
    (rest,), (last,) = node.multi_step_functional_forward((x[1:],), (after,))
    assert torch.equal(rest, spikes[1:]) and torch.equal(last, v)
    assert torch.equal(node.multi_step_forward(x), spikes) and torch.equal(node.v, v)


def test_it_compiles():
    node = IFNode(0.5, surrogate_function=surrogate.ATan(), step_mode="m")
    x = torch.rand(4, 3, requires_grad=True)
    expected = torch.autograd.grad(node(x).square().sum(), x)[0]
    node.reset()
    compiled = torch.compile(lambda x: node(x).square(), backend="aot_eager")
    assert torch.allclose(torch.autograd.grad(compiled(x).sum(), x)[0], expected)


def test_no_second_derivative():
    x = torch.rand(4, 3, requires_grad=True)
    node = IFNode(step_mode="m")
    (grad,) = torch.autograd.grad(node(x).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="first derivative alone"):
        torch.autograd.grad(grad.sum(), x)
    with pytest.raises(RuntimeError, match="first derivative alone"):
        torch.autograd.grad(node.v.sum(), x, create_graph=True)


def test_memories_without_spikingjelly():
    class Counter(MemoryModule):
        def __init__(self):
            super().__init__()
            self.register_memory("seen", 0)
            self.register_memory("last", torch.zeros(2))

        def forward(self, x):
            self.seen, self.last = self.seen + 1, x
            return x

    module = Counter()
    module(torch.ones(2, requires_grad=True) * 2)
    assert dict(module.named_memories())["seen"] == 1 and list(module.memories()) != [0]
    assert module.double().last.dtype == torch.float64 and not module.state_dict()
    module.detach()
    assert not module.last.requires_grad
    copied = copy.deepcopy(module)
    module.reset()
    assert module.seen == 0 and module.last.tolist() == [0, 0] and copied.seen == 1
    module.last += 1
    module.reset()
    assert module.last.tolist() == [0, 0]
    del module.seen
    assert not hasattr(module, "seen")
    with pytest.raises(ValueError, match="step_mode"):
        module.step_mode = "t"
    with pytest.raises(AssertionError, match="last is an attribute already"):
        module.register_memory("last", 1)
