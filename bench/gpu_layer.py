"""How fast is one layer on a GPU, beside a copy of the device and what one would run instead?

    python bench/gpu_layer.py [--device cuda|cpu] [--quick] [--compile | --no-compile]
        [--minutes M] [--json FILE]
    python bench/gpu_layer.py --plan         says what it would measure, in which order
    python bench/gpu_layer.py --draw FILE    prints the page of a record, in Markdown

Options and the record's head live here; what is measured, checked and reported, in _gpu_layer/. No
test may live there or here. With --device cpu nothing is learnt but that the script runs. The file
is written after every case.

COS_EXT_PEER_WHEELS names a folder of wheels (spikingjelly 2.0.0 and 0.0.0.0.14, loguru) that are
unpacked and imported, not installed; COS_EXT_COMMIT, the commit where git cannot tell. How a call
is timed, _gpu_layer/clocks.py says.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from pathlib import Path

import torch
from _gpu_layer.cases import MIB, Row, grid
from _gpu_layer.clocks import CpuClock, CudaClock
from _gpu_layer.graphs import graph_nodes
from _gpu_layer.peers import Peers
from _gpu_layer.plan import lines, plan
from _gpu_layer.report import page
from _gpu_layer.run import Run
from _shared import machine

import cos_ext

__all__ = ["graph_nodes", "main"]  # tests/kernels/test_gpu.py counts a call's launches


def facts(clock: CpuClock | CudaClock, arguments: list[str]) -> Row:
    """Machine, versions, commit, date and command."""
    nvcc = re.search(r"release (\S+?),", machine.said("nvcc", "--version") or "")
    cupys = ((name, machine.version(name)) for name in ("cupy-cuda13x", "cupy-cuda12x", "cupy"))
    found = machine.facts(("torch", "triton", "numpy"))
    found["versions"] |= {
        "cuda": torch.version.cuda,
        "cupy": next((f"{name} {version}" for name, version in cupys if version), None),
        "driver": machine.said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "nvcc": nvcc.group(1) if nvcc else None,
    }
    found |= {
        "machine": clock.name,
        "device": clock.device,
        "commit": os.environ.get("COS_EXT_COMMIT") or found["commit"],
        "command": machine.command_line("gpu_layer", arguments),
    }
    if isinstance(clock, CudaClock):
        memory = torch.cuda.get_device_properties(0).total_memory
        found |= {"l2_mib": clock.l2 / MIB, "memory_gib": memory / 2**30}
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
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
    parser.add_argument("--plan", action="store_true", help="only say what would be measured")
    parser.add_argument("--draw", type=Path, metavar="FILE", help="print the page of a record")
    options = parser.parse_args()
    if options.plan or options.draw:
        record = json.loads(options.draw.read_text()) if options.draw else {}
        text = page(record) if options.draw else lines(grid(options.device, options.quick))
        print("\n".join(text))
        return 0
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no CUDA device; --device cpu proves that the script runs")
    if options.device == "cuda" and not cos_ext.build_info()["cuda"]:
        parser.error(f"this cos_ext has no CUDA kernels: {cos_ext.build_info()['cuda_off']}")
    compiled = options.device == "cuda" if options.compile is None else options.compile
    peers = Peers(os.environ.get("COS_EXT_PEER_WHEELS"), options.device)
    run = Run(options.device, options.quick, compiled, options.minutes, peers, options.json)
    # Where files lie on this machine is nobody's business.
    arguments = ["FILE" if argument == str(options.json) else argument for argument in sys.argv[1:]]
    run.facts = facts(run.clock, arguments)
    run.facts["versions"]["spikingjelly"] = sorted(peers.versions.values())
    with torch.no_grad():
        run.execute(plan(run.grid))
    print("\n".join(page(run.record())))
    return 1 if run.errors else 0


if __name__ == "__main__":
    sys.exit(main())
