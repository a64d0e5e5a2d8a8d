"""A run: jobs in order of importance until the time is up, and what they found.

What a job measures lies in kernels.py, rivals.py and small.py; which jobs there are, in plan.py.
"""

from __future__ import annotations

import gc
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from _shared import records
from _shared.timing import Call

from .cases import OURS, Case, Inputs, Row, grid
from .clocks import CpuClock, CudaClock
from .goals import targets
from .peers import Peers
from .rows import brief, find, ours_for, rounded


class Stopped(BaseException):
    """Nothing more can be measured: the process was told to end, or the CUDA context is lost."""


class Job(NamedTuple):
    name: str
    measure: Callable[[Run, Case], None]
    case: Case
    needed: float = 0  # seconds that must be left to begin it
    compiles: bool = False  # nothing but torch.compile


class Run:
    """Executes jobs in order of importance until the time is up; keeps what was measured and what
    was not.
    """

    def __init__(
        self,
        device: str,
        quick: bool,
        compiled: bool,
        minutes: float,
        peers: Peers,
        path: Path | None,
    ) -> None:
        self.clock = CudaClock(0.05 if quick else 0.25) if device == "cuda" else CpuClock()
        self.grid, self.compiled, self.peers, self.path = grid(device, quick), compiled, peers, path
        self.started = time.monotonic()
        self.deadline = self.started + 60 * minutes
        self.rows: list[Row] = []
        self.small: list[Row] = []
        self.errors: list[str] = []
        self.left_out: list[str] = []
        self.facts: Row = {}

    def execute(self, jobs: Iterable[Job]) -> None:
        # `timeout` ends a run with it: what was measured is still reported.
        signal.signal(signal.SIGTERM, _stop)
        stopped = ""
        for name, measure, case, needed, compiles in jobs:
            label = f"{name}: {case}"
            if compiles and not self.compiled:
                continue
            if stopped or time.monotonic() + needed > self.deadline:
                self.left_out.append(label)
                continue
            print(f"{time.monotonic() - self.started:6.1f} s  {label}", file=sys.stderr, flush=True)
            try:
                try:
                    measure(self, case)
                except Exception as error:
                    self.failed(label, error)
                self.save()
                self.release()
            except Stopped as error:
                stopped = str(error)
                self.errors.append(f"{label}: {stopped}")
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the report is next
        self.save()

    def release(self) -> None:
        gc.collect()
        if self.clock.device == "cuda":
            torch.cuda.empty_cache()

    def failed(self, label: str, error: Exception) -> None:
        self.errors.append(f"{label}: {brief(error)}")
        self.go_on(error)

    def failed_peer(self, label: str, error: Exception) -> None:
        self.peers.skipped[label] = brief(error)
        self.go_on(error)

    def go_on(self, error: Exception) -> None:
        """Frees what the failure held; ends the run where the device answers no more."""
        gc.collect()
        if self.clock.device == "cuda":
            try:
                torch.cuda.synchronize()
                torch.cuda.empty_cache()
            except RuntimeError as lost:
                raise Stopped(f"the CUDA context is lost: {brief(lost)}") from error

    def save(self) -> None:
        """Writes the JSON file, all of it or nothing: what was measured outlives a kill."""
        if self.path is not None:
            records.write(self.path, self.record(), compact=("small_layers", "rows"))

    def record(self) -> Row:
        for row in self.rows:
            ours = ours_for(self.rows, row) if row["call"] not in OURS else None
            if ours and "median_us" in row:
                row["times_ours"] = row["median_us"] / ours["median_us"]
        small, rows = (
            [{key: rounded(value) for key, value in row.items()} for row in rows]
            for rows in (self.small, self.rows)
        )
        return {
            **self.facts,
            "seconds": time.monotonic() - self.started,
            "targets": targets(self.rows, self.small),
            "errors": self.errors,
            "left_out": self.left_out,
            "peers_skipped": self.peers.skipped,
            "peers_notes": self.peers.notes,
            "small_layers": small,
            "rows": rows,
        }

    # Measuring

    def row(
        self,
        case: Case,
        call: str,
        calls: list[Call],
        *,
        problem: str = "",
        restore: Call | None = None,
        keep: bool = True,
        moved: int | None = None,
        **facts: Any,
    ) -> None:
        """Time one row, one call for each buffer. With a problem it is an error and not timed.

        moved: bytes that are read and written, where it is not x once and the spikes.
        """
        row = {"call": call, **case.facts(), **facts}
        self.rows.append(row)
        if problem:
            row["error"] = problem
            self.errors.append(f"{call} {facts} on {case}: {problem}")
            return
        seconds = self.clock.samples(calls, restore, keep)
        median = statistics.median(seconds)
        row |= {
            "median_us": 1e6 * median,
            "min_us": 1e6 * min(seconds),
            "samples": len(seconds),
            "buffers": len(calls),
            "gb_per_s": (moved or case.floor) / median / 1e9,
        }
        copy = find(
            self.rows, call="copy", **{**case.facts(), "v_threshold": "scalar", "static": False}
        )
        if copy:
            row["percent_of_copy"] = 100 * row["gb_per_s"] / copy["gb_per_s"]

    def inputs(self, case: Case) -> Inputs:
        torch.manual_seed(0)
        return Inputs(case, self.clock.device, self.clock.buffers(case))


def _stop(number: int, frame: Any) -> None:
    signal.signal(number, signal.SIG_IGN)
    raise Stopped(f"ended by signal {number}")
