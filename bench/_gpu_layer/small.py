"""What does one call cost on a small layer: on the host, on the device, inside a CUDA graph?

Large layers are kernels.py's and rivals.py's.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from _shared.timing import Call
from torch import Tensor

import cos_ext
from cos_ext import functional as F
from cos_ext import reference

from .cases import THETA, Case, Row
from .clocks import host_seconds
from .graphs import graph_nodes, graph_seconds
from .plain import compile_, plain_loop, plain_stack
from .rows import brief, differs
from .run import Run

RELU, NODE = "torch.relu", "IFNode"


def small_layer(run: Run, case: Case) -> None:
    """Microseconds a call: on the host, on the device back to back, and on the device inside a
    captured graph.
    """
    rho = {"rho": min(4, case.timesteps), "iterations": None}
    node = cos_ext.IFNode(THETA, v_init=None).to(run.clock.device)
    _measure(
        run,
        case,
        {
            RELU: torch.relu,
            "if_forward": lambda one: F.if_forward(one, THETA),
            "if_forward, in place": lambda one: F.if_forward(one, THETA, inplace=True),
            f"cos_forward, rho = {rho['rho']}, exact": lambda one: F.cos_forward(one, THETA, **rho),
            NODE: node,
        },
        rho,
    )


def small_peers(run: Run, case: Case) -> None:
    """The same of torch.compile."""
    forms = {"loop": plain_loop, "stack": plain_stack}
    _measure(
        run, case, {f"torch.compile, {name}": compile_(f, "default") for name, f in forms.items()}
    )
    torch.compiler.reset()


def _measure(
    run: Run, case: Case, forms: Mapping[str, Callable[[Tensor], Any]], rho: Row | None = None
) -> None:
    inputs = run.inputs(case)
    for name, form in forms.items():
        if name.startswith("cos"):
            expected = reference.cos_forward(inputs.x[0], THETA, **(rho or {})).spikes
        elif name == RELU:
            expected = inputs.x[0].clamp(0)
        else:
            expected = reference.if_forward(inputs.x[0], THETA).spikes
        row: Row = {"call": name, **case.facts()}
        run.small.append(row)
        inputs.refill()
        inplace = "in place" in name
        calls = [functools.partial(form, x) for x in (inputs.buffers if inplace else inputs.x)]
        try:
            result = calls[0]()
            problem = differs(getattr(result, "spikes", result), expected, "cos_ext.reference")
            if problem:
                row["error"] = problem
                run.errors.append(f"small layer, {name} on {case}: {problem}")
            else:
                _time(run, row, calls, inplace)
        except Exception as error:
            row["error"] = brief(error)
            failed = run.failed_peer if name.startswith("torch") else run.failed
            failed(f"small layer, {name} on {case}", error)


def _time(run: Run, row: Row, calls: list[Call], inplace: bool) -> None:
    """Enters the times into the row one by one: an error keeps those before it."""
    cuda = run.clock.device == "cuda"
    many = [calls[i % len(calls)] for i in range(200 if cuda else 5)]
    row["host_us"] = 1e6 * host_seconds(many, run.clock.synchronize)
    # In place, a second pass would see spikes: device time is that of the other forms.
    if not inplace:
        row["device_us"] = 1e6 * run.clock.batch(calls)
    if cuda and not inplace:
        row["graph_us"] = 1e6 * graph_seconds(calls)
    if cuda:
        row["graph_nodes"] = graph_nodes(calls[0])
