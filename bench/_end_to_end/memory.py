"""How much memory a row adds at its peak.

On a CPU that is what a fresh process says of itself: end_to_end.py is started again for every row.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import resource
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import torch
from _shared.timing import Call

from .cases import COMPILED, Case
from .contestants import Contestants

MIB = 2**20
SCRIPT = Path(__file__).resolve().parents[1] / "end_to_end.py"


def peak(case: Case, row: str, variant: str, call: Call, peers: Path | None) -> float | None:
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
    command = [sys.executable, str(SCRIPT), "--peak-of", json.dumps([asdict(case), row, variant])]
    if peers is not None:
        command += ["--peers", str(peers)]
    done = subprocess.run(command, capture_output=True, text=True)
    return float(done.stdout.split()[-1]) if done.returncode == 0 and done.stdout.strip() else None


def of_this_process(what: str) -> float:
    """In a fresh process: how far the resident set rises in the first run, the network and its
    input being there. `what` is the last argument of the command that `peak` starts.
    """
    case, row, variant = json.loads(what)
    call = Contestants(Case(**case)).make(row, variant)
    with torch.inference_mode():
        if row == COMPILED:
            call()  # the compiler's memory is not the network's
        with contextlib.suppress(OSError, AttributeError):
            # What conversion freed is given back, or the run would use it unseen.
            ctypes.CDLL(None).malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        before = _status("VmRSS")
        call()
    highest = _status("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return highest - (before or 0.0)


def _status(key: str) -> float | None:
    """MiB from /proc/self/status."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        line = next(line for line in lines if line.startswith(key))
    except (OSError, StopIteration):
        return None
    return int(line.split()[1]) / 1024
