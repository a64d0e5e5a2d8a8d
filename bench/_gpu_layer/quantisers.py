"""How long does QCFS take, forwards and backwards, beside copies of as many bytes and plain torch?

A case's x is the currents z of as many neurons; time plays no part.
"""

from __future__ import annotations

import functools

import torch
from _shared.quantisers import Plain
from torch import Tensor

import cos_ext

from .cases import (
    QCFS_COMPILED,
    QCFS_LEARN,
    QCFS_PLAIN,
    QUANTISE,
    QUANTISE_BACK,
    THETA,
    Case,
)
from .kernels import copy
from .learning import CPU
from .rows import differs
from .run import Run

LEVELS = 8


def quantisers(run: Run, case: Case) -> None:
    """Both kernels, equal to the CPU's; then both directions, with autograd."""
    inputs = run.inputs(case)
    z, grads = inputs.x, [torch.randn_like(one) for one in inputs.x]
    copy(run, case, z)
    ops, state = torch.ops.cos_ext, torch.float32
    theta = torch.tensor(THETA, dtype=state, device=run.clock.device)

    calls = [functools.partial(ops.qcfs, one, theta, LEVELS) for one in z]
    problem = differs(calls[0]().cpu(), ops.qcfs(z[0].cpu(), theta.cpu(), LEVELS), CPU)
    run.row(case, QUANTISE, calls, problem=problem, levels=LEVELS)

    calls = [
        functools.partial(ops.qcfs_backward, g, one, theta, LEVELS) for g, one in zip(grads, z)
    ]
    expected = ops.qcfs_backward(grads[0].cpu(), z[0].cpu(), theta.cpu(), LEVELS)[0]
    problem = differs(calls[0]()[0].cpu(), expected, CPU)
    run.row(case, QUANTISE_BACK, calls, problem=problem, moved=3 * case.size, levels=LEVELS)

    own = cos_ext.QCFS(LEVELS, THETA).to(run.clock.device)
    _both_ways(run, case, QCFS_LEARN, own, z, grads)
    plain = Plain(LEVELS, THETA).to(run.clock.device)
    _both_ways(run, case, QCFS_PLAIN, plain, z, grads)


def compiled_quantisers(run: Run, case: Case) -> None:
    z = run.inputs(case).x
    grads = [torch.randn_like(one) for one in z]
    plain = Plain(LEVELS, THETA).to(run.clock.device)
    _both_ways(run, case, QCFS_COMPILED, torch.compile(plain, dynamic=False), z, grads)
    torch.compiler.reset()


def _both_ways(
    run: Run, case: Case, name: str, form: torch.nn.Module, z: list[Tensor], grads: list[Tensor]
) -> None:
    calls = [functools.partial(_learn, form, *pair) for pair in zip(z, grads)]
    try:
        calls[0]()
        run.row(case, name, calls, moved=5 * case.size, levels=LEVELS)
    except Exception as error:
        failed = run.failed if name == QCFS_LEARN else run.failed_peer
        failed(f"{name} on {case}", error)


def _learn(form: torch.nn.Module, z: Tensor, grad: Tensor) -> Tensor:
    """The gradients of z and of θ; returns that of z."""
    with torch.enable_grad():
        leaf = z.detach().requires_grad_()
        a = form(leaf).to(z.dtype)
        return torch.autograd.grad(a, (leaf, *form.parameters()), grad)[0]
