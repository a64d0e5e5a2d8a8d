"""How long does a kernel take on one layer, beside a copy, plain torch and SpikingJelly?

    python -m pytest bench/test_layer.py

Under pytest-benchmark. Times decide nothing here; `python -m cos_ext bench` interleaves the same
calls. The workloads are cos_ext.bench's, and none belongs here.
"""

import subprocess
import sys

import pytest
import torch

from cos_ext import bench

SIZES = [(128, 4), (128, 8), (128, 32), (16, 4), (16, 8), (16, 32)]
RHO = 4


def names():
    return list(bench.workloads(torch.zeros(RHO, 8), RHO))


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize("mib, steps", SIZES)
def test_layer(benchmark, mib, steps, name):
    source = torch.randn(steps, mib * 2**20 // 4 // steps)
    x = source.clone()
    call = bench.workloads(x, RHO)[name]
    benchmark.group = (
        f"{mib} MiB float32, T = {steps}, rho = {RHO}, {torch.get_num_threads()} threads"
    )
    floor = 2 * x.numel() * x.element_size()

    def restore():  # the in-place calls overwrite x; what a setup returns would be arguments
        x.copy_(source)

    benchmark.pedantic(call, setup=restore, rounds=9, warmup_rounds=1)
    benchmark.extra_info.update(
        floor_bytes=floor, gb_per_s=floor / benchmark.stats.stats.median / 1e9
    )


FIRST_CALLS = {
    "if_forward": "F.if_forward(x, 1.0)",
    "cos_forward": "F.cos_forward(x, 1.0, rho=4, iterations=None)",
    "calibrate_v_init": "F.calibrate_v_init(x, 1.0, rho=4)",
    "if_forward, float16, per channel": "F.if_forward(x.half(), torch.ones(64, 1, 1))",
}


@pytest.mark.parametrize("name", list(FIRST_CALLS))
def test_first_call(benchmark, name):
    """The first call in a fresh process: nothing is compiled at run time. The process' own start is
    not counted.
    """
    script = (
        "import time, torch; from cos_ext import functional as F\n"
        "x = torch.randn(4, 2, 64, 8, 8)\n"
        f"start = time.perf_counter(); {FIRST_CALLS[name]}; print(time.perf_counter() - start)"
    )

    def first():
        command = [sys.executable, "-c", script]
        return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    seconds = benchmark.pedantic(first, rounds=1)
    benchmark.group = "first call (see extra_info: the process' start dominates the time)"
    benchmark.extra_info["first_call_ms"] = 1e3 * seconds
    print(f"\nfirst {name}: {1e3 * seconds:.2f} ms")
