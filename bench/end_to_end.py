"""Whole networks: images per second and peak memory of cos_ext, of its layers alone, and of what
one would run instead.

    python bench/end_to_end.py [--networks N ...] [--sizes S ...] [--timesteps T ...] [--rho R ...]
    [--batch B]
        [--repeats N] [--rows ROW ...] [--device cpu|cuda] [--dtype D] [--threads N] [--clock
        wall|cpu] [--peers DIR] [--compile] [--profile] [--no-memory] [--full] [--short] [--note
        TEXT] [--json FILE]

Building the contestants, checking them against each other, timing and reporting live here; no
kernels, and no accuracy.

Rows, every one in the faster of two memory layouts, BatchNorm folded, under inference_mode, on the
same random images and the same random weights (time does not depend on them; thresholds are the
99th percentile of the activations, and the spike rate is printed):

    ANN         one pass with ReLU in place: what the network cost before it was converted floor
    the convolutions, linear and pooling layers of the converted network alone, on max(T, rho) times
    the
                batch; what stands before the first neurons once. Neurons hand their input on,
                residual sums their first operand.
    cos_ext     the converted network in several settings; "fused" is convert's default plain
    the same network, each layer's neurons as plain torch operations: watch rho steps, shift, run
    all steps SpikingJelly   its ann2snn on the same ReLU network: no calibration, T steps, the
    faster of its step modes compiled    torch.compile of plain

Rows are interleaved in one process; a ratio is the median over the repeats of a row's time to the
floor's in the same repeat. A run during which other processes used the CPUs is repeated. Peak
memory is what a fresh process adds, in its first run, to what it holds once the network and its
input stand.
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import datetime
import gc
import importlib.metadata
import inspect
import json
import operator
import os
import platform
import resource
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

import cos_ext
from cos_ext import bench, calibrate_thresholds, convert, models
from cos_ext.conversion.fold import fold_batchnorms
from cos_ext.conversion.tracing import set_module, trace

# The pairs of network and image size, and the images of a batch.
PAIRS = {("resnet20", 32): 50, ("vgg16", 32): 10, ("resnet34", 224): 1, ("vgg16", 224): 1}
EPSILON = 1e-3
MIB = 2**20
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
FLOOR, ANN, PLAIN, PEER, COMPILED = "floor", "ANN", "plain", "SpikingJelly", "compiled"
# The converted network's settings by row; "counts" is a simulator's shortcut to what "even"
# computes.
NETWORKS: dict[str, dict[str, Any]] = {
    "cos_ext": {"iterations": 1},
    "cos_ext, exact": {"iterations": None},
    "cos_ext, even": {"emission": "even"},
    "cos_ext, counts": {"emission": "even", "execution": "counts"},
}
if "fuse" in inspect.signature(convert).parameters:
    NETWORKS = {
        f"{name}{', fused' if fuse else ''}": {**settings, "fuse": fuse}
        for name, settings in NETWORKS.items()
        for fuse in (False, True)
    }
Call = Callable[[], Any]


class Missing(Exception):
    """A row cannot be run here; the text says why."""


@dataclass(frozen=True)
class Case:
    """What is run: the hidden layers of `network` on images of size x size, max(timesteps, rho)
    steps.
    """

    network: str
    size: int
    timesteps: int
    rho: int
    batch: int
    device: str = "cpu"
    dtype: str = "float32"

    @property
    def steps(self) -> int:
        return max(self.timesteps, self.rho)

    def __str__(self) -> str:
        images = f"{self.batch} images of {self.size}x{self.size}"
        return f"{self.network}, {images}, T = {self.timesteps}, rho = {self.rho}, {self.dtype}, {self.device}"


class PlainNeurons(nn.Module):
    """Calibrated IF neurons, iterations = 1, as plain torch operations over [S*B, ...] (static: [B,
    ...]).

    Hao et al. (ICLR 2023, arXiv 2302.10685), section 4: rho steps are watched, a neuron whose
    residual shows one spike too many or too few has its initial potential shifted, and S steps are
    run. stacked: spikes are collected and stacked, which torch.compile turns into fewer kernels;
    else they are written into one tensor.
    """

    def __init__(
        self,
        theta: Tensor,
        v_init: Tensor,
        steps: int,
        rho: int,
        static: bool,
        stacked: bool = False,
    ) -> None:
        super().__init__()
        self.register_buffer("theta", theta.clone())
        self.register_buffer("v_init", v_init.clone())
        self.steps, self.rho, self.static, self.stacked = steps, rho, static, stacked

    def forward(self, x: Tensor) -> Tensor:
        state = cos_ext.functional.state_dtype(x.dtype)
        theta, start = self.theta.to(state), self.v_init.to(state)
        x_seq = (
            x.unsqueeze(0).expand(self.steps, *x.shape)
            if self.static
            else x.unflatten(0, (self.steps, -1))
        )
        v = start
        if self.rho:
            count = torch.zeros_like(x_seq[0], dtype=torch.int32)
            lowest, highest = (
                torch.full_like(x_seq[0], value, dtype=state) for value in (torch.inf, -torch.inf)
            )
            for t in range(self.rho):
                m = v + x_seq[t]
                fired = m >= theta
                v = m - theta * fired
                count = count + fired
                lowest = torch.where(fired, torch.minimum(lowest, m), lowest)
                highest = torch.where(fired, highest, torch.maximum(highest, v))
            less = start - torch.maximum(theta, lowest - theta * (1 - EPSILON))
            more = start + torch.maximum(theta, theta * (1 + EPSILON) - highest)
            too_many, too_few = (v < 0) & (count > 0), (v >= theta) & (count < self.rho)
            v = torch.where(too_many, less, torch.where(too_few, more, start))
        if self.stacked:
            spikes = []
            for t in range(self.steps):
                m = v + x_seq[t]
                spike = torch.where(m >= theta, theta, 0.0)
                v = m - spike
                spikes.append(spike.to(x.dtype))
            return torch.stack(spikes).flatten(0, 1)
        out = (
            torch.empty(x_seq.shape, dtype=x.dtype, device=x.device)
            if self.static
            else torch.empty_like(x_seq)
        )
        for t in range(self.steps):
            m = v + x_seq[t]
            fired = m >= theta
            torch.mul(fired, theta, out=out[t])
            v = m.sub_(out[t])
        return out.flatten(0, 1)


class Handed(nn.Module):
    """Instead of neurons in the floor: hands its input on. Static: a tensor of the neurons' size
    that is made once.
    """

    def __init__(self, steps: int, static: bool) -> None:
        super().__init__()
        self.steps, self.static = steps, static
        self.kept: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if not self.static:
            return x
        if self.kept is None:
            # Its own memory in the layout of x, so that what follows takes the same path.
            fold = torch.cat([x] * self.steps)
            layout = torch.channels_last if _is_channels_last(x) else torch.contiguous_format
            self.kept = fold.contiguous(memory_format=layout)
        return self.kept


def _is_channels_last(x: Tensor) -> bool:
    return (
        x.dim() == 4
        and x.is_contiguous(memory_format=torch.channels_last)
        and not x.is_contiguous()
    )


class Contestants:
    """What makes the rows of one case; the same weights, thresholds and images in every process."""

    def __init__(self, case: Case, peers: Path | None) -> None:
        self.case, self.peers = case, peers
        torch.manual_seed(0)
        classes, stem = (10, "cifar") if case.size < 100 else (1000, "imagenet")
        self.ann = (
            models.build(case.network, classes, stem=stem, activation=nn.ReLU)
            .eval()
            .requires_grad_(False)
        )
        shape = (3, case.size, case.size)
        self.images = torch.randn(case.batch, *shape).to(case.device, getattr(torch, case.dtype))
        some = [torch.randn(min(case.batch, 4), *shape)]
        self.thresholds = calibrate_thresholds(
            self.ann, some, method="percentile", percentile=99.0, progress=False
        )
        self.calibration_images = some
        self.networks: dict[str, cos_ext.SpikingNetwork] = {}

    def network(self, row: str = "cos_ext") -> cos_ext.SpikingNetwork:
        if row not in self.networks:
            network = convert(
                self.ann,
                timesteps=self.case.timesteps,
                rho=self.case.rho,
                thresholds=self.thresholds,
                **NETWORKS[row],
            )
            self.networks[row] = network.to(self.case.device, getattr(torch, self.case.dtype))
        # What no memory format changes is shared: a VGG-16's Linear layers hold half a gigabyte.
        shared = {id(p): p for p in self.networks[row].parameters() if p.dim() != 4}
        return copy.deepcopy(self.networks[row], shared)

    @staticmethod
    def variants(row: str) -> list[str]:
        """The forms of a row, of which the fastest is measured: layouts, and for the peer step
        modes.
        """
        return (
            [f"{mode} {layout}" for mode in "ms" for layout in LAYOUTS]
            if row == PEER
            else list(LAYOUTS)
        )

    def make(self, row: str, variant: str) -> Call:
        """A call that runs a variant of the row once. Raises Missing where it cannot be run
        here.
        """
        if row == PEER:
            return self._peer(*variant.split())
        layout = variant
        images = self.images.to(memory_format=LAYOUTS[layout])
        if row == ANN:
            module = self._ann()
        elif row == FLOOR:
            module = self._floor()
        elif row in (PLAIN, COMPILED):
            module = self._plain(stacked=row == COMPILED)
        else:
            module = self.network(row)
        module = module.to(memory_format=LAYOUTS[layout])
        if row == COMPILED:
            module = torch.compile(module, dynamic=False)
        return lambda: module(images)

    def _ann(self) -> nn.Module:
        """With BatchNorm folded and ReLU in place."""
        traced = trace(self.ann)
        fold_batchnorms(traced.module, dict.fromkeys(traced.graph.nodes, 4))
        module = fx.GraphModule(traced.module, traced.graph)
        for site in traced.sites:
            set_module(module, site, nn.ReLU(inplace=True))
        return module.to(self.case.device, getattr(torch, self.case.dtype))

    def _unfused(self) -> tuple[nn.Module, dict[str, cos_ext.IFNode]]:
        network = self.network("cos_ext")  # without fusion: every layer is a module of its own
        return network.module, network.nodes()

    def _floor(self) -> nn.Module:
        module, nodes = self._unfused()
        for site, node in nodes.items():
            set_module(module, site, Handed(self.case.steps, node.static_input))
        # Without dead code elimination: the convolutions of the other operand still run.
        for node in [n for n in module.graph.nodes if n.target is operator.add]:
            node.replace_all_uses_with(node.args[0])
            module.graph.erase_node(node)
        module.recompile()
        return module

    def _plain(self, stacked: bool) -> nn.Module:
        module, nodes = self._unfused()
        for site, node in nodes.items():
            set_module(
                module,
                site,
                PlainNeurons(
                    node.v_threshold,
                    node.v_init,
                    self.case.steps,
                    self.case.rho,
                    node.static_input,
                    stacked,
                ),
            )
        return module

    def _peer(self, mode: str, layout: str) -> Call:
        """SpikingJelly's conversion, which folds BatchNorm; step mode "m" takes all steps at once,
        "s" one by one.
        """
        try:
            from spikingjelly.activation_based import ann2snn, functional, neuron
        except ImportError as error:
            raise Missing(f"not installed ({error})") from error
        model = copy.deepcopy(self.ann)
        if hasattr(ann2snn, "RateCodingRecipe"):  # version 2
            converter = ann2snn.Converter(
                recipe=ann2snn.RateCodingRecipe(dataloader=self.calibration_images, mode="99.9%")
            )
            module = _quietly(lambda: converter.convert(model))
        else:
            labelled = [(images, torch.zeros(len(images))) for images in self.calibration_images]
            module = _quietly(lambda: ann2snn.Converter(dataloader=labelled, mode="99.9%")(model))
            if mode == "m":
                raise Missing("this version's ann2snn has no multi-step mode")
        module = (
            module.eval()
            .to(self.case.device, getattr(torch, self.case.dtype))
            .to(memory_format=LAYOUTS[layout])
        )
        functional.set_step_mode(module, mode)
        if self.case.device == "cuda" and mode == "m":
            for backend in ("triton", "cupy"):
                try:
                    functional.set_backend(module, backend, neuron.IFNode)
                    break
                except Exception:
                    continue
        images, steps = self.images.to(memory_format=LAYOUTS[layout]), self.case.timesteps

        def call() -> Tensor:
            functional.reset_net(module)
            if mode == "m":
                return module(images.unsqueeze(0).expand(steps, *images.shape))
            return torch.stack([module(images) for _ in range(steps)])

        return call

    # Checks

    def check(self, rows: list[str]) -> None:
        """Plain neurons give EQUAL outputs; fused and counted networks agree with theirs in
        float64. Or SystemExit.
        """
        some = self.images[: min(len(self.images), 4)]
        with torch.inference_mode():
            for layout, memory_format in LAYOUTS.items():
                images = some.to(memory_format=memory_format)
                ours = self.network("cos_ext").to(memory_format=memory_format)(images)
                plain = self._plain(False).to(memory_format=memory_format)(images)
                if not torch.equal(
                    ours, plain.unflatten(0, (self.case.steps, -1))[: self.case.timesteps]
                ):
                    raise SystemExit(
                        f"{self.case}: cos_ext and plain torch operations differ ({layout})"
                    )
            wide, found = some[:1].double(), {}
            for row in (row for row in rows if row in NETWORKS):
                twin = row.removesuffix(", fused").replace("counts", "even")
                for name in {row, twin} - found.keys() if twin != row else ():
                    found[name] = copy.deepcopy(self.network(name)).double()(wide)
                if twin != row:
                    near = 1e-9 * found[twin].abs().max().item()
                    if not torch.allclose(found[row], found[twin], rtol=1e-9, atol=near):
                        raise SystemExit(f"{self.case}: {row} and {twin} differ in float64")

    @torch.inference_mode()
    def spike_rate(self) -> float:
        """Spikes per neuron and step, over all layers, in the first images of the batch."""
        network = self.network("cos_ext")
        for node in network.nodes().values():
            node.count_spikes = True
        network(self.images[:4])
        emitted = [node.emitted for node in network.nodes().values()]
        return float(sum(spikes for spikes, _ in emitted)) / sum(total for _, total in emitted)


def _quietly(call: Call) -> Any:
    """SpikingJelly logs and shows progress on stderr."""
    with open(os.devnull, "w") as nowhere:
        stderr, sys.stderr = sys.stderr, nowhere
        try:
            return call()
        finally:
            sys.stderr = stderr


# Time


def seconds_of(call: Call, clock: str) -> float:
    """One run: by the events of a CUDA device ("cuda"), the wall clock ("wall") or this process's
    CPU time ("cpu").
    """
    if clock == "cuda":
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
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
        user, nice, system, _, _, irq, softirq, steal = map(
            int, Path("/proc/stat").read_text().split()[1:9]
        )
    except (OSError, ValueError):
        return None
    own = os.times()
    return (user + nice + system + irq + softirq + steal) / os.sysconf(
        "SC_CLK_TCK"
    ), own.user + own.system


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
                others = max(0.0, spent - 0.02) / (
                    wall * (os.cpu_count() or 1)
                )  # the clock ticks are 0.01 s
            found.append((others, elapsed))
            if others <= self.most:
                break
            self.repeated += 1
            if attempt + 1 < self.patience:
                time.sleep(min(2.0, wall))
        others, elapsed = min(found)
        self.worst = max(self.worst, others)
        return elapsed


def fastest(
    contestants: Contestants, row: str, probes: int, clock: str
) -> tuple[Call, dict[str, Any]]:
    """The fastest variant of a row, and what was seen: by the least of `probes` interleaved runs,
    after one to warm up.

    Raises Missing where no variant runs.
    """
    calls, why = {}, ""
    facts: dict[str, Any] = {}
    variants = contestants.variants(row)
    if (
        row == COMPILED
    ):  # compiling takes minutes: in the layout that plain torch operations like best
        variants = [fastest(contestants, PLAIN, probes, clock)[1]["variant"]]
    for variant in variants:
        try:
            call = contestants.make(row, variant)
            start = time.perf_counter()
            call()
            if row == COMPILED:
                facts["compile_s"] = time.perf_counter() - start
            calls[variant] = call
        except Missing as error:
            why = str(error)
        except Exception as error:
            if row not in (PEER, COMPILED):
                raise
            why = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"[
                :300
            ]
    if not calls:
        raise Missing(why)
    seen = {variant: [] for variant in calls}
    for _ in range(probes if len(calls) > 1 else 0):
        for variant, call in calls.items():
            seen[variant].append(seconds_of(call, clock))
    best = min(calls, key=lambda variant: min(seen[variant], default=0.0))
    chosen = calls.pop(best)
    calls.clear()
    gc.collect()  # graphs hold themselves: at 224x224 their weights would fill the memory
    facts |= {
        "variant": best,
        "probe_ms": {variant: 1e3 * min(times) for variant, times in seen.items() if times},
    }
    return chosen, facts


def measure(case: Case, rows: list[str], options: argparse.Namespace) -> dict[str, Any]:
    """Check, time and weigh all rows of a case; prints a table and returns its record."""
    contestants = Contestants(case, options.peers)
    clock = "cuda" if case.device == "cuda" else options.clock
    load = [os.getloadavg()[0]]
    contestants.check(rows)
    gc.collect()
    record: dict[str, Any] = {
        **asdict(case),
        "steps": case.steps,
        "spike_rate": contestants.spike_rate(),
        "plain equals cos_ext": True,
        "clock": clock,
        "rows": {},
    }
    calls: dict[str, Call] = {}
    for row in rows:
        try:
            calls[row], facts = fastest(contestants, row, options.probes, clock)
        except Missing as error:
            facts = {"missing": str(error)}
        record["rows"][row] = facts
    times: dict[str, list[float]] = {row: [] for row in calls}
    quiet = Quiet(clock, options.others, options.patience)
    for _ in range(options.repeats):
        for row, call in calls.items():
            times[row].append(quiet.seconds(call))
    load.append(os.getloadavg()[0])
    # The load average has this process's own threads in it; others is the share of the CPUs that
    # other processes used.
    record |= {"load": load, "others_worst": quiet.worst, "runs_repeated": quiet.repeated}
    for row, values in times.items():
        record["rows"][row] |= {"s": values, "images_per_s": case.batch / statistics.median(values)}
        if FLOOR in times:
            record["rows"][row]["to_floor"] = statistics.median(
                a / b for a, b in zip(values, times[FLOOR])
            )
        if ANN in times:
            record["rows"][row]["to_ann"] = statistics.median(
                a / b for a, b in zip(values, times[ANN])
            )
        ours = {name: times[name] for name in times if name in NETWORKS}
        if row in (PLAIN, PEER, COMPILED):
            for name, mine in ours.items():
                record["rows"][row][f"to {name}"] = statistics.median(
                    a / b for a, b in zip(values, mine)
                )
    weighed = [row for row in calls if options.memory and (row == "cos_ext" or not options.short)]
    for row in weighed:
        record["rows"][row]["peak_mib"] = peak_memory(
            case, row, record["rows"][row]["variant"], calls[row], options
        )
    if options.profile:
        record["profile"] = {
            row: profile(calls[row]) for row in calls if row == FLOOR or row in NETWORKS
        }
    show(case, record)
    return record


def show(case: Case, record: dict[str, Any]) -> None:
    load, others = record["load"], record["others_worst"]
    print(
        f"\n{case}, {record['clock']} time, {case.steps} steps in the hidden layers; "
        f"spike rate {record['spike_rate']:.3f}, load {load[0]:.1f} to {load[1]:.1f}, "
        f"other processes at most {others:.0%} of the CPUs"
    )
    ours = [row for row in record["rows"] if row in NETWORKS]
    print(
        "| | ms | images/s | to floor | to ANN | peak MiB | layout |\n| --- | ---: | ---: | ---: | "
        "---: | ---: | --- |"
    )
    for row, facts in record["rows"].items():
        if "missing" in facts:
            print(f"| {row} | {facts['missing']} | | | | | |")
            continue
        peak = f"{facts['peak_mib']:.0f}" if facts.get("peak_mib") is not None else ""
        to_floor, to_ann = (
            f"{facts[key]:.2f}" if key in facts else "" for key in ("to_floor", "to_ann")
        )
        median = 1e3 * statistics.median(facts["s"])
        print(
            f"| {row} | {median:.1f} | {facts['images_per_s']:.2f} | {to_floor} | {to_ann} | "
            f"{peak} | "
            f"{facts['variant']} |"
        )
    for row in (PLAIN, PEER, COMPILED):
        facts = record["rows"].get(row, {})
        ratios = ", ".join(
            f"{facts[f'to {name}']:.2f} x {name}" for name in ours if f"to {name}" in facts
        )
        if ratios:
            print(f"{row} takes {ratios}")
    for row, parts in record.get("profile", {}).items():
        whole = sum(parts.values())
        shares = ", ".join(f"{name} {ms:.1f}" for name, ms in parts.items())
        print(f"profile of {row}, ms of operators' own time: {shares}; {whole:.1f} in all")
    sys.stdout.flush()


def profile(call: Call, least: float = 0.005) -> dict[str, float]:
    """Own milliseconds by operator in one run, largest first; what is below a share of `least` is
    left out.
    """
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as found:
        call()
    own = {event.key: event.self_cpu_time_total / 1e3 for event in found.key_averages()}
    whole = sum(own.values())
    return dict(
        sorted(((k, v) for k, v in own.items() if v >= least * whole), key=lambda item: -item[1])
    )


# Memory


def peak_memory(
    case: Case, row: str, variant: str, call: Call, options: argparse.Namespace
) -> float | None:
    """MiB that a run adds at its peak: on CUDA in this process, else in a fresh one; None where it
    cannot be had.
    """
    if case.device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / MIB
    command = [sys.executable, __file__, "--peak-of", json.dumps([asdict(case), row, variant])]
    if options.peers is not None:
        command += ["--peers", str(options.peers)]
    done = subprocess.run(command, capture_output=True, text=True)
    return float(done.stdout.split()[-1]) if done.returncode == 0 and done.stdout.strip() else None


def _status(key: str) -> float | None:
    """MiB from /proc/self/status."""
    try:
        line = next(
            x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(key)
        )
    except (OSError, StopIteration):
        return None
    return int(line.split()[1]) / 1024


def peak_of(case: Case, row: str, variant: str, peers: Path | None) -> float:
    """In a fresh process: how far the resident set rises in the first run, the network and its
    input being there.
    """
    call = Contestants(case, peers).make(row, variant)
    with torch.inference_mode():
        if row == COMPILED:
            call()  # the compiler's memory is not the network's
        try:
            ctypes.CDLL(None).malloc_trim(
                0
            )  # what conversion freed is given back, or the run would use it unseen
            Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        except (OSError, AttributeError):
            pass
        before = _status("VmRSS")
        call()
    peak = _status("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return peak - (before or 0.0)


# Around it


def unpack(folder: Path, into: Path) -> None:
    """Put the wheels of a folder on the path without installing them; the newest of a package is
    the one found.
    """
    for wheel in sorted(folder.glob("*.whl")):
        target = into / wheel.name.split("-py")[0]
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(target)
        sys.path.insert(0, str(target))


def facts(options: argparse.Namespace) -> dict[str, Any]:
    """Machine, versions, commit (of the imported cos_ext; None where it lies in no checkout), date
    and command.
    """
    root = Path(cos_ext.__file__).resolve().parent.parent

    # Where files lie on this machine is nobody's business.
    places = {str(options.peers): "DIR", str(options.json): "FILE"}
    arguments = [places.get(argument, argument) for argument in sys.argv[1:]]

    def said(*command: str) -> str | None:
        try:
            return subprocess.run(
                command, capture_output=True, text=True, check=True, timeout=20
            ).stdout.strip()
        except (OSError, subprocess.SubprocessError):
            return None

    def version(package: str) -> str | None:
        found = list(importlib.metadata.distributions(name=package))
        return found[0].version if found else None

    # What decides is the library, not what else lies in the work tree.
    changed = said("git", "-C", str(root), "status", "--porcelain", "--", "cos_ext", "csrc")
    return {
        "processor": bench._processor(),
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "cpus": os.cpu_count(),
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "spikingjelly": version("spikingjelly"),
        },
        "build": cos_ext.build_info(),
        "commit": said("git", "-C", str(root), "rev-parse", "HEAD"),
        "sources_changed": None if changed is None else bool(changed),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join(["python", "bench/end_to_end.py", *arguments]),
    }


def cases(options: argparse.Namespace) -> Iterator[Case]:
    for (network, size), batch in PAIRS.items():
        if network not in options.networks or size not in options.sizes:
            continue
        for rho in options.rho:
            for timesteps in options.timesteps:
                if timesteps >= 32 and size >= 224 and not options.full:
                    continue
                yield Case(
                    network,
                    size,
                    timesteps,
                    rho,
                    options.batch or batch,
                    options.device,
                    options.dtype,
                )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names, sizes = sorted({network for network, _ in PAIRS}), sorted({size for _, size in PAIRS})
    every = [ANN, FLOOR, *NETWORKS, PLAIN, PEER, COMPILED]
    parser.add_argument("--networks", nargs="+", choices=names, default=names)
    parser.add_argument("--sizes", nargs="+", type=int, choices=sizes, default=sizes)
    parser.add_argument("--timesteps", nargs="+", type=int, default=[1, 4, 8, 32])
    parser.add_argument("--rho", nargs="+", type=int, default=[4])
    parser.add_argument(
        "--batch",
        type=int,
        help="images (default 50 for resnet20, 10 for vgg16 at 32x32, 1 at 224x224)",
    )
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument(
        "--probes", type=int, default=2, help="runs of every layout before the faster is chosen"
    )
    parser.add_argument(
        "--clock",
        choices=("wall", "cpu"),
        default="wall",
        help="cpu: CPU time of this process, for one thread where others compute too",
    )
    parser.add_argument(
        "--others",
        type=float,
        default=0.1,
        help="repeat a run while other processes use more than this share of the CPUs",
    )
    parser.add_argument(
        "--patience", type=int, default=3, help="runs at most until the least disturbed one counts"
    )
    parser.add_argument("--rows", nargs="+", choices=every, help="these rows only")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--threads", type=int)
    parser.add_argument(
        "--peers",
        type=Path,
        help="a folder of wheels of SpikingJelly and what it needs, to import from",
    )
    parser.add_argument(
        "--compile", action="store_true", help="also torch.compile of plain (minutes a case)"
    )
    parser.add_argument("--profile", action="store_true", help="also operators' own times")
    parser.add_argument(
        "--no-memory", dest="memory", action="store_false", help="without peak memory"
    )
    parser.add_argument("--full", action="store_true", help="also T = 32 at 224x224")
    parser.add_argument(
        "--short", action="store_true", help="one tiny case: everything runs and agrees"
    )
    parser.add_argument(
        "--note", help="kept with the record: what one must know of the machine at the time"
    )
    parser.add_argument("--json", type=Path, help="add this run to the runs in a file")
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    if options.clock == "cpu" and torch.get_num_threads() != 1:
        parser.error("--clock cpu needs --threads 1: threads that wait for others use CPU time too")
    if options.short:
        options.networks, options.sizes, options.timesteps, options.rho = (
            ["resnet20"],
            [32],
            [2],
            [2],
        )
        options.batch, options.repeats, options.probes, options.patience = 2, 1, 1, 1
    with tempfile.TemporaryDirectory() as folder:
        if options.peers is not None:
            unpack(options.peers, Path(folder))
        if options.peak_of:
            case, row, variant = json.loads(options.peak_of)
            print(peak_of(Case(**case), row, variant, options.peers))
            return
        todo = list(cases(options))
        if not todo:
            parser.error(
                f"no case: networks come with sizes as in {list(PAIRS)}, and T = 32 at 224 with "
                "--full"
            )
        rows = [
            row
            for row in options.rows or every
            if row != COMPILED or options.compile or options.rows
        ]
        settings = {k: v for k, v in vars(options).items() if k not in ("peers", "json", "peak_of")}
        record = {"facts": facts(options), "settings": settings, "cases": []}
        found = record["facts"]
        print(
            f"{found['processor']}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
            f"spikingjelly {found['versions']['spikingjelly']}, commit {found['commit']}"
        )
        earlier = []
        if options.json is not None and options.json.exists():
            earlier = json.loads(options.json.read_text())["runs"]
        with torch.inference_mode():
            for case in todo:
                record["cases"].append(measure(case, rows, options))
                if (
                    options.json is not None
                ):  # after every case: a long run that is ended keeps what it has
                    partial = options.json.with_suffix(".part")
                    partial.write_text(json.dumps({"runs": [*earlier, record]}, indent=1) + "\n")
                    partial.replace(options.json)


if __name__ == "__main__":
    main()
