"""How long does a layer take to learn, beside copies of as many bytes and plain torch?

Time forwards alone is kernels.py's.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

import cos_ext
from cos_ext import functional as F
from cos_ext.surrogate import ATan

from .cases import THETA, Case
from .rows import differs
from .run import Run

BACK, LEARN, LEARN_LOOP = "if_backward", "forwards and backwards", "torch loop, both ways"
CPU = "the CPU's"


def learning(run: Run, case: Case) -> None:
    """The gradient's kernel, equal to the CPU's; then both directions, with autograd."""
    inputs = run.inputs(case)
    x, grads = inputs.x, [torch.randn_like(one) for one in inputs.x]

    def back(grad: Tensor, one: Tensor) -> Tensor:
        given = (grad, one, None, THETA, None, THETA / 2, None)
        return torch.ops.cos_ext.if_backward(*given, 0, 2.0, True, False, False)[0]

    expected = back(grads[0].cpu(), x[0].cpu())
    calls = [functools.partial(back, *pair) for pair in zip(grads, x)]
    problem = differs(calls[0]().cpu(), expected, CPU)
    # x and the gradient of the spikes are read, the gradient of x is written.
    run.row(case, BACK, calls, problem=problem, moved=3 * case.size)

    node = cos_ext.IFNode(THETA, detach_reset=True)
    for name, form in ((LEARN, node), (LEARN_LOOP, _loop)):
        both = [functools.partial(_both_ways, form, *pair) for pair in zip(x, grads)]
        run.row(case, name, both, moved=5 * case.size)


def _both_ways(form: Callable[[Tensor], Tensor], x: Tensor, grad: Tensor) -> Tensor:
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        return torch.autograd.grad(form(leaf), leaf, grad)[0]


def _loop(x: Tensor) -> Tensor:
    # A function that the kernels do not know: the same neurons, a step at a time.
    return F.if_forward(x, THETA, surrogate=lambda u: ATan()(u), detach_reset=True).spikes
