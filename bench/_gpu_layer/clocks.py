"""How a call of one layer is timed: on a GPU its device time, with the host's launches hidden; the
host's own time; on a CPU wall time.

Inputs rotate through buffers that together exceed the L2 cache several times; results are kept as
long as their inputs, so outputs rotate too. Before every timed call the device is kept busy for as
long as the host needs to launch it: the events then see device time alone. That favours peers of
many launches; host time has its own section. What is called does not belong here.
"""

from __future__ import annotations

import math
import statistics
import time
from collections import deque
from typing import Any

import torch
from _shared.machine import processor
from _shared.timing import Call, event_pair

from .cases import MIB, Case


class CpuClock:
    """Wall time of each call, to prove that the script runs."""

    device = "cpu"
    name = processor()

    def buffers(self, case: Case) -> int:
        return 2

    def synchronize(self) -> None:
        pass

    def samples(
        self, calls: list[Call], restore: Call | None = None, keep: bool = True
    ) -> list[float]:
        seconds = []
        for timed in (False, True):
            if restore:
                restore()
            for call in calls:
                start = time.perf_counter()
                call()
                seconds += [time.perf_counter() - start] * timed
        return seconds

    def batch(self, calls: list[Call]) -> float:
        start = time.perf_counter()
        for call in calls:
            call()
        return (time.perf_counter() - start) / len(calls)


class CudaClock:
    """Device time from CUDA events, the host's launches hidden."""

    device = "cuda"

    def __init__(self, budget: float) -> None:
        properties = torch.cuda.get_device_properties(0)
        self.name = torch.cuda.get_device_name(0)
        self.l2 = getattr(properties, "L2_cache_size", 0) or 64 * MIB
        self.budget = budget  # seconds for the samples of one row, roughly
        self.synchronize = torch.cuda.synchronize
        a, b = (torch.empty(256 * MIB, dtype=torch.uint8, device="cuda") for _ in range(2))
        until = time.monotonic() + 0.5
        while time.monotonic() < until:  # an idle card has low clocks
            for _ in range(100):
                a.copy_(b)
            torch.cuda.synchronize()

    def buffers(self, case: Case) -> int:
        wanted = (4 if case.size >= self.l2 else 2) * self.l2
        return max(3, min(1024, math.ceil(wanted / case.size)))

    @staticmethod
    def _busy(seconds: float) -> None:
        torch.cuda._sleep(int(2e9 * min(seconds, 0.05)))  # cycles; no Hopper runs faster than 2 GHz

    def samples(
        self, calls: list[Call], restore: Call | None = None, keep: bool = True
    ) -> list[float]:
        kept: deque[Any] = deque(maxlen=len(calls) if keep else 0)
        if restore:
            restore()
        for call in calls:  # fills the allocator's cache, and touches every buffer
            kept.append(call())
        torch.cuda.synchronize()
        start = time.perf_counter()
        kept.append(calls[0]())
        launch = time.perf_counter() - start
        torch.cuda.synchronize()
        whole = time.perf_counter() - start
        head_start = 1.5 * launch + 30e-6
        count = int(max(5, min(40, self.budget / (whole + head_start))))
        events = []
        while len(events) < count:
            if restore:
                restore()
            for call in calls[: count - len(events)]:
                first, last = event_pair()
                self._busy(head_start)
                first.record()
                kept.append(call())
                last.record()
                events.append((first, last))
            # The queue of launches is finite: a host that runs too far ahead is held up inside a
            # timed call.
            torch.cuda.synchronize()
        return [first.elapsed_time(last) / 1e3 for first, last in events]

    def batch(self, calls: list[Call]) -> float:
        """Device time of a call among many that are launched back to back."""
        kept = [call() for call in calls]
        torch.cuda.synchronize()
        start = time.perf_counter()
        kept = [call() for call in calls]
        launch = time.perf_counter() - start
        torch.cuda.synchronize()
        first, last = event_pair()
        self._busy(1.5 * launch + 30e-6)
        first.record()
        for i, call in enumerate(calls):
            kept[i] = call()
        last.record()
        torch.cuda.synchronize()
        return first.elapsed_time(last) / 1e3 / len(calls)


def host_seconds(calls: list[Call], synchronize: Call) -> float:
    """What the host spends on one call, the device never waited for."""
    seconds = []
    for _ in range(7):
        synchronize()
        start = time.perf_counter()
        for call in calls:
            call()
        seconds.append((time.perf_counter() - start) / len(calls))
    synchronize()
    return statistics.median(seconds)
