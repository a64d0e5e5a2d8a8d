"""How many instructions the CUDA kernels take for a 16-byte row of inputs and a step, and how many
bytes they keep in flight. For cuda_kernels.py; needs no GPU.

Counted is what warps issue that run the machine code of sm_90 (cuda_warp.py) from the first
instruction to EXIT, divided by T: prologue, first watch, ψ, every further round, emission. Nothing
is guessed: the arguments are those of a launch of our own (tests/cpp/cuda_tasks.cpp), the data are
those of bench/gpu_layer.py (θ = 1, currents normal with mean 0.35 and deviation 1.2), so that
branches, rounds and slow paths are taken as they are there, and the spikes must equal those of
cos_ext.functional on the CPU. A predicated instruction counts whether or not it does anything. Not
counted are stalls: a share of 100% is what a device could issue, not what it will.

The budget is that of a copy: at 3.35 TB/s, 132 multiprocessors at 1.755 GHz issue 283 instructions
a warp while its 32 x 16 bytes are read and as many are written, and 142 of the ALU pipe.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from cuda_registers import Unknown
from cuda_warp import ALU, Program, Warp, parse

from cos_ext import functional as F

ROOT = Path(__file__).resolve().parents[2]
RECORD = ROOT / "tests" / "golden" / "cuda_instructions.json"
ISSUE = 132 * 4 * 1.755e9 / (3.35e12 / 1024)
BUDGET = (ISSUE, ISSUE / 2)
LEAST_IN_FLIGHT = 20 * 1024
THREADS = 128  # of a block, kernels.cuh
WARPS = 8
MIB = 1 << 20  # x, spikes and θ start at 1, 2 and 3 of them
ROW = 4096  # elements, cuda_tasks.cpp
# By the number of the job's dtype.
DTYPES = {0: torch.float32, 2: torch.float16, 3: torch.bfloat16}


class Case(NamedTuple):
    """A launch of cuda_tasks.cpp; iterations -1 is "until exact"."""

    dtype: int
    steps: int
    rho: int
    iterations: int
    plane: int = 0

    def __str__(self) -> str:
        name = "if" if not self.rho else "exact" if self.iterations < 0 else "cos"
        theta = ", θ by channel, 2 x 2" if self.plane else ""
        return f"{name}, T = {self.steps}{theta}"


CASES = [
    Case(dtype, *rest)
    for rest in (
        *((steps, 0, 0) for steps in (1, 4, 8)),
        *((steps, steps, 1) for steps in (1, 2, 4, 8, 16)),
        *((steps, steps, -1) for steps in (4, 8, 16)),
        (4, 4, 1, 4),
    )
    for dtype in DTYPES
]


def tasks(folder: Path) -> list[tuple[str, bytes]]:
    """(symbol of the kernel, its arguments) of every case."""
    program = folder / "cuda_tasks"
    subprocess.run(
        [
            os.environ.get("CXX", "c++"),
            *("-std=c++17", "-O0", "-rdynamic", f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'tests/cpp'}"),
            *(ROOT / "tests" / "cpp" / "cuda_tasks.cpp", "-o", program, "-ldl"),
        ],
        check=True,
    )
    numbers = [str(number) for case in CASES for number in case]
    said = subprocess.run([program, *numbers], capture_output=True, text=True, check=True).stdout
    pairs = [line.split() for line in said.splitlines()]
    return [(symbol, bytes.fromhex(task)) for symbol, task in pairs]


def count(case: Case, program: Program, lanes: int, task: bytes) -> tuple[float, float]:
    """Instructions of a warp for a row and a step, and those of the ALU pipe among them, of a
    kernel whose threads own `lanes` neurons. Raises Unknown where the spikes are not the CPU's.
    """
    dtype = DTYPES[case.dtype]
    drawn = np.random.default_rng(0)
    x = torch.from_numpy(drawn.standard_normal((case.steps, ROW)) * 1.2 + 0.35).to(dtype)
    theta = torch.ones(ROW)
    memory = np.zeros(4 * MIB, np.uint8)
    rows = x.view(torch.uint8).numpy().reshape(-1)
    memory[MIB:][: rows.size] = rows
    if case.plane:
        channels = (drawn.random(ROW // case.plane) * 0.5 + 0.75).astype(np.float32)
        memory[3 * MIB :][: channels.nbytes] = channels.view(np.uint8)
        theta = torch.from_numpy(channels).repeat_interleave(case.plane)
    issued = alu = 0
    for warp in range(WARPS):
        counts = Warp(program, memory, task, 32 * warp).run()
        issued += sum(counts.values())
        alu += sum(number for name, number in counts.items() if name in ALU)
    got = torch.from_numpy(memory[2 * MIB :][: rows.size].copy()).view(dtype).view(x.shape)
    if case.rho:
        iterations = None if case.iterations < 0 else case.iterations
        expected = F.cos_forward(x, theta, rho=case.rho, iterations=iterations).spikes
    else:
        expected = F.if_forward(x, theta).spikes
    neurons = WARPS * 32 * lanes
    if not torch.equal(got[:, :neurons], expected[:, :neurons]):
        raise Unknown("spikes that differ from the CPU's")
    # With one neuron a thread, as many bytes take more warps.
    share = 16 / x.element_size() / lanes / WARPS / case.steps
    return issued * share, alu * share


def in_flight(registers: int, rows: int, width: int, operands: int) -> int:
    """Bytes that the loads of a multiprocessor's resident threads ask for at once, each thread
    `rows` rows of `width` bytes.
    """
    granted = -(-registers // 8) * 8 * THREADS
    blocks = min(65536 // granted, 2048 // THREADS)
    return blocks * THREADS * rows * width * operands


def report(
    sections: dict[str, str], folder: Path, release: str, record: bool
) -> tuple[list[str], list[str]]:
    """(the table's lines, what is wrong). `sections` is the disassembly for sm_90 by symbol."""
    programs: dict[str, Program] = {}
    found, lines, faults = {}, [], []
    for case, (symbol, task) in zip(CASES, tasks(folder), strict=True):
        name = f"{str(DTYPES[case.dtype])[6:]}, {case}"
        if symbol not in programs:
            programs[symbol] = parse(sections[symbol])
        try:
            lanes = int(re.search(r"Li(\d+)ELi", symbol).group(1))
            found[name] = [round(n) for n in count(case, programs[symbol], lanes, task)]
        except Unknown as error:
            faults.append(f"instructions of {name}: {error}")
    if record:
        text = json.dumps({"nvcc": release, "sm_90": found}, indent=1, ensure_ascii=False)
        RECORD.write_text(re.sub(r"\[\s+(\d+),\s+(\d+)\s+\]", r"[\1, \2]", text) + "\n")
    known = json.loads(RECORD.read_text())
    same = known["nvcc"] == release
    lines.append(
        f"instructions of a warp for a 16-byte row and a step, sm_90: all (budget {BUDGET[0]:.0f}) "
        f"and those of the ALU pipe ({BUDGET[1]:.0f})"
    )
    lines.append(f"{'':28}" + "".join(f"{str(dtype)[6:]:>24}" for dtype in DTYPES.values()))
    for which in dict.fromkeys(str(case) for case in CASES):
        cells = ""
        for dtype in DTYPES.values():
            name = f"{str(dtype)[6:]}, {which}"
            if name not in found:
                cells += f"{'?':>24}"
                continue
            shares = [f"{n} ({n / most:.0%})" for n, most in zip(found[name], BUDGET)]
            cells += f"{', '.join(shares):>24}"
            bound = known["sm_90"].get(name)
            if same and (bound is None or any(n > b for n, b in zip(found[name], bound))):
                faults.append(f"{name}: {found[name]} instructions a row, on record are {bound}")
        lines.append(f"{which:28}{cells}")
    return lines, faults
