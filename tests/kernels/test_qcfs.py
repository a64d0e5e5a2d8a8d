"""The QCFS activation: values, gradients, module behaviour. No spiking neurons: test_properties.py
compares those.
"""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cos_ext import QCFS

pytestmark = pytest.mark.usefixtures("one_thread")

FLOATS = (torch.float64, torch.float32, torch.bfloat16)

positive = st.floats(2**-10, 2**10).map(lambda value: float(np.float32(value)))
levels_ = st.integers(1, 64)


@st.composite
def currents(draw, most=40):
    """L, θ and a vector z: ordinary values, the ends of the range, the steps' edges and their
    neighbours.
    """
    levels, theta = draw(levels_), draw(positive)
    share = st.one_of(
        st.floats(-0.5, 1.5),
        st.floats(-1e6, 1e6),
        st.sampled_from([0.0, -0.0, 1.0]),
        st.integers(-1, 2 * levels + 1).map(lambda edge: edge / (2 * levels)),
    )
    z = np.array(draw(st.lists(share, min_size=1, max_size=most))) * theta
    z = np.concatenate([z, np.nextafter(z, np.inf), np.nextafter(z, -np.inf), [0.0, theta]])
    return levels, theta, np.where(np.abs(z) < 1e-300, 0.0, z)  # z / θ must not underflow to zero


def formula(z, theta, levels):
    return theta * np.clip(np.floor(z * levels / theta + 0.5) / levels, 0, 1)


def composite(z, theta, levels):
    """QCFS as the paper's authors compose it of torch operations, floor being straight-through."""
    ratio = z / theta
    # torch.clamp, with the gradient 1 at both ends that it had when the authors wrote (torch 2.14
    # changed it).
    clipped = (
        torch.where((ratio >= 0) & (ratio <= 1), ratio, ratio.detach().clamp(0, 1)) * levels + 0.5
    )
    floored = clipped + (torch.floor(clipped) - clipped).detach()
    return floored / levels * theta


@settings(max_examples=200, deadline=None)
@given(currents())
def test_forward_is_the_formula(case):
    levels, theta, z = case
    out = QCFS(levels, theta)(torch.from_numpy(z)).detach().numpy()
    assert np.array_equal(out, formula(z, theta, levels))
    counts = out * levels / theta
    assert np.abs(counts - np.round(counts)).max() < 1e-9 and out.min() >= 0 and out.max() <= theta


@settings(max_examples=100, deadline=None)
@given(currents())
def test_forward_in_float32(case):
    levels, theta, z = case
    z = z.astype(np.float32)
    out = QCFS(levels, theta)(torch.from_numpy(z))
    assert out.dtype == torch.float32
    expected = formula(z.astype(np.float64), theta, levels)
    edge = z.astype(np.float64) * levels / theta + 0.5
    settled = np.abs(edge - np.round(edge)) > 1e-5 * np.maximum(
        1, np.abs(edge)
    )  # elsewhere rounding decides the step
    assert np.allclose(out.detach().numpy()[settled], expected[settled], rtol=1e-6, atol=0)


def gradients(function, z, theta, upstream):
    z, theta = z.clone().requires_grad_(), theta.clone().requires_grad_()
    out = function(z, theta)
    return out.detach(), *torch.autograd.grad(out, (z, theta), upstream)


def module_of(levels):
    def function(z, theta):
        module = QCFS(levels)
        del module.threshold
        module.threshold = theta
        return module(z)

    return function


@settings(max_examples=200, deadline=None)
@given(currents(), st.integers(0, 2**32 - 1))
def test_gradients_are_those_of_the_composite(case, seed):
    levels, theta, z = case
    upstream = torch.from_numpy(np.random.default_rng(seed).normal(size=z.shape))
    z, theta = torch.from_numpy(z), torch.tensor(theta, dtype=torch.float64)
    _, grad_z, grad_theta = gradients(module_of(levels), z, theta, upstream)
    out, expected_z, expected_theta = gradients(
        lambda *both: composite(*both, levels), z, theta, upstream
    )
    assert torch.allclose(grad_z, expected_z, rtol=1e-12, atol=1e-12)
    # Where the two forms of the formula round a step's edge differently, they are a step apart, and
    # so are da/dθ.
    same = torch.isclose(out, QCFS(levels, float(theta))(z), rtol=1e-9, atol=0)
    slack = (upstream.abs() * ~same).sum() / levels
    assert abs(grad_theta - expected_theta) <= slack + 1e-9 * (1 + upstream.abs().sum())


@pytest.mark.parametrize("levels", [1, 2, 3, 8, 16])
def test_gradients_at_the_ends(levels):
    theta = torch.tensor(1.5, dtype=torch.float64)
    below, above = np.nextafter(0, -1), np.nextafter(1.5, 2)
    z = torch.tensor([-3.0, below, 0.0, 0.0625, 0.75, 1.4, 1.5, above, 9.0], dtype=torch.float64)
    out, grad_z, _ = gradients(module_of(levels), z, theta, torch.ones_like(z))
    assert grad_z.tolist() == [0, 0, 1, 1, 1, 1, 1, 0, 0]
    assert out[2] == 0 and out[6] == out[7] == out[8] == 1.5
    for position, value in enumerate(z):
        upstream = torch.zeros_like(z)
        upstream[position] = 2.0
        _, _, grad_theta = gradients(module_of(levels), z, theta, upstream)
        assert torch.isclose(
            grad_theta,
            2 * (out[position] - grad_z[position] * value) / theta,
            rtol=1e-12,
            atol=1e-15,
        )
        expected = gradients(lambda *both: composite(*both, levels), z, theta, upstream)[2]
        assert torch.isclose(grad_theta, expected, rtol=1e-12, atol=1e-15)


def test_frozen_inputs():
    module = QCFS(4, 2.0)
    z = torch.randn(3, 5)
    assert not module.requires_grad_(False)(z).requires_grad
    (module(z.requires_grad_()) ** 2).sum().backward()
    assert z.grad is not None and module.threshold.grad is None
    module.requires_grad_(True)
    module(z.detach()).sum().backward()
    assert module.threshold.grad.shape == ()


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (7,), (2, 3, 4, 5)])
def test_shape_and_dtype(dtype, shape):
    module = QCFS(8, 2.0)
    z = torch.randn(shape).mul(2).to(dtype).requires_grad_()
    out = module(z)
    assert out.shape == shape and out.dtype == dtype
    # Powers of two: every step is exact in every dtype, so all dtypes must give the same numbers.
    assert np.array_equal(
        out.detach().double().numpy(), formula(z.detach().double().numpy(), 2.0, 8)
    )
    out.sum().backward()
    assert z.grad.dtype == dtype and z.grad.shape == shape
    assert module.threshold.grad.dtype == torch.float32 and module.threshold.grad.shape == ()
    if dtype == torch.bfloat16 and shape:
        twin = QCFS(8, 2.0)
        wide = z.detach().float().requires_grad_()
        twin(wide).sum().backward()
        assert torch.equal(z.grad.float(), wide.grad)
        assert torch.allclose(module.threshold.grad, twin.threshold.grad, rtol=0.02, atol=0.02)


def test_strided_input_is_left_alone():
    z = torch.randn(6, 4, 5).transpose(0, 2)[:, ::2]
    before = z.clone()
    assert torch.equal(QCFS(4, 1.0)(z), QCFS(4, 1.0)(z.contiguous()))
    assert torch.equal(z, before)


def test_extreme_inputs():
    out = QCFS(4, 2.0)(torch.tensor([float("inf"), -float("inf"), 3e38, -3e38, float("nan")]))
    assert out[:4].tolist() == [2, 0, 2, 0] and out[4].isnan()


@pytest.mark.parametrize(
    "levels, error",
    [(0, ValueError), (-3, ValueError), (4.0, TypeError), (True, TypeError), ("4", TypeError)],
)
def test_bad_levels(levels, error):
    with pytest.raises(error, match="levels"):
        QCFS(levels)


@pytest.mark.parametrize("threshold", [0.0, -1.0, float("inf"), float("nan")])
def test_bad_threshold(threshold):
    with pytest.raises(ValueError, match="threshold must be positive and finite"):
        QCFS(4, threshold)


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool, torch.complex64], ids=str)
def test_input_must_be_floating_point(dtype):
    with pytest.raises(TypeError, match=str(dtype)):
        QCFS(4)(torch.ones(3).to(dtype))


def test_module_state():
    module = QCFS(6, 2.5)
    assert list(module.state_dict()) == ["threshold"] and module.threshold.shape == ()
    twin = copy.deepcopy(module)
    twin.threshold.data.fill_(1.0)
    assert module.threshold.item() == 2.5 and twin.levels == 6
    twin.load_state_dict(module.state_dict())
    z = torch.randn(50)
    assert torch.equal(twin(z), module(z))
    assert repr(module) == "QCFS(levels=6, threshold=2.5)"
    assert module.double().threshold.dtype == torch.float64


def test_threshold_learns():
    z = torch.rand(512) * 3
    target = torch.from_numpy(formula(z.double().numpy(), 2.0, 8)).float()
    module = QCFS(8, 0.5)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.5)
    for _ in range(200):
        loss = ((module(z) - target) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert 1.9 < module.threshold.item() < 2.1 and loss < 0.02


def test_trains_under_torch_compile():
    # aot_eager: the graph is captured, fullgraph and with its backward, and run by PyTorch; no C++
    # compiler is needed.
    plain = nn.Sequential(nn.Linear(6, 5), QCFS(4, 2.0), nn.Linear(5, 3), QCFS(2, 1.0))
    twin = copy.deepcopy(plain)
    compiled = torch.compile(twin, backend="aot_eager", fullgraph=True)
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.1) for model in (plain, twin)]
    for _ in range(3):
        x = torch.randn(16, 6) * 3
        twin.load_state_dict(
            plain.state_dict()
        )  # the traced backward may sum in another order, and a level may then flip
        outputs = [model(x) for model in (plain, compiled)]
        assert torch.equal(*outputs)
        for output, optimizer in zip(outputs, optimizers):
            optimizer.zero_grad()
            output.square().sum().backward()
        for ours, theirs in zip(plain.parameters(), twin.parameters()):
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-4)
        optimizers[0].step()
    assert plain[1].threshold.item() != 2.0


def test_torch_func_works():
    act = QCFS(4, 1.5).double()
    z = torch.randn(5, 3, dtype=torch.float64)
    grads = torch.func.grad(lambda t: act(t).square().sum())(z)
    leaf = z.clone().requires_grad_()
    act(leaf).square().sum().backward()
    assert torch.equal(grads, leaf.grad)
    assert torch.equal(torch.func.vmap(act)(z), act(z))
