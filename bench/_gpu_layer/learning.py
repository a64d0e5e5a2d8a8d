"""How long does a layer take to learn, beside copies of as many bytes and its peers?

Of neurons here, of QCFS in quantisers.py; time forwards alone is kernels.py's. What events cost is
not measured on a GPU: their kernels are for CPUs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

import cos_ext
from cos_ext import functional as F
from cos_ext.surrogate import ATan

from .cases import BACK, LEARN, LEARN_LOOP, THETA, Case
from .kernels import copy
from .rows import differs
from .run import Run

CPU = "the CPU's"


def learning(run: Run, case: Case) -> None:
    """The gradient's kernel, equal to the CPU's; then both directions, with autograd."""
    inputs = run.inputs(case)
    x, grads = inputs.x, [torch.randn_like(one) for one in inputs.x]
    copy(run, case, x)

    def back(grad: Tensor, one: Tensor) -> Tensor:
        given = (grad, one, None, THETA, None, THETA / 2, None)
        return torch.ops.cos_ext.if_backward(*given, 0, 2.0, True, False, False)[0]

    expected = back(grads[0].cpu(), x[0].cpu())
    calls = [functools.partial(back, *pair) for pair in zip(grads, x)]
    problem = differs(calls[0]().cpu(), expected, CPU)
    # x and the gradient of the spikes are read, the gradient of x is written.
    run.row(case, BACK, calls, problem=problem, moved=3 * case.size)

    node = cos_ext.IFNode(THETA, detach_reset=True).to(run.clock.device)
    problem = differs(both_ways(node, x[0], grads[0]).cpu(), expected, CPU)
    calls = [functools.partial(both_ways, node, *pair) for pair in zip(x, grads)]
    run.row(case, LEARN, calls, problem=problem, moved=5 * case.size)
    for name, form in {LEARN_LOOP: _loop, **run.peers.learners(case.dtype)}.items():
        calls = [functools.partial(both_ways, form, *pair) for pair in zip(x, grads)]
        try:
            calls[0]()
            run.row(case, name, calls, moved=5 * case.size)
        except Exception as error:
            run.failed_peer(f"{name} on {case}", error)


def both_ways(form: Callable[[Tensor], Tensor], x: Tensor, grad: Tensor) -> Tensor:
    """The gradient of x where that of the form's result is `grad`."""
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        return torch.autograd.grad(form(leaf), leaf, grad)[0]


def _loop(x: Tensor) -> Tensor:
    # A function that the kernels do not know: the same neurons, a step at a time.
    return F.if_forward(x, THETA, surrogate=lambda u: ATan()(u), detach_reset=True).spikes
