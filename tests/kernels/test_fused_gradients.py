"""Gradients where a scale, a bias or a residual is fused into the neurons' input.

Those of x, θ and v(0) alone are in test_gradients.py.
"""

import itertools

import pytest
import torch
from conftest import layouts
from test_gradients import gradients, made, plain

from cos_ext import functional as F
from cos_ext.surrogate import ATan, Triangle

NAMES = ("scale", "bias", "residual")
CHOICES = [c for n in (1, 2, 3) for c in itertools.combinations(NAMES, n)]
SIZES = {"number": (), "channel": (6, 1, 1), "row": (4, 1), "neuron": (2, 6, 4, 9)}


def drawn(names, size, x):
    """What is fused, by name."""
    scale, bias = (torch.rand(SIZES[size], dtype=x.dtype) + shift for shift in (0.5, -0.5))
    every = {"scale": scale, "bias": bias, "residual": torch.randn_like(x)}
    return {name: every[name] for name in names}


def compare(x, theta, v, fused, v_reset=None, detach=False, expand=None):
    """Both spikes and gradients, of if_forward and of the equations; `expand` makes x's steps."""
    expand = expand or (lambda x: x)
    weights = torch.randn(expand(x).shape, dtype=x.dtype)
    surrogate = Triangle()
    options = {"v_reset": v_reset, "surrogate": surrogate, "detach_reset": detach}

    def ours(x, theta, v, *given):
        return F.if_forward(expand(x), theta, v, **dict(zip(fused, given)), **options).spikes

    def theirs(x, theta, v, *given):
        given = {"scale": 1.0, "bias": 0.0, "residual": 0.0} | dict(zip(fused, given))
        current = expand(x) * given["scale"] + given["bias"] + given["residual"]
        return plain(current, theta, v, v_reset, surrogate, detach)

    tensors = (x, theta, v, *fused.values())
    one, grads = gradients(ours, *tensors, weights=weights)
    two, expected = gradients(theirs, *tensors, weights=weights)
    assert torch.equal(one, two) and one.any()
    for grad, wanted in zip(grads, expected):
        assert grad.shape == wanted.shape and grad.any()
        assert torch.allclose(grad, wanted, rtol=1e-11, atol=1e-12 * (1 + wanted.abs().max()))


@pytest.mark.parametrize("names", CHOICES, ids="+".join)
@pytest.mark.parametrize("size", SIZES)
def test_gradients_are_those_of_the_loop(names, size):
    for steps, (v_reset, detach) in itertools.product((1, 5, 19), ((None, False), (-0.3, True))):
        x, theta, v = made((steps, 2, 6, 4, 9), "channel")
        fused = drawn(names, size, x)
        compare(x, theta, v, fused, v_reset, detach)


@pytest.mark.parametrize("names", CHOICES, ids="+".join)
def test_the_same_input_at_every_step(names):
    x, theta, v = made((1, 2, 6, 4, 9), "channel")
    steps = x.expand(7, -1, -1, -1, -1)
    compare(
        x, theta, v, drawn(names, "channel", steps), expand=lambda x: x.expand(7, -1, -1, -1, -1)
    )


def test_a_residual_that_is_the_same_at_every_step():
    x, theta, v = made((7, 2, 6, 4, 9), "channel")
    residual, weights = torch.randn(1, 2, 6, 4, 9, dtype=x.dtype), torch.randn_like(x)
    run = lambda x, r: F.if_forward(x, theta, v, residual=r.expand_as(x)).spikes  # noqa: E731
    _, grads = gradients(run, x, residual, weights=weights)
    _, expected = gradients(
        lambda x, r: plain(x + r, theta, v, None, ATan(), False), x, residual, weights=weights
    )
    for grad, wanted in zip(grads, expected):
        assert grad.shape == wanted.shape and torch.allclose(grad, wanted, rtol=1e-11, atol=1e-11)


def test_layouts():
    source, theta, v = made((5, 2, 6, 4, 9), "channel")
    other = torch.randn_like(source)
    for x, residual in itertools.product(layouts(source).values(), layouts(other).values()):
        compare(x, theta, v, {"residual": residual})
    for x in layouts(source).values():
        compare(x, theta, v, drawn(("bias",), "neuron", x))


def test_roundings(dtype):
    """As if passes before had stored the currents; what is stored in 16 bits is rounded once."""
    x, theta, v = made((6, 3, 40, 4), "channel", torch.float32)
    x, residual, weights = x.to(dtype), torch.randn(6, 3, 40, 4).to(dtype), torch.randn(6, 3, 40, 4)
    bias, weights = torch.rand(40, 1) - 0.5, weights.to(dtype)

    def fused(x, bias, residual):
        return F.if_forward(x, theta, v, bias=bias, residual=residual).spikes

    def stored(x, bias, residual):
        return F.if_forward((x + bias).to(dtype) + residual, theta, v).spikes

    theta, v, bias = (t.to(F.state_dtype(dtype)) for t in (theta, v, bias))
    one, grads = gradients(fused, x, bias, residual, weights=weights)
    two, expected = gradients(stored, x, bias, residual, weights=weights)
    assert torch.equal(one, two) and one.any()
    assert torch.equal(grads[0], expected[0]) and torch.equal(grads[2], expected[2])
    rounding = 16 * torch.finfo(dtype).eps
    assert (grads[1] - expected[1]).abs().max() <= rounding * expected[1].abs().max()


def test_what_is_kept_are_x_and_the_residual():
    x, residual = (torch.rand(8, 1000, requires_grad=True) for _ in range(2))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        F.if_forward(x, 1.0, bias=torch.rand(1000), residual=residual)
    large = {t.data_ptr() for t in kept if t.numel() > 1000}
    assert large == {x.data_ptr(), residual.data_ptr()}


def test_torch_func_and_compile():
    x, theta, v = made((4, 2, 6), "number")
    fused = {"bias": torch.rand(6, dtype=x.dtype), "residual": torch.randn_like(x)}
    weights = torch.randn_like(x)

    def run(x, bias, residual):
        return F.if_forward(x, theta, v, bias=bias, residual=residual).spikes

    _, expected = gradients(run, x, *fused.values(), weights=weights)
    loss = lambda *given: (run(*given) * weights).sum()  # noqa: E731
    found = torch.func.grad(loss, argnums=(0, 1, 2))(x, *fused.values())
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    _, others = gradients(compiled, x, *fused.values(), weights=weights)
    for grad, other, wanted in zip(found, others, expected):
        assert torch.allclose(grad, wanted, atol=1e-12)
        assert torch.allclose(other, wanted, atol=1e-12)


def test_opcheck(dtype):
    x, theta, v = (t.to(F.state_dtype(dtype)) for t in made((4, 2, 6), "channel", torch.float32))
    x, residual = x.to(dtype).requires_grad_(), torch.randn(4, 2, 6).to(dtype).requires_grad_()
    bias = torch.rand(6, dtype=theta.dtype, requires_grad=True)
    check, ops, tail = torch.library.opcheck, torch.ops.cos_ext, (None, 0, 2.0, False)
    check(ops.if_surrogate, (x, 4, theta.requires_grad_(), v, *tail, bias, residual))
    check(ops.if_surrogate, (x, 4, theta, v, *tail, None, residual))
    check(ops.if_surrogate, (x[:1].detach().requires_grad_(), 4, theta, v, *tail, bias, None))
    x, theta, bias, residual = (t.detach() for t in (x, theta, bias, residual))
    given = (torch.randn(4, 2, 6).to(dtype), x, theta, 0.0, v, None)
    for of_bias in (False, True):
        check(ops.if_backward, (*given, *tail, True, True, bias, residual, of_bias))


def test_what_is_refused():
    x = torch.rand(4, 2, 6)
    given = (None, 1.0, None, 0.5, None, 0, 2.0, False, False, False, None)
    with pytest.raises(RuntimeError, match="x_seq must have steps of its own"):
        torch.ops.cos_ext.if_backward(x, x[:1].expand(4, 2, 6), *given, x)
    with pytest.raises(RuntimeError, match="grad must have x_seq's shape"):
        torch.ops.cos_ext.if_backward(x[:3], x, *given)
    with pytest.raises(RuntimeError, match="residual must have x_seq's shape"):
        torch.ops.cos_ext.if_backward(x, x, *given, x[:3])
    with pytest.raises(RuntimeError, match="there is no surrogate 5"):
        torch.ops.cos_ext.if_backward(x, x, None, 1.0, None, 0.5, None, 5, 2.0, False, False, False)
