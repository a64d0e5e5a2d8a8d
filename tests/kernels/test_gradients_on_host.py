"""The gradient's CUDA kernel, its body run on the host by a shim (tests/cpp), against the CPU's:
all results EQUAL.

Other kernels are in test_cuda_on_host.py, and so is what that leaves to others.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from conftest import layouts
from test_cuda_on_host import PARAMETERS, currents, parameter

from cos_ext import functional as F
from cos_ext.surrogate import KERNELS

# Compiling the shim alone takes longer than a slow test.
pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.slow]


def gradients(x, theta, v_init, grad, fused, **options):
    """Of x, θ, v_init and what is fused, by name, where that of the spikes is `grad`; all in the
    layouts they come in.
    """
    *three, x, theta, v_init = [
        tensor.detach().requires_grad_() for tensor in (*fused.values(), x, theta, v_init)
    ]
    spikes = F.if_forward(x, theta, v_init, **dict(zip(fused, three)), **options).spikes
    return torch.autograd.grad(spikes, (x, theta, v_init, *three), grad)


def assert_same_gradients(on_host, *given, **options):
    for ours, theirs in zip(on_host(gradients, *given, **options), gradients(*given, **options)):
        assert ours.dtype == theirs.dtype and ours.stride() == theirs.stride()
        assert torch.equal(torch.nan_to_num(ours, 7.5), torch.nan_to_num(theirs, 7.5))
        assert ours.any()


@pytest.mark.parametrize("step", KERNELS, ids=lambda kind: kind.__name__)
def test_gradients_of_every_length_and_reset(step, dtype, on_host):
    # A chunk, several, and what is left of one; packs of neurons, and neurons one by one.
    for steps, size in itertools.product((1, 2, 4, 5, 8, 9, 16, 23, 40), (67, 384)):
        x, grad = (currents(steps, size, dtype=dtype) for _ in range(2))
        theta, v_init = (parameter((size,), {}, False, dtype) for _ in range(2))
        for v_reset, detach in itertools.product((None, -0.3), (False, True)):
            options = {"surrogate": step(), "v_reset": v_reset, "detach_reset": detach}
            assert_same_gradients(on_host, x, theta, v_init, grad, {}, **options)


@pytest.mark.parametrize("which", [name for name in PARAMETERS if name != "scalars"])
def test_gradients_of_every_layout(which, dtype, on_host):
    theta_kind, init_kind, permuted = PARAMETERS[which]
    for neurons, steps in itertools.product(((3, 8, 4, 4), (2, 5, 6, 7)), (4, 11)):
        sizes = dict(zip("BCHW", neurons))
        kinds = (theta_kind, init_kind or (1,))
        theta, v_init = (parameter(kind, sizes, permuted, dtype) for kind in kinds)
        source, other = (currents(steps, *neurons, dtype=dtype) for _ in range(2))
        given = {**layouts(source), "static": source[:1].expand_as(source)}
        grads = {**layouts(other), "one for all": other[:1, :1, :1].expand_as(other)}
        for x, grad in itertools.product(given.values(), grads.values()):
            assert_same_gradients(on_host, x, theta, v_init, grad, {})


@pytest.mark.parametrize("given", ["bias", "residual", "both", "all"])
@pytest.mark.parametrize("steps", [1, 6, 8, 21])
def test_gradients_of_what_is_fused(given, steps, dtype, on_host):
    for neurons in ((3, 8, 4, 4), (2, 5, 6, 7)):
        sizes = dict(zip("BCHW", neurons))
        source, other, grad = (currents(steps, *neurons, dtype=dtype) for _ in range(3))
        theta, v_init, bias, scale = (parameter(("C", 1, 1), sizes, False, dtype) for _ in range(4))
        residuals = {**layouts(other), "static": other[:1].expand_as(other)}
        inputs = {**layouts(source), "static": source[:1].expand_as(source)}
        for x, residual in zip([*inputs.values(), source], [other, *residuals.values()]):
            every = {"bias": bias - 0.7, "residual": residual, "scale": scale}
            names = {"both": ("bias", "residual"), "all": tuple(every)}.get(given, (given,))
            fused = {name: every[name] for name in names}
            for v_reset in (None, 0.2):
                options = {"v_reset": v_reset, "detach_reset": v_reset is None}
                assert_same_gradients(on_host, x, theta, v_init, grad, fused, **options)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_gradients_of_nan_and_infinity(value, dtype, on_host):
    x, grad = (currents(9, 4, 130, dtype=dtype) for _ in range(2))
    x[torch.rand(x.shape) < 0.1] = value
    theta, v_init = (parameter((4, 130), {}, False, dtype) for _ in range(2))
    for v_reset in (None, 0.0):
        assert_same_gradients(on_host, x, theta, v_init, grad, {}, v_reset=v_reset)
