"""How a run is timed, and how runs are held against each other.

What is timed does not belong here. Time on a GPU with the host's launches hidden is
_gpu_layer/clocks.py's.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

Call = Callable[[], Any]


def interleaved(
    calls: Mapping[str, Call], repeats: int, seconds: Callable[[Call], float]
) -> dict[str, list[float]]:
    """What `seconds` says of every call, in `repeats` rounds over all of them.

    In rounds, so that a slow minute of the machine is a slow minute of every call.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            times[name].append(seconds(call))
    return times


def median_ratio(times: Iterable[float], base: Iterable[float]) -> float:
    """The median of the ratios within each round. A ratio of two medians is noisier."""
    return statistics.median(a / b for a, b in zip(times, base))


def event_pair() -> tuple[torch.cuda.Event, torch.cuda.Event]:
    return torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)


def seconds_of(call: Call, clock: str) -> float:
    """One run: by the events of a CUDA device ("cuda"), the wall clock ("wall") or this process's
    CPU time ("cpu").
    """
    if clock == "cuda":
        first, last = event_pair()
        torch.cuda.synchronize()
        first.record()
        call()
        last.record()
        torch.cuda.synchronize()
        return first.elapsed_time(last) / 1e3
    now = time.process_time if clock == "cpu" else time.perf_counter
    start = now()
    kept = call()
    elapsed = now() - start
    del kept
    return elapsed


def _busy() -> tuple[float, float] | None:
    """CPU seconds of all processes (and what a hypervisor took), and of this one; None without
    /proc/stat.
    """
    try:
        fields = Path("/proc/stat").read_text().split()[1:9]
        user, nice, system, _, _, irq, softirq, steal = map(int, fields)
    except (OSError, ValueError):
        return None
    ticks = user + nice + system + irq + softirq + steal
    own = os.times()
    return ticks / os.sysconf("SC_CLK_TCK"), own.user + own.system


@dataclass
class Quiet:
    """Times runs, and repeats those during which other processes used more than `most` of all CPUs.

    After `patience` runs the least disturbed one counts. `repeated` and `worst` are recorded.
    """

    clock: str
    most: float
    patience: int
    repeated: int = 0
    worst: float = 0.0

    def seconds(self, call: Call) -> float:
        found: list[tuple[float, float]] = []
        for attempt in range(self.patience):
            before, start = _busy(), time.perf_counter()
            elapsed = seconds_of(call, self.clock)
            after, wall = _busy(), time.perf_counter() - start
            others = 0.0
            if before is not None and after is not None:
                spent = (after[0] - before[0]) - (after[1] - before[1])
                # The ticks of that clock are 0.01 s: two of them prove nothing.
                others = max(0.0, spent - 0.02) / (wall * (os.cpu_count() or 1))
            found.append((others, elapsed))
            if others <= self.most:
                break
            self.repeated += 1
            if attempt + 1 < self.patience:
                time.sleep(min(2.0, wall))
        others, elapsed = min(found)
        self.worst = max(self.worst, others)
        return elapsed
