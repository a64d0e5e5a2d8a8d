"""`bench`: the timings of cos_ext/bench.py."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..bench import run_bench


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command and its options."""
    bench = commands.add_parser(
        "bench", help="kernels against copies and plain torch, side by side"
    )
    bench.set_defaults(run=run)
    bench.add_argument(
        "--mib",
        type=int,
        nargs="+",
        default=[128, 16],
        help="sizes of x_seq in MiB (default 128 16)",
    )
    bench.add_argument("--timesteps", type=int, nargs="+", default=[4, 8, 32])
    bench.add_argument("--rho", type=int, default=4)
    bench.add_argument("--threads", type=int, help="default: torch's")
    bench.add_argument("--repeats", type=int, default=15)
    bench.add_argument(
        "--compile",
        action="store_true",
        help="also torch.compile of the plain loop (compiles first)",
    )
    bench.add_argument("--json", type=Path, metavar="FILE", help="the results as JSON")


def run(args: argparse.Namespace) -> int:
    """Measure, and print a table per size."""
    run_bench(
        args.mib,
        args.timesteps,
        rho=args.rho,
        threads=args.threads,
        repeats=args.repeats,
        compiled=args.compile,
        json_path=args.json,
    )
    return 0
