"""What learns on a GPU: the gradients of neurons, and QCFS, bit for bit as on the CPU. Skipped
without one.

Whether the CPU's are right: test_gradients.py, test_qcfs_kernel.py. Neurons forwards: test_gpu.py.
"""

import copy
import itertools
import sys
from pathlib import Path

import pytest
import torch
from conftest import DTYPES, layouts
from on_gpu import (
    GPU,
    WHY_NOT,
    bits,
    compare,
    currents,
    gradients,
    move,
    poisoned_memory,
    skip_unless_free,
    twin,
)

import cos_ext
from cos_ext import functional as F
from cos_ext.surrogate import KERNELS

pytestmark = [
    pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT)),
    pytest.mark.usefixtures("one_thread"),
]
ops = torch.ops.cos_ext
SIZES = [1, 2, 3, 7, 8, 31, 33, 127, 128, 129, 4096, 4097]


@pytest.fixture(autouse=True)
def poisoned():
    with poisoned_memory():
        yield


def by_neuron(x):
    """θ and v_init."""
    state = F.state_dtype(x.dtype)
    return [(torch.rand(x.shape[1:]) + shift).to(state) for shift in (0.5, -0.5)]


@pytest.mark.parametrize("step", KERNELS, ids=lambda kind: kind.__name__)
def test_gradients(step, dtype):
    # A chunk of steps, several, and what is left of one; packs of neurons, and neurons alone.
    for steps, size in itertools.product((1, 3, 4, 5, 8, 9, 16, 23, 40), (67, 1024, 4097)):
        x, grad = (currents(steps, size, dtype=dtype) for _ in range(2))
        for v_reset, detach in itertools.product((None, 0.0, -0.3), (False, True)):
            options = {"surrogate": step(), "v_reset": v_reset, "detach_reset": detach}
            found = compare(gradients, x, *by_neuron(x), grad=grad, **options)
            assert all(tensor.any() for tensor in found[:3])


@pytest.mark.parametrize("layout", [*layouts(torch.zeros(2, 1, 1, 2, 2)), "static"])
def test_gradients_of_every_layout(layout, dtype):
    for steps, neurons in itertools.product((4, 11), ((3, 5, 6, 7), (2, 8, 4, 4))):
        x, grad = (currents(steps, *neurons, dtype=dtype) for _ in range(2))
        every = {**layouts(x), "static": x[:1].expand_as(x)}
        for other in (*layouts(grad).values(), grad[:1, :1, :1].expand_as(grad)):
            compare(gradients, every[layout], *by_neuron(x), grad=other)


@pytest.mark.parametrize("names", [("bias",), ("residual",), ("bias", "residual")], ids="+".join)
def test_gradients_of_what_is_fused(names, dtype):
    for steps, neurons in itertools.product((1, 6, 21), ((3, 5, 6, 7), (2, 8, 4, 4))):
        source, other, grad = (currents(steps, *neurons, dtype=dtype) for _ in range(3))
        bias = by_neuron(source)[1]
        for x, residual in zip(layouts(source).values(), [other, *layouts(other).values()]):
            every = {"bias": bias, "residual": residual}
            fused = {name: every[name] for name in names}
            for v_reset in (None, 0.2):
                compare(gradients, x, *by_neuron(x), grad=grad, fused=fused, v_reset=v_reset)


def test_gradients_of_what_neurons_share(dtype):
    """Summed in another order on each device."""
    x, grad = (currents(9, 3, 5, 6, 8, dtype=dtype) for _ in range(2))
    theta = (torch.rand(5, 1, 1) + 0.5).to(F.state_dtype(dtype))
    ours = gradients(move(x), move(theta), move(theta / 2), grad=grad)
    expected = gradients(x, theta, theta / 2, grad=grad)
    for a, b in zip(ours[:3], expected):
        assert torch.allclose(a.cpu(), b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("noisy", [False, True])
def test_qcfs(noisy, dtype):
    theta = torch.tensor(1.1, dtype=F.state_dtype(dtype))
    for x in (*(currents(size, dtype=dtype) for size in (*SIZES, 1_000_003)), currents(0)):
        grad = torch.randn(x.shape).to(x.dtype)
        noise = (torch.rand(x.shape) - 0.5).to(x.dtype) if noisy else None
        own = theta.to(F.state_dtype(x.dtype))
        results = []
        for to in (move, lambda value: value):
            given = to(x), to(own), 5, to(noise)
            a = torch.ops.cos_ext.qcfs(*given)
            results.append((a, *torch.ops.cos_ext.qcfs_backward(to(grad), *given)))
        ours, theirs = results
        assert torch.equal(bits(ours[0]), bits(theirs[0]))
        assert torch.equal(bits(ours[1]), bits(theirs[1]))
        # The sum is in float64, in another order, and the same every time.
        slack = 2e-7 if dtype != torch.float64 else 1e-14
        assert abs(ours[2].cpu() - theirs[2]) <= slack * (1 + grad.double().abs().sum())
        again = torch.ops.cos_ext.qcfs_backward(move(grad), move(x), move(own), 5, move(noise))
        assert torch.equal(again[1], ours[2])


@pytest.mark.parametrize("noise", [None, "residual", "adaptor"])
def test_qcfs_module(noise):
    act = cos_ext.QCFS(8, 2.0, noise).to(GPU)
    for x in layouts(currents(2, 3, 8, 5, 7)).values():
        z = twin(x).requires_grad_()
        act(z).sum().backward()
        assert z.grad.stride() == torch.empty_like(x).stride() and z.grad.isfinite().all()
    assert act.threshold.grad.isfinite()
    assert torch.equal(act.eval()(z).cpu(), copy.deepcopy(act).cpu()(z.detach().cpu()))


def quantised(z, grad, theta, noise=None):
    """What both kernels give: a, the gradient of z, and that of θ."""
    given = (z, theta, 5, noise)
    return (ops.qcfs(*given), *ops.qcfs_backward(grad, *given))


def test_qcfs_of_every_layout(dtype):
    theta = torch.tensor(1.1, dtype=F.state_dtype(dtype))
    source, other, noise = (currents(2, 3, 8, 5, 7, dtype=dtype) for _ in range(3))
    noise = noise.clamp(-0.5, 0.5)
    for z in (*layouts(source).values(), source[:1].expand_as(source)):
        for grad in (*layouts(other).values(), other[:1, :1].expand_as(other)):
            ours = quantised(twin(z), twin(grad), move(theta), move(noise))
            theirs = quantised(z, grad, theta, noise)
            for a, b in zip(ours[:2], theirs):
                assert a.stride() == b.stride() and torch.equal(bits(a), bits(b))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_learning_from_nan_and_infinity(value, dtype):
    x, grad = (currents(9, 4, 130, dtype=dtype) for _ in range(2))
    x[torch.rand(x.shape) < 0.1] = value
    for v_reset in (None, 0.0):
        compare(gradients, x, *by_neuron(x), grad=grad, v_reset=v_reset)
    theta = torch.tensor(1.1, dtype=F.state_dtype(dtype))
    ours, theirs = (quantised(to(x), to(grad), to(theta)) for to in (move, lambda tensor: tensor))
    assert all(torch.equal(bits(a), bits(b)) for a, b in zip(ours[:2], theirs))


@pytest.mark.parametrize(
    "learn", [("v_threshold",), ("v_init",), ("v_threshold", "v_init")], ids=str
)
def test_a_node_that_learns(learn):
    x, grad = (currents(6, 3, 5, 8) for _ in range(2))
    node = cos_ext.IFNode(torch.rand(5, 1) + 0.5, v_init=0.25, learn=learn)
    found = []
    for own, to in ((copy.deepcopy(node).to(GPU), move), (node, lambda tensor: tensor)):
        z = to(x).requires_grad_()
        own(z).backward(to(grad))
        found.append((z.grad, *(p.grad for p in own.parameters())))
    assert len(found[1]) == 1 + len(learn)
    assert torch.equal(bits(found[0][0]), bits(found[1][0]))
    for ours, theirs in zip(found[0][1:], found[1][1:]):  # sums in another order
        assert torch.allclose(ours.cpu(), theirs, rtol=1e-5, atol=1e-6)


def test_gradients_are_the_same_every_time(dtype):
    x, grad = (currents(12, 100_003, dtype=dtype).to(GPU) for _ in range(2))
    theta, v_init = (torch.full_like(x[0], value) for value in (1.0, 0.5))
    state = F.state_dtype(dtype)
    given = (theta.to(state), v_init.to(state))
    expected = gradients(x, *given, grad=grad)
    for _ in range(10):
        again = gradients(x, *given, grad=grad)
        assert all(torch.equal(a, b) for a, b in zip(again[:3], expected))


def test_a_graph_of_a_training_step():
    """Forwards and backwards, replayed with other currents."""
    torch.use_deterministic_algorithms(False)
    act, node = cos_ext.QCFS(8, 2.0).to(GPU), cos_ext.IFNode(1.0).to(GPU)
    x, grad = (torch.zeros(10, 3, 129, device=GPU) for _ in range(2))

    def step():
        z, u = x.detach().requires_grad_(), x.detach().requires_grad_()
        spikes, a = node(z), act(u)
        return (
            *torch.autograd.grad(spikes, z, grad),
            *torch.autograd.grad(a, (u, act.threshold), grad),
        )

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = step()
    for _ in range(3):
        x.copy_(currents(10, 3, 129))
        grad.copy_(currents(10, 3, 129))
        graph.replay()
        torch.cuda.synchronize()
        for ours, expected in zip(found, step()):
            assert torch.equal(ours, expected) and ours.any()


def test_launches_of_qcfs(monkeypatch):
    """One forwards; backwards one more, and torch's sum of the parts. No copy, no wait."""
    torch.use_deterministic_algorithms(False)
    monkeypatch.setattr(sys, "path", [str(Path(__file__).parents[2] / "bench"), *sys.path])
    from gpu_layer import graph_nodes

    z, theta = currents(3, 5, 1025).to(GPU), torch.tensor(1.1, device=GPU)
    assert graph_nodes(lambda: ops.qcfs(z, theta, 5)) == [0]
    backwards = graph_nodes(lambda: ops.qcfs_backward(z, z, theta, 5))
    kernel, memset = 0, 2
    assert backwards.count(kernel) >= 2 and set(backwards) <= {kernel, memset}
    torch.cuda.set_sync_debug_mode("error")
    try:
        ops.qcfs_backward(z, z, theta, 5)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("shape", [(2, 2**30 + 3), (1, 2**31 + 5)], ids=["time", "neurons"])
def test_learning_from_more_than_2_31_elements(shape):
    torch.use_deterministic_algorithms(False)
    skip_unless_free(32)
    x = torch.empty(shape, dtype=torch.float16, device=GPU)
    for part in x.view(-1).split(2**28):
        part.normal_(0.35, 1.2)
    theta = torch.tensor(1.1, device=GPU)

    def back(z):
        settings = (None, 1.0, None, 0.25, None, 0, 2.0, False, False, False)
        return ops.if_backward(z, z, *settings)[0]

    calls = (back, lambda z: ops.qcfs(z, theta, 5), lambda z: ops.qcfs_backward(z, z, theta, 5)[0])
    last = shape[-1]
    for call in calls:
        whole = call(x)
        for start in range(0, last, 2**27):
            stretch = slice(start, min(start + 2**27, last))
            assert torch.equal(whole[..., stretch], call(x[..., stretch].contiguous()))
        assert whole.any()
        del whole
    del x
    torch.cuda.empty_cache()


@pytest.mark.parametrize("kind", DTYPES, ids=lambda kind: str(kind).removeprefix("torch."))
def test_short_run_of_learning_for_compute_sanitizer(kind):
    # bench/gpu_run.sh runs this under memcheck and racecheck.
    torch.use_deterministic_algorithms(False)
    theta = torch.tensor(1.1, dtype=F.state_dtype(kind))
    for size in (1, 33, 4097):
        for steps in (3, 19):
            x = currents(steps, size, dtype=kind)
            compare(gradients, x, torch.ones_like(x[0]), torch.rand_like(x[0]), grad=x)
        ours, theirs = (quantised(to(x), to(x), to(theta)) for to in (move, lambda tensor: tensor))
        assert all(torch.equal(bits(a), bits(b)) for a, b in zip(ours[:2], theirs))
