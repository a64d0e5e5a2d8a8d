"""Side-by-side timing of the kernels, a copy, and what a user would run without cos_ext.

Everything runs in one process, interleaved. The workloads and their byte floor (T·N·s read and
T·N·s written, s the bytes of an element) live here. bench/ runs them under pytest-benchmark.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from . import functional as F
from ._build import build_info
from ._files import check_target, write_json


def plain_if(x: Tensor, theta: float) -> Tensor:
    """Integrate-and-fire on x ``[T, N]`` as a plain torch loop with a fresh output."""
    return plain_if_into(x, theta, torch.empty_like(x))


def plain_if_into(x: Tensor, theta: float, spikes: Tensor, v: Tensor | None = None) -> Tensor:
    """As :func:`plain_if`, into a given output, from a given potential (None is θ/2)."""
    v = torch.full_like(x[0], theta / 2) if v is None else v
    for t in range(x.shape[0]):
        m = v + x[t]
        s = torch.where(m >= theta, theta, 0.0)
        v = m - s
        spikes[t].copy_(s)
    return spikes


def _stacked_if(x: Tensor, theta: float) -> Tensor:
    v = torch.full_like(x[0], theta / 2)
    steps = []
    for t in range(x.shape[0]):
        m = v + x[t]
        s = torch.where(m >= theta, theta, 0.0)
        v = m - s
        steps.append(s)
    return torch.stack(steps)


def plain_cos(x: Tensor, theta: float, rho: int) -> Tensor:
    """One iteration of the calibration as plain torch operations, the way public scripts do it.

    They simulate rho steps and keep the potentials, take minimum and maximum over time, select,
    shift, and simulate T steps.
    """
    v = torch.full_like(x[0], theta / 2)
    charged, reset, spikes = [], [], []
    for t in range(rho):
        m = v + x[t]
        s = (m >= theta).to(x.dtype)
        v = m - theta * s
        charged.append(m)
        reset.append(v)
        spikes.append(s)
    before, after, fired = torch.stack(charged), torch.stack(reset), torch.stack(spikes)
    count = fired.sum(0)
    lowest = torch.where(fired > 0, before, torch.full_like(before, torch.inf)).amin(0)
    highest = torch.where(fired > 0, torch.full_like(after, -torch.inf), after).amax(0)
    less = torch.clamp(lowest - theta * (1 - 1e-3), min=theta)
    more = torch.clamp(theta * (1 + 1e-3) - highest, min=theta)
    start = torch.full_like(v, theta / 2)
    start = torch.where((v < 0) & (count > 0), start - less, start)
    start = torch.where((v >= theta) & (count < rho), start + more, start)
    return plain_if_into(x, theta, torch.empty_like(x), start)


def spikingjelly_if(x: Tensor, theta: float) -> Callable[[], Any] | None:
    """SpikingJelly's multi-step IFNode as a call; None where it is not installed.

    It runs in inference mode, and its potential is reset in every call.
    """
    try:
        from spikingjelly.activation_based import neuron
    except ImportError:
        return None
    node = neuron.IFNode(v_threshold=theta, v_reset=None, step_mode="m").eval()

    @torch.inference_mode()
    def call() -> Tensor:
        node.reset()
        return node(x)

    return call


def workloads(
    x: Tensor, rho: int, *, slow: bool = True, compiled: bool = False
) -> dict[str, Callable[[], Any]]:
    """The calls to compare, by name.

    Args:
        x: ``[T, N]``. The calls in place write over it; callers restore it outside the timing.
        rho: steps to watch, 1 <= rho <= T.
        slow: also the plain torch versions, and SpikingJelly where it is installed.
        compiled: also torch.compile of the plain IF loop, with a fresh output and into one that is
            there already. This compiles both.
    """
    y = torch.empty_like(x)
    calls: dict[str, Callable[[], Any]] = {
        "copy_": lambda: y.copy_(x),
        "relu_": lambda: torch.relu_(x),
        "clone": lambda: x.clone(),
        "if_forward(inplace)": lambda: F.if_forward(x, 1.0, inplace=True),
        "if_forward": lambda: F.if_forward(x, 1.0),
        "cos_forward(inplace)": lambda: F.cos_forward(x, 1.0, rho=rho, inplace=True),
        "cos_forward(exact, inplace)": lambda: F.cos_forward(
            x, 1.0, rho=rho, iterations=None, inplace=True
        ),
        "cos_forward": lambda: F.cos_forward(x, 1.0, rho=rho),
    }
    if slow:
        calls["plain torch loop, IF"] = lambda: plain_if(x, 1.0)
        calls["plain torch, calibrated"] = lambda: plain_cos(x, 1.0, rho)
        peer = spikingjelly_if(x, 1.0)
        if peer is not None:
            calls["SpikingJelly IFNode"] = peer
    if compiled:
        # The fastest forms found. inductor fuses a stack of the steps into one kernel; for a given
        # output it is copies.
        fresh = torch.compile(_stacked_if, fullgraph=True, dynamic=False)
        calls["torch.compile loop, IF"] = lambda: fresh(x, 1.0)
        into = torch.compile(plain_if_into, fullgraph=True, dynamic=False)
        calls["torch.compile loop, IF, no allocation"] = lambda: into(x, 1.0, y)
        for name in ("torch.compile loop, IF", "torch.compile loop, IF, no allocation"):
            calls[name]()  # compiles
    return calls


def measure(
    calls: dict[str, Callable[[], Any]], restore: Callable[[], Any], repeats: int
) -> dict[str, list[float]]:
    """The seconds of every call, in ``repeats`` rounds over all of them.

    ``restore`` runs before each call, untimed. A round before the first warms up.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for round_ in range(repeats + 1):
        for name, call in calls.items():
            restore()
            start = time.perf_counter()
            kept = call()
            elapsed = time.perf_counter() - start
            del kept
            if round_:
                seconds[name].append(elapsed)
    return seconds


def run_bench(
    mib: Iterable[int],
    timesteps: Iterable[int],
    *,
    rho: int = 4,
    threads: int | None = None,
    repeats: int = 15,
    compiled: bool = False,
    json_path: Path | None = None,
) -> list[dict[str, Any]]:
    """Measure the workloads, and print a table for every size and number of steps.

    Args:
        mib: sizes of x_seq in MiB, float32.
        timesteps: numbers of steps T.
        rho: steps to watch, at most; T where that is smaller.
        threads: of torch; None leaves them as they are.
        repeats: rounds that are timed.
        compiled: also torch.compile, as for :func:`workloads`.
        json_path: where machine, build and records are written; None is nowhere.

    Returns:
        One record a row, with the case, the call, median_ms and min_ms, gb_per_s by the byte floor,
        and x_copy, the median in units of that of ``copy_``.

    Raises:
        ValueError: a number is out of range.
        OSError: json_path cannot be written, before anything is measured.
    """
    mib, timesteps = list(mib), list(timesteps)
    _check(mib, timesteps, rho, threads, repeats)
    if json_path is not None:
        check_target(json_path)
    if threads is not None:
        torch.set_num_threads(threads)
    if importlib.util.find_spec("spikingjelly") is None:
        tqdm.write(
            "SpikingJelly is not installed, so the peer is missing: pip install --no-deps "
            "spikingjelly"
        )
    records: list[dict[str, Any]] = []
    cases = [(size, steps) for size in mib for steps in timesteps]
    for size, steps in tqdm(cases, desc="bench", leave=False):
        count = size * 2**20 // 4 // steps
        source = torch.randn(steps, count)
        x = source.clone()
        seconds = measure(
            workloads(x, min(rho, steps), compiled=compiled), partial(x.copy_, source), repeats
        )
        copy = statistics.median(seconds["copy_"])
        floor = 2 * x.numel() * x.element_size()
        tqdm.write(
            f"\n{size} MiB float32, T = {steps}, rho = {min(rho, steps)}, "
            f"{torch.get_num_threads()} threads; byte floor "
            f"{floor / 2**20:.0f} MiB (read + written)"
        )
        tqdm.write(f"{'':40}{'median ms':>10}{'GB/s':>8}{'x copy_':>9}")
        for name, values in seconds.items():
            median = statistics.median(values)
            records.append(
                {
                    "mib": size,
                    "timesteps": steps,
                    "rho": min(rho, steps),
                    "call": name,
                    "median_ms": 1e3 * median,
                    "min_ms": 1e3 * min(values),
                    "gb_per_s": floor / median / 1e9,
                    "x_copy": median / copy,
                }
            )
            tqdm.write(
                f"{name:40}{1e3 * median:10.2f}{floor / median / 1e9:8.1f}{median / copy:9.2f}"
            )
    if json_path is not None:
        machine = {
            "processor": _processor(),
            "threads": torch.get_num_threads(),
            "platform": platform.platform(),
        }
        write_json(json_path, {"machine": machine, "build": build_info(), "records": records})
    return records


def _check(
    mib: list[int], timesteps: list[int], rho: int, threads: int | None, repeats: int
) -> None:
    """ValueError unless every number can be served."""
    ranges = [("mib", value, 2**20) for value in mib]
    # One element a step at least.
    ranges += [("timesteps", value, min(mib) * 2**18) for value in timesteps]
    ranges += [("rho", rho, 2**31 - 1), ("repeats", repeats, 10**6)]
    if threads is not None:
        ranges.append(("threads", threads, os.cpu_count() or 1))
    for name, value, most in ranges:
        if not 1 <= value <= most:
            raise ValueError(f"{name} must lie in 1..{most}, got {value}")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(
            line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")
        )
    except (OSError, StopIteration):
        return platform.processor() or "unknown"
