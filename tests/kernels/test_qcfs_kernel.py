"""The kernels of QCFS: values, gradients and sums, against a loop over numbers and against the
formula in plain torch. What the module is: test_qcfs.py; its noise: test_qcfs_noise.py.
"""

import math
import os
import subprocess
import sys

import pytest
import torch
from conftest import layouts

from cos_ext import QCFS
from cos_ext.functional import state_dtype

pytestmark = pytest.mark.usefixtures("one_thread")
ops = torch.ops.cos_ext


def plain(z, theta, levels):
    """QCFS as it is written in torch, in five operations."""
    return ((z * levels / theta + 0.5).floor() / levels).clamp(0, 1) * theta


class Plain(torch.autograd.Function):
    """The same with its straight-through gradients, which have gradients themselves."""

    @staticmethod
    def forward(ctx, z, theta, levels):
        ctx.save_for_backward(z, theta)
        ctx.levels = levels
        return plain(z, theta, levels)

    @staticmethod
    def backward(ctx, grad):
        z, theta = ctx.saved_tensors
        inside = (z >= 0) & (z <= theta)
        level = plain(z, theta, ctx.levels) / theta
        return grad * inside, (grad * (level - inside * (z / theta))).sum(), None


def loop(z, theta, levels, noise, grad):
    """a, dL/dz and dL/dθ, number by number in float64."""
    a, of_z, of_theta = [], [], []
    for x, eps, g in zip(z.tolist(), noise.tolist(), grad.tolist()):
        u = x * levels / theta + eps
        k = min(max(math.floor(u + 0.5), 0), levels)
        inside = 0 <= u <= levels
        a.append(k / levels * theta)
        of_z.append(g if inside else 0.0)
        of_theta.append(g * (k / levels - (x / theta if inside else 0.0)))
    wide = torch.float64
    return torch.tensor(a, dtype=wide), torch.tensor(of_z, dtype=wide), math.fsum(of_theta)


def sample(*shape, dtype=torch.float32):
    return (torch.randn(*shape, dtype=torch.float64) * 2 + 0.5).to(dtype)


def theta_for(dtype, value=1.7):
    return torch.tensor(value, dtype=state_dtype(dtype))


@pytest.mark.parametrize("noisy", [False, True])
@pytest.mark.parametrize("levels", [1, 3, 8])
def test_against_a_loop(levels, noisy):
    z, grad = sample(5000, dtype=torch.float64), torch.randn(5000, dtype=torch.float64)
    noise = torch.rand(5000, dtype=torch.float64) - 0.5 if noisy else None
    theta = theta_for(torch.float64)
    given = (z, theta, levels, noise)
    a, of_z, of_theta = loop(z, 1.7, levels, torch.zeros(5000) if noise is None else noise, grad)
    ours = ops.qcfs_backward(grad, *given)
    assert torch.equal(ops.qcfs(*given), a)
    assert torch.equal(ours[0], of_z) and ours[1].shape == ()
    assert ours[1].item() == pytest.approx(of_theta, rel=1e-12)


@pytest.mark.parametrize("levels", [1, 2, 3, 7, 8, 100, 2**23])
@pytest.mark.parametrize("size", [0, 1, 15, 17, 255, 257, 4095, 4097, 9000])
def test_against_plain_torch(size, levels, dtype):
    z, theta, wide = sample(size, dtype=dtype), theta_for(dtype), state_dtype(dtype)
    # Edges of levels and their neighbours, and the ends of the range.
    edges = torch.arange(min(size, 2 * levels + 2)) * (1.7 / (2 * levels))
    z[: len(edges)] = edges.to(dtype)
    grad = torch.randn(size).to(dtype)
    # 16 bits: in float32, and rounded once.
    leaf, own = z.to(wide).requires_grad_(), theta.clone().requires_grad_()
    expected = Plain.apply(leaf, own, levels)
    assert torch.equal(ops.qcfs(z, theta, levels), expected.to(dtype))
    expected.backward(grad.to(wide))
    of_z, of_theta = ops.qcfs_backward(grad, z, theta, levels)
    assert torch.equal(of_z, leaf.grad.to(dtype)) and of_theta.dtype == wide
    slack = 1e-6 if wide == torch.float32 else 1e-13
    assert abs(of_theta - own.grad) <= slack * (1 + grad.double().abs().sum())


def test_special_values(dtype):
    inf = float("inf")
    z = torch.tensor([inf, -inf, float("nan"), 0.0, -0.0, 2.0, -1e-7], dtype=dtype)
    theta = theta_for(dtype, 2.0)
    a = ops.qcfs(z, theta, 4)
    assert a[[0, 1, 3, 4, 5, 6]].tolist() == [2, 0, 0, 0, 2, 0] and a[2].isnan()
    assert not a.signbit()[[1, 3, 4, 6]].any()
    finite = z.nan_to_num(posinf=inf, neginf=-inf)
    of_z, of_theta = ops.qcfs_backward(torch.ones_like(z), finite, theta, 4)
    assert of_z.tolist() == [0, 0, 1, 1, 1, 1, 0]
    assert of_theta == 1  # of +inf alone; at θ the level and z/θ cancel
    assert ops.qcfs_backward(torch.ones_like(z), z, theta, 4)[1].isnan()
    # A gradient that is not finite goes no further where nothing goes.
    grad = torch.tensor([inf, float("nan"), 1, 1, 1, 1, -inf], dtype=dtype)
    assert ops.qcfs_backward(grad, finite, theta, 4)[0].tolist() == [0, 0, 1, 1, 1, 1, 0]


@pytest.mark.parametrize("theta", [-1.5, 0.0])
def test_thresholds_that_training_may_reach(theta):
    z, theta = sample(1000), torch.tensor(theta)
    assert torch.equal(ops.qcfs(z, theta, 4).nan_to_num(7.5), plain(z, theta, 4).nan_to_num(7.5))


def test_layouts(dtype):
    source, theta = sample(2, 3, 4, 5, 6, dtype=dtype), theta_for(dtype)
    grad, noise = (torch.randn(source.shape).to(dtype) for _ in range(2))
    expected = ops.qcfs(source, theta, 4, noise)
    of_z, of_theta = ops.qcfs_backward(grad, source, theta, 4, noise)
    for name, z in layouts(source).items():
        for other, g in {**layouts(grad), "itself": grad}.items():
            eps = layouts(noise)["channels_last"]
            before = z.clone()
            a, (own, summed) = ops.qcfs(z, theta, 4, eps), ops.qcfs_backward(g, z, theta, 4, eps)
            assert torch.equal(a, expected) and torch.equal(own, of_z), (name, other)
            assert a.stride() == own.stride() == torch.empty_like(z).stride(), (name, other)
            assert torch.allclose(summed, of_theta, rtol=1e-5), (name, other)
            assert torch.equal(z, before)
    wide = ops.qcfs_backward(grad[:1, :1].expand_as(source), source, theta, 4)
    dense = ops.qcfs_backward(grad[:1, :1].expand_as(source).contiguous(), source, theta, 4)
    assert torch.equal(wide[0], dense[0]) and torch.equal(wide[1], dense[1])
    row = source[:1].expand_as(source)
    assert torch.equal(ops.qcfs(row, theta, 4), ops.qcfs(row.contiguous(), theta, 4))


def test_threads_change_no_bit(dtype):
    z, grad, theta = sample(300_001, dtype=dtype), torch.randn(300_001).to(dtype), theta_for(dtype)
    results = []
    for threads in (1, 2, 3, 7):
        torch.set_num_threads(threads)
        results.append((ops.qcfs(z, theta, 6), *ops.qcfs_backward(grad, z, theta, 6)))
    torch.set_num_threads(1)
    assert all(torch.equal(a, b) for other in results for a, b in zip(other, results[0]))


CODE = """
import hashlib, torch, cos_ext
torch.manual_seed(0)
digest = hashlib.sha256()
for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
    z, g, eps = (torch.randn(10007).to(dtype) for _ in range(3))
    theta = torch.tensor(1.3, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    for noise in (None, eps):
        for t in (torch.ops.cos_ext.qcfs(z, theta, 6, noise),
                  *torch.ops.cos_ext.qcfs_backward(g, z, theta, 6, noise)):
            digest.update(t.contiguous().flatten().view(torch.uint8).numpy().tobytes())
print(cos_ext.build_info()["cpu_capability"], digest.hexdigest())
"""


@pytest.mark.slow
def test_instruction_sets_change_no_bit():
    found = {}
    for wanted in ("baseline", "avx2", "avx512"):
        environment = {**os.environ, "COS_EXT_CPU_CAPABILITY": wanted}
        command = [sys.executable, "-c", CODE]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
        capability, digest = done.stdout.split()
        found[capability] = digest
    assert len(set(found.values())) == 1, found


BAD = {
    "z must be float32": lambda z, t, g: ops.qcfs(z.int(), t, 4),
    "threshold must be one value": lambda z, t, g: ops.qcfs(z, t.expand(3), 4),
    "in z's state dtype": lambda z, t, g: ops.qcfs(z, t.double(), 4),
    "levels must lie in 1..8388608, got 0": lambda z, t, g: ops.qcfs(z, t, 0),
    "got 8388609": lambda z, t, g: ops.qcfs(z, t, 2**23 + 1),
    "noise must have z's shape": lambda z, t, g: ops.qcfs(z, t, 4, z[:1]),
    "noise must have z's dtype": lambda z, t, g: ops.qcfs_backward(g, z, t, 4, z.double()),
    "grad must have z's shape": lambda z, t, g: ops.qcfs_backward(g[0], z, t, 4),
    "grad must have z's dtype": lambda z, t, g: ops.qcfs_backward(g.half(), z, t, 4),
}


@pytest.mark.parametrize("words", list(BAD))
def test_errors(words):
    with pytest.raises(RuntimeError, match=words):
        BAD[words](torch.randn(3, 4), torch.tensor(1.0), torch.randn(3, 4))


def test_too_many_levels():
    QCFS(2**23)
    with pytest.raises(ValueError, match="levels must be <= 8388608, got 8388609"):
        QCFS(2**23 + 1)


@pytest.mark.parametrize("noisy", [False, True])
def test_opcheck(noisy, dtype):
    z, grad = (sample(3, 4, dtype=dtype).requires_grad_() for _ in range(2))
    given = (z, theta_for(dtype).requires_grad_(), 4, torch.rand(3, 4).to(dtype) if noisy else None)
    torch.library.opcheck(ops.qcfs.default, given)
    torch.library.opcheck(ops.qcfs_backward.default, (grad, *given))


def higher(function):
    """Derivatives of derivatives, and once more."""
    torch.manual_seed(1)
    z, grad = (sample(50, dtype=torch.float64).requires_grad_() for _ in range(2))
    theta = theta_for(torch.float64).requires_grad_()
    first = torch.autograd.grad(function(z, theta, 8), (z, theta), grad, create_graph=True)
    total = (first[0] * sample(50, dtype=torch.float64)).sum() + first[1] ** 2
    second = torch.autograd.grad(total, (z, theta, grad), create_graph=True)
    third = torch.autograd.grad(sum((t**2).sum() for t in second), (z, theta, grad))
    return *second, *third


def test_higher_derivatives():
    for ours, theirs in zip(higher(ops.qcfs), higher(Plain.apply)):
        assert torch.allclose(ours, theirs, rtol=1e-12, atol=1e-12)
    # Those of a noisy one: at noise 0 the same.
    zero = torch.zeros(50, dtype=torch.float64)
    for ours, theirs in zip(higher(lambda *a: ops.qcfs(*a, zero)), higher(Plain.apply)):
        assert torch.allclose(ours, theirs, rtol=1e-12, atol=1e-12)


def test_a_threshold_with_a_shape():
    act, z = QCFS(4), sample(6, 5)
    act.threshold = torch.nn.Parameter(torch.rand(5) + 0.5)
    act(z).square().sum().backward()
    for column in range(5):
        own = QCFS(4, float(act.threshold[column].detach()))
        own(z[:, column]).square().sum().backward()
        assert torch.allclose(own.threshold.grad, act.threshold.grad[column], rtol=1e-5)
    with torch.no_grad():
        assert torch.equal(act(z), plain(z, act.threshold, 4))


def test_plain_torch_and_the_kernel_are_the_same_module(dtype):
    """Under torch.func there is no kernel."""
    act, z = QCFS(5, 1.3), sample(4, 6, dtype=dtype)
    assert torch.equal(torch.func.vmap(act)(z), act(z))
    leaf = z.clone().requires_grad_()
    act(leaf).square().sum().backward()
    assert torch.equal(torch.func.grad(lambda t: act(t).square().sum())(z), leaf.grad)
    of_theta = torch.func.grad(
        lambda p: torch.func.functional_call(act, {"threshold": p}, (z,)).square().sum()
    )(act.threshold.detach())
    assert torch.allclose(of_theta, act.threshold.grad, rtol=1e-4)


def test_autocast_keeps_the_threshold_wide():
    act, z = QCFS(8, 1.2345), sample(200, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        a = act(z)
    assert a.dtype == torch.bfloat16
    assert torch.equal(a, plain(z.float(), act.threshold, 8).bfloat16())


@pytest.mark.slow
def test_compiled_is_not_compiled(dtype):
    act, z = QCFS(4, 1.5), sample(7, 9, dtype=dtype)
    compiled = torch.compile(act, fullgraph=True)
    found = []
    for call in (act, compiled):
        act.zero_grad()
        leaf = z.clone().requires_grad_()
        a = call(leaf)
        a.square().sum().backward()
        found.append((a, leaf.grad, act.threshold.grad))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*found))
