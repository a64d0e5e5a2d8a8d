"""What do general neurons cost beside those of one level?

    python bench/general.py [--json FILE]

One process, one thread, T = 8, a fresh output each. Prints the median time of F.if_forward and how
many times that a neuron takes, for layers beyond the caches and within. It measures time alone.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from cos_ext import Neuron
from cos_ext import functional as F

sys.path.append(str(Path(__file__).parent))
from _shared.machine import facts

NEURONS = {
    "usual": Neuron(),
    "4 levels": Neuron(levels=(0, 4)),
    "8 levels": Neuron(levels=(0, 8)),
    "signed": Neuron(levels=(-1, 1), lower=0.0),
    "signed, bounded": Neuron(levels=(-1, 1), lower=0.0, count=(0, 15)),
    "ladder of 4": Neuron(ladder=4),
    "ladder, prediction": Neuron(ladder=4, prediction=True),
}
SIZES = (1 << 14, 1 << 21)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
STEPS, ROUNDS = 8, 15


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the figures to this file, too")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    rows = [row for dtype in DTYPES for size in SIZES for row in measured(dtype, size)]
    if options.json:
        options.json.write_text(
            json.dumps({"machine": facts(("torch", "numpy")), "rows": rows}, indent=1) + "\n"
        )
    return 0


def measured(dtype: torch.dtype, size: int) -> list[dict[str, object]]:
    """A row for each neuron; rounds are interleaved."""
    x = (torch.randn(STEPS, size, generator=torch.Generator().manual_seed(0)) / 2 + 0.3).to(dtype)
    calls: dict[str, Callable[[], object]] = {"one level": lambda: F.if_forward(x, 1.0)}
    for name, neuron in NEURONS.items():
        calls[name] = lambda neuron=neuron: F.neuron_forward(x, 1.0, neuron=neuron)
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            begin = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - begin)
    median = {name: sorted(all_)[ROUNDS // 2] for name, all_ in times.items()}
    base = median["one level"]
    print(f"{str(dtype)[6:]} [{STEPS}, {size}]: one level {base * 1e6:.0f} µs", flush=True)
    rows = []
    for name in NEURONS:
        print(f"  {name:20} {median[name] / base:5.2f}", flush=True)
        own = {"dtype": str(dtype), "size": size, "neuron": name}
        rows.append({**own, "seconds": median[name], "times_one_level": median[name] / base})
    return rows


if __name__ == "__main__":
    sys.exit(main())
