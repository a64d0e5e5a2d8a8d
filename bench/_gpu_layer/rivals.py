"""What do others need for the same function: a loop in plain torch, torch.compile, SpikingJelly?

The rivals themselves are in plain.py, peers.py and cos_ext.bench.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

import torch
from _shared.timing import Call
from torch import Tensor

from cos_ext import bench
from cos_ext import functional as F

from .cases import CALIBRATION, COMPILED, COMPILED_CALIBRATION, LOOP, MODES, THETA, Case
from .plain import compile_, plain_loop, plain_stack
from .rows import differs, same_case
from .run import Run


def peer(
    run: Run,
    case: Case,
    call: str,
    x: list[Tensor],
    make: Callable[[Tensor], Call],
    expected: Tensor,
    same: bool,
    **facts: Any,
) -> None:
    """A row of a peer: an error where it is the same function and differs, left out where it
    cannot run.
    """
    try:
        calls = [make(one) for one in x]
        result = calls[0]()
        problem = differs(result, expected, "ours") if same else ""
        agrees = (result == expected).float().mean().item()
        del result
        run.row(case, call, calls, problem=problem, same_function=same, agrees=agrees, **facts)
    except Exception as error:
        run.failed_peer(f"{call} on {case}", error)


def eager_peers(run: Run, case: Case) -> None:
    x = run.inputs(case).x
    expected = F.if_forward(x[0], THETA).spikes
    peer(run, case, LOOP, x, lambda one: functools.partial(plain_loop, one), expected, True)
    expected = F.if_forward(x[0], THETA, 0.0).spikes  # SpikingJelly starts at 0
    for name, (form, same) in run.peers.forms(case.dtype, run.clock.device).items():
        peer(run, case, name, x, form, expected, same)
    for rho in (rho for rho in (4, 8) if rho <= case.timesteps):
        expected = F.cos_forward(x[0], THETA, rho=rho).spikes
        # In half precision its arithmetic is half precision too: another function, and fewer
        # bytes than ours reads.
        peer(
            run,
            case,
            CALIBRATION,
            x,
            lambda one, rho=rho: functools.partial(bench.plain_cos, one, THETA, rho),
            expected,
            case.dtype == torch.float32,
            rho=rho,
            iterations=1,
        )


def compiled_peers(run: Run, case: Case) -> None:
    """Both forms of the loop by default, the better one in the other modes; then the
    calibration.
    """
    x = run.inputs(case).x
    expected = F.if_forward(x[0], THETA).spikes
    forms = {"loop": plain_loop, "stack": plain_stack}
    for name, form in forms.items():
        _compiled(run, case, COMPILED, form, x, (), MODES[0], name, expected, True)
    done = [
        row
        for row in run.rows
        if row["call"] == COMPILED and "median_us" in row and same_case(row, case)
    ]
    if done:
        best = min(done, key=lambda row: row["median_us"])["form"]
        for mode in run.grid.modes[1:]:
            _compiled(run, case, COMPILED, forms[best], x, (), mode, best, expected, True)
    same = case.dtype == torch.float32
    for rho in (rho for rho in (4, 8) if rho <= case.timesteps):
        expected = F.cos_forward(x[0], THETA, rho=rho).spikes
        for mode in run.grid.modes[:2] if rho == 4 else run.grid.modes[:1]:
            _compiled(
                run,
                case,
                COMPILED_CALIBRATION,
                bench.plain_cos,
                x,
                (THETA, rho),
                mode,
                "plain_cos",
                expected,
                same,
                rho=rho,
                iterations=1,
            )


def _compiled(
    run: Run,
    case: Case,
    call: str,
    function: Callable[..., Tensor],
    x: list[Tensor],
    args: tuple[Any, ...],
    mode: str,
    form: str,
    expected: Tensor,
    same: bool,
    **facts: Any,
) -> None:
    if time.monotonic() + 5 > run.deadline:
        run.left_out.append(f"torch.compile ({form}, {mode}, {facts}): {case}")
        return
    start = time.monotonic()
    compiled = compile_(function, mode)
    try:
        for _ in range(3):  # with CUDA graphs: compile, record, replay
            compiled(x[0], *args)
        run.clock.synchronize()
    except Exception as error:
        run.failed_peer(f"{call} ({form}, {mode}) on {case}", error)
    else:
        facts |= {"mode": mode, "form": form, "compile_s": time.monotonic() - start}
        # With CUDA graphs every result lies in the same memory: there is nothing to keep.
        peer(
            run,
            case,
            call,
            x,
            lambda one: functools.partial(compiled, one, *args),
            expected,
            same,
            keep=mode != "max-autotune",
            **facts,
        )
    finally:
        torch.compiler.reset()
        run.release()
