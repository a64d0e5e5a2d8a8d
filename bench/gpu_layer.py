"""One layer on a GPU: the kernels against a device copy and against what a user would run without
cos_ext.

    python bench/gpu_layer.py [--device cuda|cpu] [--quick] [--compile | --no-compile] [--minutes M]
    [--json FILE]

Measuring, checking what is measured, and reporting live here, and no test; the peers are
cos_ext.bench's where it has them. With --device cpu nothing is learnt but that the script runs.
COS_EXT_PEER_WHEELS names a folder of wheels (spikingjelly 2.0.0 and 0.0.0.0.14, loguru) that are
unpacked and imported, not installed; COS_EXT_COMMIT, the commit where git cannot tell.

How a call is timed. Inputs rotate through buffers that together exceed the L2 cache several times;
results are kept as long as their inputs, so outputs rotate too. Before every timed call the device
is kept busy for as long as the host needs to launch it: the events then see device time alone. That
favours peers of many launches; host time has its own section.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import datetime
import functools
import gc
import importlib
import importlib.metadata
import json
import math
import os
import platform
import re
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import textwrap
import time
import zipfile
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import cos_ext
from cos_ext import bench, reference
from cos_ext import functional as F

THETA = 1.0  # peers that emit 0 or 1 are then the same function
MIB = 2**20
LARGE = 64 * MIB  # from here on the targets of large layers hold
NAMES = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}
MODES = ("default", "max-autotune-no-cudagraphs", "max-autotune")  # the last with CUDA graphs
LOOP, COMPILED, CALIBRATION, COMPILED_CALIBRATION = (
    "torch loop",
    "torch.compile",
    "torch calibration",
    "torch.compile calibration",
)
SJ_NODE, SJ_STATE, SJ_OLD = (
    "SpikingJelly 2 IFNode",
    "SpikingJelly 2, f32 state",
    "SpikingJelly 0.0.0.0.14",
)
Row = dict[str, Any]
Call = Callable[[], Any]


class Stopped(BaseException):
    """Nothing more can be measured: the process was told to end, or the CUDA context is lost."""


@dataclass(frozen=True)
class Case:
    """One input: x_seq [T, N] ("flat") or [T, B, C, H, W] ("nchw", "channels_last"), `elements` in
    all.
    """

    dtype: torch.dtype
    timesteps: int
    elements: int
    layout: str = "flat"
    per_channel: bool = False
    static: bool = False
    image: tuple[int, int, int] = (64, 32, 32)

    @property
    def size(self) -> int:
        return self.elements * self.dtype.itemsize

    @property
    def floor(self) -> int:
        """Bytes read plus bytes written."""
        return self.size + (self.size // self.timesteps if self.static else self.size)

    def facts(self) -> Row:
        return {
            "dtype": NAMES[self.dtype],
            "timesteps": self.timesteps,
            "elements": self.elements,
            "mib": self.size / MIB,
            "layout": self.layout,
            "v_threshold": "per channel" if self.per_channel else "scalar",
            "static": self.static,
        }

    def __str__(self) -> str:
        extras = [self.layout] + ["per channel"] * self.per_channel + ["static"] * self.static
        return f"{NAMES[self.dtype]} T={self.timesteps} 2^{math.log2(self.elements):.0f} {', '.join(extras)}"


class Inputs:
    """`count` random x_seq of a case, threshold included, and as many buffers of the same
    layout.
    """

    def __init__(self, case: Case, device: str, count: int) -> None:
        steps = 1 if case.static else case.timesteps
        channels = case.image[0]
        per_step = case.elements // case.timesteps
        shape = (
            (per_step,)
            if case.layout == "flat"
            else (per_step // math.prod(case.image), *case.image)
        )
        # Drawn one by one: all at once they would be random for a moment in twice the memory.
        self.x = [self._draw(case, (steps, *shape), device) for _ in range(count)]
        if case.static:
            self.x = [x.expand(case.timesteps, *x.shape[1:]) for x in self.x]
        self.theta: float | Tensor = THETA
        if case.per_channel:
            # In the state dtype, as IFNode keeps it: another one costs a conversion per call.
            self.theta = torch.rand(channels, 1, 1, device=device) * 0.5 + 0.75

    @staticmethod
    def _draw(case: Case, shape: tuple[int, ...], device: str) -> Tensor:
        x = torch.randn(shape, device=device, dtype=case.dtype).mul_(1.2).add_(0.35)
        if case.layout == "channels_last":
            x = x.flatten(0, 1).to(memory_format=torch.channels_last).unflatten(0, shape[:2])
        return x

    @functools.cached_property
    def buffers(self) -> list[Tensor]:
        return [torch.empty_like(x) for x in self.x]

    def refill(self) -> None:
        for buffer, x in zip(self.buffers, self.x):
            buffer.copy_(x)


class CpuClock:
    """Wall time of each call, to prove that the script runs."""

    device = "cpu"
    name = bench._processor()

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
                first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
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
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
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


@contextlib.contextmanager
def capturing(graph: torch.cuda.CUDAGraph, warm_up: Call) -> Iterator[None]:
    """Captures the block into `graph`, after warm_up() on a side stream, as torch's documentation
    asks.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        warm_up()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    # thread_local: a compile worker's thread may do what capture forbids, and is none of our
    # business.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        yield


def graph_seconds(calls: list[Call]) -> float:
    """Device time of a call inside a captured graph of all of them."""
    graph, kept = torch.cuda.CUDAGraph(), []
    with capturing(graph, calls[0]):
        kept += [call() for call in calls]
    seconds = []
    for _ in range(12):
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        graph.replay()
        last.record()
        torch.cuda.synchronize()
        seconds.append(first.elapsed_time(last) / 1e3 / len(calls))
    return statistics.median(seconds[2:])


def graph_nodes(call: Call) -> list[int]:
    """The types of the nodes that a call becomes in a CUDA graph, by the driver's numbers: 0 is a
    kernel launch.
    """
    graph = torch.cuda.CUDAGraph(keep_graph=True)
    with capturing(graph, call):
        kept = call()
    driver = ctypes.CDLL("libcuda.so.1")
    handle, count = ctypes.c_void_p(graph.raw_cuda_graph()), ctypes.c_size_t(0)
    status = driver.cuGraphGetNodes(handle, None, ctypes.byref(count))
    nodes = (ctypes.c_void_p * max(1, count.value))()
    status = status or driver.cuGraphGetNodes(handle, nodes, ctypes.byref(count))
    kinds = []
    for node in nodes[: count.value]:
        kind = ctypes.c_int(-1)
        status = status or driver.cuGraphNodeGetType(ctypes.c_void_p(node), ctypes.byref(kind))
        kinds.append(kind.value)
    if status:
        raise RuntimeError(f"the driver answers {status} when asked for the nodes of a graph")
    del kept
    return kinds


def plain_loop(x: Tensor) -> Tensor:
    # bench.plain_if keeps its potential in x's dtype; in half precision that is another function
    # than if_forward.
    v = torch.full_like(x[0], THETA / 2, dtype=torch.float32)
    return bench.plain_if_into(x, THETA, torch.empty_like(x), v)


def plain_stack(x: Tensor) -> Tensor:
    # The form that inductor fuses best (bench._stacked_if), again with a float32 potential and x's
    # dtype emitted.
    v = torch.full_like(x[0], THETA / 2, dtype=torch.float32)
    steps = []
    for t in range(x.shape[0]):
        m = v + x[t]
        s = torch.where(m >= THETA, THETA, 0.0)
        v = m - s
        steps.append(s.to(x.dtype))
    return torch.stack(steps)


def compile_(function: Callable[..., Tensor], mode: str) -> Callable[..., Tensor]:
    compiled = torch.compile(
        function, fullgraph=True, dynamic=False, mode=None if mode == "default" else mode
    )
    if mode != "max-autotune":
        return compiled

    def step(*args: Any) -> Tensor:
        torch.compiler.cudagraph_mark_step_begin()
        return compiled(*args)

    return step


class Peers:
    """SpikingJelly, in up to two versions, from wheels that are unpacked or from where it is
    installed.
    """

    def __init__(self, wheels: str | None, device: str) -> None:
        self.skipped: dict[str, str] = {}
        self.notes: dict[str, Any] = {}
        self.versions: dict[str, str] = {}
        self.new: Any = None  # spikingjelly.activation_based of version 2
        self.old: Any = None  # the same of version 0.0.0.0.14
        self._folder = tempfile.TemporaryDirectory()  # alive as long as the modules are
        own = self._unpack(wheels)
        if not own and importlib.util.find_spec("spikingjelly") is not None:
            own = {importlib.metadata.version("spikingjelly"): None}
        for version, path in sorted(
            own.items()
        ):  # 2.x last: it stays importable for bench.spikingjelly_if
            name = SJ_OLD if version.startswith("0.") else "SpikingJelly 2"
            try:
                self._load(version, path)
                self.versions[name] = version
            except Exception as error:
                self.skipped[name] = brief(error)
        reason = (
            "COS_EXT_PEER_WHEELS is not set"
            if not wheels
            else "no such wheel in COS_EXT_PEER_WHEELS"
        )
        for name, module in (("SpikingJelly 2", self.new), (SJ_OLD, self.old)):
            if module is None:
                self.skipped.setdefault(name, reason)
        if self.new is not None and device == "cuda":
            functional = importlib.import_module("spikingjelly.activation_based.functional")
            try:
                selected = functional.neuron_implementation("if", torch.device("cuda", 0))
            except Exception as error:
                selected = brief(error)
            self.notes["SpikingJelly 2 selects"] = selected

    def _unpack(self, wheels: str | None) -> dict[str, Path | None]:
        found: dict[str, Path | None] = {}
        for wheel in sorted(Path(wheels).glob("*.whl")) if wheels else []:
            name, version, *_, tag = wheel.stem.split("-")
            if tag != "any":
                continue
            target = Path(self._folder.name) / f"{name}-{version}"
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(target)
            if name.lower() == "spikingjelly":
                found[version] = target
            else:
                sys.path.append(str(target))
        return found

    def _load(self, version: str, path: Path | None) -> None:
        for name in [name for name in sys.modules if name.partition(".")[0] == "spikingjelly"]:
            del sys.modules[name]  # an older version's modules live on in the objects that use them
        if path is not None:
            sys.path.insert(0, str(path))
        try:
            module = importlib.import_module("spikingjelly.activation_based.neuron")
            if version.startswith("0."):
                self.old = module
                importlib.import_module("spikingjelly.activation_based.functional")
            else:
                self.new = module
        finally:
            if path is not None and version.startswith("0."):
                sys.path.remove(str(path))

    def forms(
        self, dtype: torch.dtype, device: str
    ) -> dict[str, tuple[Callable[[Tensor], Call], bool]]:
        """By name: what makes a call for an input, and whether it is if_forward's function with
        v_init = 0.
        """
        forms: dict[str, tuple[Callable[[Tensor], Call], bool]] = {}
        single = dtype == torch.float32
        if self.new is not None:
            forms[SJ_NODE] = (self._new_node, single)
            if not single:
                forms[SJ_STATE] = (lambda x: functools.partial(self._with_float_state, x), True)
        if self.old is not None:
            forms[f"{SJ_OLD} jit"] = (lambda x: self._old_node(x, "torch"), single)
            if device == "cuda" and dtype != torch.bfloat16:  # its kernels know float and half2
                forms[f"{SJ_OLD} cupy"] = (lambda x: self._old_node(x, "cupy"), single)
        return forms

    def _new_node(self, x: Tensor) -> Call:
        call = bench.spikingjelly_if(x, THETA)
        if call is None:
            raise ImportError("spikingjelly.activation_based cannot be imported")
        return call

    def _with_float_state(self, x: Tensor) -> Tensor:
        """Its fused kernel, which IFNode does not reach in half precision: the state there takes
        the input's dtype.
        """
        functional = importlib.import_module("spikingjelly.activation_based.functional")
        with torch.inference_mode():
            return functional.if_multi_step(
                x, torch.zeros_like(x[0], dtype=torch.float32), THETA, None
            )[0]

    def _old_node(self, x: Tensor, backend: str) -> Call:
        node = self.old.IFNode(v_threshold=THETA, v_reset=None, step_mode="m", backend=backend)
        node.train(backend == "cupy")  # in eval mode it takes the jit loop whatever the back end

        def call() -> Tensor:
            node.reset()
            with torch.no_grad():
                return node(x)

        if backend == "cupy" and not hasattr(np, "int"):
            np.int = int  # it asks for this name, which NumPy took away
        return call


class Grid(NamedTuple):
    """What is measured. base: log2 of the elements of the core; sizes: log2 of the others."""

    base: int
    dtypes: tuple[torch.dtype, ...]
    steps: tuple[int, ...]  # the most important first
    sizes: tuple[int, ...]
    image: tuple[int, int, int]
    small: tuple[tuple[torch.dtype, int, int], ...]  # (dtype, T, log2 of the elements)
    modes: tuple[str, ...]


def grid(device: str, quick: bool) -> Grid:
    single, half = torch.float32, torch.float16
    if device == "cuda" and not quick:
        return Grid(
            26,
            tuple(NAMES),
            (8, 4, 2, 1, 16, 32),
            tuple(range(16, 28)),
            (64, 32, 32),
            ((single, 8, 18), (half, 8, 19), (single, 4, 16)),
            MODES,
        )
    if device == "cuda":
        return Grid(22, tuple(NAMES), (8, 1), (16, 20), (64, 32, 32), ((single, 8, 18),), MODES[:1])
    base = 13 if quick else 18
    return Grid(
        base, tuple(NAMES), (8, 1), (base - 3,), (8, 4, 4), ((single, 8, base - 3),), MODES[:1]
    )


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
        self.targets: list[Row] = []
        self.facts: Row = {}

    # What there is to do

    def plan(self) -> Iterator[tuple[str, Callable[..., None], Case, float]]:
        """(name, method, case, seconds that must be left to begin it)."""
        g = self.grid

        def case(dtype: torch.dtype, steps: int, log2: int = g.base, **options: Any) -> Case:
            return Case(dtype, steps, 2**log2, image=g.image, **options)

        main, rest = g.steps[:2] if len(g.steps) > 2 else g.steps, g.steps[2:]
        first = g.steps[0]
        compiling = [
            (dtype, steps)
            for steps in main
            for dtype in g.dtypes
            if (dtype, steps) != (g.dtypes[0], first)
        ]
        for steps in g.steps:
            for dtype in g.dtypes:
                yield "kernels", self.kernels, case(dtype, steps), 0
        for steps in main:
            for dtype in g.dtypes:
                yield "peers", self.eager_peers, case(dtype, steps), 0
        for dtype, steps, log2 in g.small:
            yield "small layer", self.small_layer, case(dtype, steps, log2), 5
        yield "torch.compile", self.compiled_peers, case(g.dtypes[0], first), 15
        for dtype in g.dtypes:
            for options in (
                {"layout": "nchw", "per_channel": True},
                {"layout": "channels_last", "per_channel": True},
                {"layout": "channels_last"},
                {"static": True},
                {"layout": "nchw", "per_channel": True, "static": True},
            ):
                yield "kernels", self.kernels, case(dtype, first, **options), 0
        for log2 in sorted(g.sizes, reverse=True):
            for dtype in g.dtypes:
                if log2 != g.base:
                    yield "kernels", self.kernels, case(dtype, first, log2), 0
        for steps in rest:
            for dtype in g.dtypes:
                yield "peers", self.eager_peers, case(dtype, steps), 0
        for dtype, steps in compiling:
            yield "torch.compile", self.compiled_peers, case(dtype, steps), 10 + steps
        for steps in rest:
            for dtype in g.dtypes:
                yield "torch.compile", self.compiled_peers, case(dtype, steps), 10 + steps
        for log2 in sorted(g.sizes, reverse=True):
            for steps in g.steps[1:] if rest else ():
                for dtype in g.dtypes:
                    if log2 != g.base:
                        yield "kernels", self.kernels, case(dtype, steps, log2), 0
        for steps in g.steps[1:] if rest else ():
            for dtype in g.dtypes:
                for options in (
                    {"layout": "nchw", "per_channel": True},
                    {"static": True},
                    {"layout": "channels_last", "per_channel": True},
                ):
                    yield "kernels", self.kernels, case(dtype, steps, **options), 0

    def execute(self) -> None:
        signal.signal(
            signal.SIGTERM, _stop
        )  # `timeout` ends a run with it: what was measured is still reported
        stopped = ""
        for name, method, case, needed in self.plan():
            label = f"{name}: {case}"
            if name == "torch.compile" and not self.compiled:
                continue
            if stopped or time.monotonic() + needed > self.deadline:
                self.left_out.append(label)
                continue
            print(f"{time.monotonic() - self.started:6.1f} s  {label}", file=sys.stderr, flush=True)
            try:
                try:
                    method(case)
                except Exception as error:
                    self.failed(label, error)
                self.save()
                gc.collect()
                if self.clock.device == "cuda":
                    torch.cuda.empty_cache()
            except Stopped as error:
                stopped = str(error)
                self.errors.append(f"{label}: {stopped}")
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the report is next
        self.targets = targets(self.rows, self.small)

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

    def save(self, last: bool = False) -> None:
        """Writes the JSON file; complete only the last time, but there is something after a kill
        too.
        """
        if self.path is None:
            return
        for row in self.rows if last else ():
            ours = (
                None
                if row["call"] in ("copy", "if_forward", "cos_forward")
                else ours_for(self.rows, row)
            )
            if ours and "median_us" in row:
                row["times_ours"] = row["median_us"] / ours["median_us"]
        found = {
            **self.facts,
            "seconds": time.monotonic() - self.started,
            "targets": self.targets,
            "errors": self.errors,
            "left_out": self.left_out,
            "peers_skipped": self.peers.skipped,
            "peers_notes": self.peers.notes,
        }
        text = json.dumps(found, indent=1).removesuffix("\n}")
        for name, rows in (("small_layers", self.small), ("rows", self.rows)):
            lines = (
                json.dumps({key: rounded(value) for key, value in row.items()}) for row in rows
            )
            text += f',\n "{name}": [\n  ' + ",\n  ".join(lines) + "\n ]"
        unfinished = self.path.with_suffix(".part")
        unfinished.write_text(text + "\n}\n")
        unfinished.replace(self.path)

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
        **facts: Any,
    ) -> None:
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
            "gb_per_s": case.floor / median / 1e9,
        }
        copy = find(
            self.rows, call="copy", **{**case.facts(), "v_threshold": "scalar", "static": False}
        )
        if copy:
            row["percent_of_copy"] = 100 * row["gb_per_s"] / copy["gb_per_s"]

    def inputs(self, case: Case) -> Inputs:
        torch.manual_seed(0)
        return Inputs(case, self.clock.device, self.clock.buffers(case))

    def kernels(self, case: Case) -> None:
        """A copy, if_forward and cos_forward. Outputs are first compared with
        cos_ext.reference's.
        """
        inputs = self.inputs(case)
        x, theta = inputs.x, inputs.theta
        plain = case.facts() | {"v_threshold": "scalar", "static": False}
        if not find(self.rows, call="copy", **plain):
            whole = Case(case.dtype, case.timesteps, case.elements, case.layout, image=case.image)
            sources = x if not case.static else self.inputs(whole).x
            copies = [torch.empty_like(source) for source in sources]
            self.row(
                whole,
                "copy",
                [functools.partial(y.copy_, source) for y, source in zip(copies, sources)],
            )
            del sources, copies
        watched = [rho for rho in (4, 8) if rho <= case.timesteps] or [case.timesteps]
        forms: list[tuple[str, Row]] = [("if_forward", {})]
        forms += [
            ("cos_forward", {"rho": rho, "iterations": k}) for rho in watched for k in (1, None)
        ]
        for call, options in forms:
            operator = getattr(F, call)
            expected = getattr(reference, call)(x[0], theta, **options).spikes
            problem = differs(
                operator(x[0], theta, **options).spikes, expected, "cos_ext.reference"
            )
            self.row(
                case,
                call,
                [functools.partial(operator, one, theta, **options) for one in x],
                problem=problem,
                inplace=False,
                **options,
            )
            if case.static:
                continue  # steps that share memory cannot be overwritten
            inputs.refill()
            problem = differs(
                operator(inputs.buffers[0], theta, inplace=True, **options).spikes,
                expected,
                "cos_ext.reference",
            )
            self.row(
                case,
                call,
                [
                    functools.partial(operator, one, theta, inplace=True, **options)
                    for one in inputs.buffers
                ],
                problem=problem,
                restore=inputs.refill,
                keep=False,
                inplace=True,
                **options,
            )

    def peer(
        self,
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
            self.row(case, call, calls, problem=problem, same_function=same, agrees=agrees, **facts)
        except Exception as error:
            self.failed_peer(f"{call} on {case}", error)

    def eager_peers(self, case: Case) -> None:
        x = self.inputs(case).x
        expected = F.if_forward(x[0], THETA).spikes
        self.peer(case, LOOP, x, lambda one: functools.partial(plain_loop, one), expected, True)
        expected = F.if_forward(x[0], THETA, 0.0).spikes  # SpikingJelly starts at 0
        for name, (form, same) in self.peers.forms(case.dtype, self.clock.device).items():
            self.peer(case, name, x, form, expected, same)
        for rho in (rho for rho in (4, 8) if rho <= case.timesteps):
            expected = F.cos_forward(x[0], THETA, rho=rho).spikes
            # In half precision its arithmetic is half precision too: another function, and fewer
            # bytes than ours reads.
            self.peer(
                case,
                CALIBRATION,
                x,
                lambda one, rho=rho: functools.partial(bench.plain_cos, one, THETA, rho),
                expected,
                case.dtype == torch.float32,
                rho=rho,
                iterations=1,
            )

    def compiled_peers(self, case: Case) -> None:
        """Both forms of the loop by default, the better one in the other modes; then the
        calibration.
        """
        x = self.inputs(case).x
        expected = F.if_forward(x[0], THETA).spikes
        forms = {"loop": plain_loop, "stack": plain_stack}
        for name, form in forms.items():
            self._compiled(case, COMPILED, form, x, (), MODES[0], name, expected, True)
        done = [
            row
            for row in self.rows
            if row["call"] == COMPILED and "median_us" in row and same_case(row, case)
        ]
        if done:
            best = min(done, key=lambda row: row["median_us"])["form"]
            for mode in self.grid.modes[1:]:
                self._compiled(case, COMPILED, forms[best], x, (), mode, best, expected, True)
        same = case.dtype == torch.float32
        for rho in (rho for rho in (4, 8) if rho <= case.timesteps):
            expected = F.cos_forward(x[0], THETA, rho=rho).spikes
            for mode in self.grid.modes[:2] if rho == 4 else self.grid.modes[:1]:
                self._compiled(
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
        self,
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
        if time.monotonic() + 5 > self.deadline:
            self.left_out.append(f"torch.compile ({form}, {mode}, {facts}): {case}")
            return
        start = time.monotonic()
        compiled = compile_(function, mode)
        try:
            for _ in range(3):  # with CUDA graphs: compile, record, replay
                compiled(x[0], *args)
            self.clock.synchronize()
        except Exception as error:
            self.failed_peer(f"{call} ({form}, {mode}) on {case}", error)
        else:
            facts |= {"mode": mode, "form": form, "compile_s": time.monotonic() - start}
            # With CUDA graphs every result lies in the same memory: there is nothing to keep.
            self.peer(
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
            gc.collect()
            if self.clock.device == "cuda":
                torch.cuda.empty_cache()

    def small_layer(self, case: Case) -> None:
        """Microseconds a call: on the host, on the device back to back, and on the device inside a
        captured graph.
        """
        inputs = self.inputs(case)
        x, cuda = inputs.x, self.clock.device == "cuda"
        rho = min(4, case.timesteps)
        forms: dict[str, Callable[[Tensor], Any]] = {
            "if_forward": lambda one: F.if_forward(one, THETA),
            "if_forward, in place": lambda one: F.if_forward(one, THETA, inplace=True),
            f"cos_forward, rho = {rho}, exact": lambda one: F.cos_forward(
                one, THETA, rho=rho, iterations=None
            ),
        }
        if self.compiled:
            forms |= {
                "torch.compile, loop": compile_(plain_loop, "default"),
                "torch.compile, stack": compile_(plain_stack, "default"),
            }
        for name, form in forms.items():
            operator, options = (
                (reference.cos_forward, {"rho": rho, "iterations": None})
                if name.startswith("cos")
                else (reference.if_forward, {})
            )
            expected = operator(x[0], THETA, **options).spikes
            inputs.refill()
            inplace = "in place" in name
            calls = [functools.partial(form, one) for one in (inputs.buffers if inplace else x)]
            row: Row = {"call": name, **case.facts()}
            self.small.append(row)
            try:
                result = calls[0]()
                problem = differs(getattr(result, "spikes", result), expected, "cos_ext.reference")
                if problem:
                    row["error"] = problem
                    self.errors.append(f"small layer, {name} on {case}: {problem}")
                    continue
                row["host_us"] = 1e6 * host_seconds(
                    [calls[i % len(calls)] for i in range(200 if cuda else 5)],
                    self.clock.synchronize,
                )
                # In place, a second pass would see spikes: device time is that of the other forms.
                if not inplace:
                    row["device_us"] = 1e6 * self.clock.batch(calls)
                if cuda and not inplace:
                    row["graph_us"] = 1e6 * graph_seconds(calls)
                if cuda:
                    row["graph_nodes"] = graph_nodes(calls[0])
            except Exception as error:
                row["error"] = brief(error)
                failed = self.failed_peer if name.startswith("torch") else self.failed
                failed(f"small layer, {name} on {case}", error)
        torch.compiler.reset()


def _stop(number: int, frame: Any) -> None:
    signal.signal(number, signal.SIG_IGN)
    raise Stopped(f"ended by signal {number}")


def brief(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}"


def rounded(value: Any) -> Any:
    return float(f"{value:.5g}") if isinstance(value, float) else value


def differs(result: Tensor, expected: Tensor, whose: str) -> str:
    if result.dtype != expected.dtype or result.shape != expected.shape:
        return f"{result.dtype} {tuple(result.shape)} instead of {expected.dtype} {tuple(expected.shape)}"
    if torch.equal(result, expected):
        return ""
    wrong = (result != expected).sum().item()
    return f"{wrong} of {result.numel()} outputs differ from {whose}"


def find(rows: list[Row], **wanted: Any) -> Row | None:
    """The measured row with these facts."""
    return next(
        (
            row
            for row in rows
            if "median_us" in row and all(row.get(k) == v for k, v in wanted.items())
        ),
        None,
    )


def same_case(row: Row, case: Case) -> bool:
    return all(row[name] == value for name, value in case.facts().items())


CASE_FACTS = ("dtype", "timesteps", "elements", "layout", "v_threshold", "static")


def case_of(row: Row) -> Row:
    return {name: row[name] for name in CASE_FACTS}


def described(row: Row) -> str:
    words = [row["call"]]
    if "rho" in row:
        words.append(f"rho {row['rho']}" + (" exact" if row.get("iterations", 1) is None else ""))
    words += ["in place"] * bool(row.get("inplace"))
    words += [row["dtype"], f"T={row['timesteps']}", f"{row['mib']:.4g} MiB"]
    words += [row["layout"]] * (row["layout"] != "flat") + ["per channel"] * (
        row["v_threshold"] != "scalar"
    )
    return ", ".join(words + ["static"] * row["static"])


def ours_for(rows: list[Row], peer: Row) -> Row | None:
    """Our out-of-place row that does a peer's work."""
    if "rho" in peer:
        return find(
            rows, call="cos_forward", inplace=False, rho=peer["rho"], iterations=1, **case_of(peer)
        )
    return find(rows, call="if_forward", inplace=False, **case_of(peer))


def ratios(
    rows: list[Row], *calls: str, dtypes: tuple[str, ...] = ("f32", "f16", "bf16")
) -> list[tuple[float, Row]]:
    """(peer's time / ours, peer's row) of large layers; where a call has several forms, the
    fastest.
    """
    best: dict[tuple[Any, ...], Row] = {}
    for row in rows:
        if (
            row["call"] in calls
            and row["dtype"] in dtypes
            and "median_us" in row
            and row["mib"] * MIB >= LARGE
        ):
            key = (*case_of(row).values(), row["call"], row.get("rho"))
            if key not in best or row["median_us"] < best[key]["median_us"]:
                best[key] = row
    pairs = [(row, ours_for(rows, row)) for row in best.values()]
    return [(row["median_us"] / ours["median_us"], row) for row, ours in pairs if ours]


def targets(rows: list[Row], small: list[Row]) -> list[Row]:
    """Issue 3's "Reach", line by line."""
    large = [
        row
        for row in rows
        if row["mib"] * MIB >= LARGE and "median_us" in row and not row["static"]
    ]

    Values = list[tuple[float, str]]

    def line(
        name: str, goal: str, values: Values, reached: Callable[[float], bool], worst: Any
    ) -> Row:
        if not values:
            return {"target": name, "goal": goal, "state": "not measured"}
        value, where = worst(values, key=lambda pair: pair[0])
        failing = sum(not reached(v) for v, _ in values)
        return {
            "target": name,
            "goal": goal,
            "state": "missed" if failing else "reached",
            "worst": value,
            "where": where,
            "rows": len(values),
            "rows_missed": failing,
        }

    def at_least(name: str, limit: float, values: Values, unit: str) -> Row:
        return line(name, f">= {limit:g}{unit}", values, lambda v: v >= limit, min)

    def under(name: str, limit: float, values: Values, unit: str) -> Row:
        return line(name, f"<= {limit:g}{unit}", values, lambda v: v <= limit, max)

    def peers(*calls: str, **options: Any) -> Values:
        return [(ratio, described(row)) for ratio, row in ratios(rows, *calls, **options)]

    def copies(call: str, dtype: str) -> Values:
        return [
            (row["percent_of_copy"], described(row))
            for row in large
            if row["call"] == call
            and row["dtype"] == dtype
            and row.get("iterations") is None
            and "percent_of_copy" in row
        ]

    against_if = []
    for row in large:
        if row["call"] == "cos_forward":
            base = find(rows, call="if_forward", inplace=row["inplace"], **case_of(row))
            if base:
                against_if.append(
                    (100 * (row["median_us"] / base["median_us"] - 1), described(row))
                )
    found = [
        at_least(
            f"{call}{' exact' * (call == 'cos_forward')}, {dtype}, of copy",
            92,
            copies(call, dtype),
            "%",
        )
        for call in ("if_forward", "cos_forward")
        for dtype in NAMES.values()
    ]
    found += [
        under("cos_forward over if_forward", 5, against_if, "%"),
        at_least("SpikingJelly 2 IFNode, f32", 1.4, peers(SJ_NODE, dtypes=("f32",)), "x"),
        at_least(
            "SpikingJelly 2 IFNode, f16 and bf16", 4, peers(SJ_NODE, dtypes=("f16", "bf16")), "x"
        ),
        at_least("torch.compile's best", 1, peers(COMPILED, COMPILED_CALIBRATION), "x"),
        at_least("calibration in plain torch", 40, peers(CALIBRATION), "x"),
    ]
    ours = [row for row in small if not row["call"].startswith("torch") and "error" not in row]
    launches = [
        (float(len(row["graph_nodes"])), described(row)) for row in ours if "graph_nodes" in row
    ]
    hosts = [(row["host_us"], described(row)) for row in ours if "host_us" in row]
    eager = []
    for row in (row for row in ours if row["call"] == "if_forward"):
        peers_ = [
            other
            for other in small
            if other["call"].startswith("torch")
            and case_of(other) == case_of(row)
            and "device_us" in other
            and "host_us" in other
        ]
        if peers_:
            # Outside a graph a call costs what the slower of host and device takes.
            theirs = min(max(other["device_us"], other["host_us"]) for other in peers_)
            eager.append((theirs / max(row["device_us"], row["host_us"]), described(row)))
    found += [
        under("small layers: launches a call", 1, launches, ""),
        under("small layers: host time a call", 15, hosts, " us"),
        at_least("small layers: torch.compile, eager", 1, eager, "x"),
    ]
    return found


def table(run: Run) -> list[str]:
    """At most 100 lines."""
    rows, g = run.rows, run.grid
    lines = []

    def cell(row: Row | None, key: str, form: str, width: int = 7) -> str:
        if row is None:
            return f"{'-':>{width}}"
        return f"{row[key]:{width}{form}}" if key in row else f"{'error':>{width}}"

    def percent(case: Row, call: str, **facts: Any) -> str:
        return cell(find(rows, call=call, **case, **facts), "percent_of_copy", ".1f")

    def flat(dtype: str, steps: int, log2: int) -> Row:
        return {
            "dtype": dtype,
            "timesteps": steps,
            "elements": 2**log2,
            "layout": "flat",
            "v_threshold": "scalar",
            "static": False,
        }

    columns = [
        ("if_forward", {}),
        *(("cos_forward", {"rho": rho, "iterations": i}) for rho in (4, 8) for i in (1, None)),
    ]
    lines.append(f"% of copy bandwidth, 2^{g.base} elements, out of place | in place")
    head = "".join(f"{name:>7}" for name in ("if", "rho4", "exact", "rho8", "exact"))
    lines.append(f"{'':8}{'copy GB/s':>10}{head} |{head}")
    for steps in sorted(g.steps):
        for dtype in (NAMES[dtype] for dtype in g.dtypes):
            case = flat(dtype, steps, g.base)
            sides = [
                "".join(percent(case, call, inplace=inplace, **facts) for call, facts in columns)
                for inplace in (False, True)
            ]
            copy = cell(find(rows, call="copy", **case), "gb_per_s", ".0f", 10)
            lines.append(f"{dtype:5}T={steps:<2}{copy[1:]}{sides[0]} |{sides[1]}")
    lines.append(f"ratio: their time / ours, 2^{g.base} elements, out of place (below 1: we lose)")
    names = {
        LOOP: "loop",
        COMPILED: "compile",
        SJ_NODE: "SJ2",
        SJ_STATE: "SJ2f32",
        f"{SJ_OLD} jit": "SJ0jit",
        f"{SJ_OLD} cupy": "SJ0cupy",
        (CALIBRATION, 4): "cal4",
        (CALIBRATION, 8): "cal8",
        (COMPILED_CALIBRATION, 4): "ccal4",
        (COMPILED_CALIBRATION, 8): "ccal8",
    }
    lines.append(f"{'':9}" + "".join(f"{name:>9}" for name in names.values()))
    for steps in sorted(g.steps):
        for dtype in (NAMES[dtype] for dtype in g.dtypes):
            cells = []
            for name in names:
                call, rho = name if isinstance(name, tuple) else (name, None)
                case = flat(dtype, steps, g.base)
                found = [
                    row
                    for row in rows
                    if row["call"] == call
                    and row.get("rho") == rho
                    and "median_us" in row
                    and case_of(row) == case
                ]
                best = min(found, key=lambda row: row["median_us"], default=None)
                ours = ours_for(rows, best) if best else None
                cells.append(
                    f"{best['median_us'] / ours['median_us']:9.2f}"
                    if best and ours
                    else f"{'-':>9}"
                )
            if any(cell.strip() != "-" for cell in cells):
                lines.append(f"{dtype:5}T={steps:<2}" + "".join(cells))
    lines.append(f"sizes, T = {g.steps[0]}: us (% of copy), out of place")
    lines.append(
        " " * 5
        + "".join(
            f"{NAMES[dtype] + call:>15}" for dtype in g.dtypes for call in (" if", " rho4 exact")
        )
    )
    for log2 in sorted({*g.sizes, g.base}):
        cells = []
        for dtype in (NAMES[dtype] for dtype in g.dtypes):
            for call, facts in (columns[0], columns[2]):
                row = find(rows, call=call, inplace=False, **flat(dtype, g.steps[0], log2), **facts)
                cells.append(
                    f"{cell(row, 'median_us', '.1f', 8)} ({cell(row, 'percent_of_copy', '.0f', 3)})"
                )
        lines.append(f"2^{log2:<3}" + "".join(f"{text:>15}" for text in cells))
    lines.append(
        f"layouts, T = {g.steps[0]}, 2^{g.base}: % of copy of if, rho4, exact, rho8, exact; out of "
        "place"
    )
    for layout, threshold, static in (
        ("nchw", "per channel", False),
        ("channels_last", "per channel", False),
        ("channels_last", "scalar", False),
        ("flat", "scalar", True),
        ("nchw", "per channel", True),
    ):
        cells = []
        for dtype in (NAMES[dtype] for dtype in g.dtypes):
            case = flat(dtype, g.steps[0], g.base) | {
                "layout": layout,
                "v_threshold": threshold,
                "static": static,
            }
            values = [
                find(rows, call=call, inplace=False, **case, **facts) for call, facts in columns
            ]
            cells.append("".join(cell(row, "percent_of_copy", ".0f", 4) for row in values))
        lines.append(f"{layout + ' ' + threshold + ' static' * static:30}" + " |".join(cells))
    lines.append("small layers, us a call: host / device / in a graph")
    for dtype, steps, log2 in g.small:
        cells = []
        for row in run.small:
            if case_of(row) == flat(NAMES[dtype], steps, log2) and "error" not in row:
                times = (
                    f"{row[key]:.1f}" if key in row else "-"
                    for key in ("host_us", "device_us", "graph_us")
                )
                cells.append(f"{row['call']} {'/'.join(times)}")
        lines += textwrap.wrap(
            f"{NAMES[dtype]} T={steps} 2^{log2}: " + "; ".join(cells), 110, subsequent_indent="  "
        )
    everyone = (
        LOOP,
        COMPILED,
        CALIBRATION,
        COMPILED_CALIBRATION,
        SJ_NODE,
        SJ_STATE,
        f"{SJ_OLD} jit",
        f"{SJ_OLD} cupy",
    )
    lost = sorted(
        (pair for pair in ratios(rows, *everyone) if pair[0] < 1), key=lambda pair: pair[0]
    )
    lines.append(
        f"where we lose to a peer, from {LARGE // MIB} MiB on: "
        f"{'' if lost else 'nowhere that was measured'}"
    )
    lines += [f"  {ratio:.2f} of our time: {described(row)}" for ratio, row in lost[:4]]
    lines += [f"ERROR {text}"[:118] for text in run.errors[:4]]
    lines += [f"... {len(run.errors) - 4} more errors, see the JSON"] * (len(run.errors) > 4)
    lines += [
        f"skipped {name}: {reason}"[:118] for name, reason in list(run.peers.skipped.items())[:3]
    ]
    lines += [f"left out for want of time: {len(run.left_out)} jobs, see the JSON"] * bool(
        run.left_out
    )
    lines.append(
        "targets"
        + ("" if run.clock.device == "cuda" else " (they are for a GPU: on a CPU they say nothing)")
    )
    for target in run.targets:
        text = f"{target['state']:13}{target['target']:38}{target['goal']:>8}"
        if "worst" in target:
            count = (
                f"{target['rows_missed']} of {target['rows']} rows miss; "
                if target["rows_missed"]
                else ""
            )
            text += f"  {count}worst {target['worst']:.2f}: {target['where']}"
        lines.append(text[:150])
    return lines


def facts(clock: CpuClock | CudaClock) -> Row:
    """Machine, versions, commit, date and command."""

    def said(*command: str) -> str | None:
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip()

    def version(package: str) -> str | None:
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            return None

    nvcc = re.search(r"release (\S+?),", said("nvcc", "--version") or "")
    root = str(Path(__file__).resolve().parent.parent)
    versions = {name: version(name) for name in ("torch", "triton", "numpy")}
    cupy = next(
        (
            f"{name} {version(name)}"
            for name in ("cupy-cuda13x", "cupy-cuda12x", "cupy")
            if version(name)
        ),
        None,
    )
    driver = said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    found = {
        "machine": clock.name,
        "device": clock.device,
        "processor": bench._processor(),
        "platform": platform.platform(),
        "versions": {
            "python": platform.python_version(),
            **versions,
            "cuda": torch.version.cuda,
            "cupy": cupy,
            "driver": driver,
            "nvcc": nvcc.group(1) if nvcc else None,
        },
        "build": cos_ext.build_info(),
        "commit": os.environ.get("COS_EXT_COMMIT") or said("git", "-C", root, "rev-parse", "HEAD"),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join([Path(sys.executable).name, *sys.argv]),
    }
    if isinstance(clock, CudaClock):
        memory = torch.cuda.get_device_properties(0).total_memory
        found |= {"l2_mib": clock.l2 / MIB, "memory_gib": memory / 2**30}
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        description="One layer on a GPU, against a copy and against peers."
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="few and small cases")
    parser.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="torch.compile as a peer (default: on a GPU)",
    )
    parser.add_argument(
        "--minutes", type=float, default=5.0, help="begin nothing after this long (default 5)"
    )
    parser.add_argument("--json", type=Path, help="write everything here, after every job")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no CUDA device; --device cpu proves that the script runs")
    if options.device == "cuda" and not cos_ext.build_info()["cuda"]:
        parser.error(f"this cos_ext has no CUDA kernels: {cos_ext.build_info()['cuda_off']}")
    compiled = options.device == "cuda" if options.compile is None else options.compile
    peers = Peers(os.environ.get("COS_EXT_PEER_WHEELS"), options.device)
    run = Run(options.device, options.quick, compiled, options.minutes, peers, options.json)
    run.facts = facts(run.clock)
    run.facts["versions"]["spikingjelly"] = sorted(peers.versions.values())
    with torch.no_grad():
        run.execute()
    run.save(last=True)
    print(
        f"{run.clock.name}, torch {torch.__version__}, commit {run.facts['commit']}, "
        f"{time.monotonic() - run.started:.0f} s"
    )
    print("\n".join(table(run)))
    return 1 if run.errors else 0


if __name__ == "__main__":
    sys.exit(main())
