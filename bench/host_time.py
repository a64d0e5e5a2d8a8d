"""How long does one call keep the host, beside torch.relu and an operator that does nothing?

    python bench/host_time.py [--calls N] [--repeats N] [--json FILE]

Of a tiny tensor, so that the arithmetic takes next to nothing, on one thread, without a gradient.
Rows: torch.relu and nn.ReLU; "empty", an operator registered with torch.library that returns
torch.empty_like(x); cos_ext's operator as it is registered; the functions; and IFNode, also with a
threshold for each channel and on half-precision currents. One process runs all rows, interleaved:
--calls calls of each, and again. The clock is the CPU time of this thread, so that what else the
machine does counts little. A figure is the median over the repeats.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from _shared import machine, records
from _shared.timing import interleaved
from torch import nn

import cos_ext
from cos_ext import functional as F

EMPTY = "empty operator"
SHAPE = (4, 2, 4)  # T, B, neurons


def contestants() -> dict[str, Callable[[], Any]]:
    x_seq = torch.rand(SHAPE)
    x, theta = x_seq.flatten(0, 1), torch.tensor(1.0)
    halves, by_channel = x.half(), torch.rand(SHAPE[-1]) + 0.5
    empty = torch.ops.cos_ext_bench.empty.default
    own = torch.ops.cos_ext.cos_forward.default
    given = (x_seq, None, 1.0, None, None, 4, 1, False, False, False, False)
    relu, time_first = nn.ReLU(), cos_ext.IFNode(1.0, rho=4)
    plain, calibrated = (cos_ext.IFNode(1.0, timesteps=SHAPE[0], rho=rho) for rho in (0, 4))
    of_halves = cos_ext.IFNode(1.0, timesteps=SHAPE[0], rho=4)
    channels = cos_ext.IFNode(by_channel, timesteps=SHAPE[0], rho=4)
    return {
        "torch.relu": lambda: torch.relu(x_seq),
        "nn.ReLU": lambda: relu(x_seq),
        EMPTY: lambda: empty(x_seq),
        "torch.ops.cos_ext.cos_forward": lambda: own(*given),
        "if_forward": lambda: F.if_forward(x_seq, 1.0),
        "cos_forward": lambda: F.cos_forward(x_seq, 1.0, rho=4),
        "cos_forward, θ a tensor": lambda: F.cos_forward(x_seq, theta, rho=4),
        "IFNode, time first": lambda: time_first(x_seq),
        "IFNode, rho = 0": lambda: plain(x),
        "IFNode": lambda: calibrated(x),
        "IFNode, θ by channel": lambda: channels(x),
        "IFNode, float16": lambda: of_halves(halves),
    }


def measure(options: argparse.Namespace) -> dict[str, float]:
    """Microseconds a call, by row."""

    def seconds(call: Callable[[], Any]) -> float:
        start = time.thread_time()
        for _ in range(options.calls):
            call()
        return (time.thread_time() - start) / options.calls

    library = torch.library.Library("cos_ext_bench", "DEF")
    library.define("empty(Tensor x) -> Tensor")
    library.impl("empty", torch.empty_like, "CPU")
    with torch.no_grad():
        calls = contestants()
        interleaved(calls, 1, seconds)  # warm
        times = interleaved(calls, options.repeats, seconds)
    return {name: 1e6 * statistics.median(row) for name, row in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("calls", 500), ("repeats", 41)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write this run")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(facts := machine.facts(["torch"]))
    torch.manual_seed(0)
    rows = measure(options)
    print(f"us a call, a tensor {SHAPE}, one thread, and above the {EMPTY}")
    for name, us in rows.items():
        print(f"{name:30} {us:7.1f} {us - rows[EMPTY]:7.1f}")
    if options.json is not None:
        record = {"facts": facts, "shape": SHAPE, "threads": 1, "us": rows}
        records.write(options.json, {**record, "calls": options.calls, "repeats": options.repeats})


if __name__ == "__main__":
    main()
