"""How near do the kernels come to a copy of the device?

Peers do not belong here: rivals.py has them.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from cos_ext import functional as F
from cos_ext import reference

from .cases import Case, Row
from .rows import differs, find
from .run import Run

REFERENCE = "cos_ext.reference"


def kernels(run: Run, case: Case) -> None:
    """A copy, if_forward and cos_forward. Outputs are first compared with
    cos_ext.reference's.
    """
    inputs = run.inputs(case)
    x, theta = inputs.x, inputs.theta
    copy(run, case, x)
    watched = [rho for rho in (4, 8) if rho <= case.timesteps] or [case.timesteps]
    forms: list[tuple[str, Row]] = [("if_forward", {})]
    forms += [("cos_forward", {"rho": rho, "iterations": k}) for rho in watched for k in (1, None)]
    for call, options in forms:
        operator = getattr(F, call)
        expected = getattr(reference, call)(x[0], theta, **options).spikes
        run.row(
            case,
            call,
            [functools.partial(operator, one, theta, **options) for one in x],
            problem=differs(operator(x[0], theta, **options).spikes, expected, REFERENCE),
            inplace=False,
            **options,
        )
        if case.static:
            continue  # steps that share memory cannot be overwritten
        operator = functools.partial(operator, inplace=True)
        inputs.refill()
        run.row(
            case,
            call,
            [functools.partial(operator, one, theta, **options) for one in inputs.buffers],
            problem=differs(
                operator(inputs.buffers[0], theta, **options).spikes, expected, REFERENCE
            ),
            restore=inputs.refill,
            keep=False,
            inplace=True,
            **options,
        )


def copy(run: Run, case: Case, x: list[Tensor]) -> None:
    """The copy that a case is held against: of all steps, and once for all thresholds."""
    if find(run.rows, call="copy", **case.facts() | {"v_threshold": "scalar", "static": False}):
        return
    whole = Case(case.dtype, case.timesteps, case.elements, case.layout, image=case.image)
    sources = run.inputs(whole).x if case.static else x
    copies = [torch.empty_like(source) for source in sources]
    run.row(whole, "copy", [functools.partial(y.copy_, one) for y, one in zip(copies, sources)])
