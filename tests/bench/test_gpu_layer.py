"""bench/gpu_run.sh and gpu_layer.py without a GPU: what they say they will do, what is left of a
run that was ended, and the page of a record.

That everything runs on a CPU, gpu_run.sh --without-gpu shows (.ci/run). No figure is checked here.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "bench" / "results"
H100 = RESULTS / "nvidia-h100-80gb-hbm3-2026-11-27.json"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "COS_EXT_PEER_WHEELS": ""}
pytestmark = pytest.mark.skipif(not RESULTS.is_dir(), reason="bench/ is not installed")


def run(*command: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, **options)


def layer(*arguments: str) -> str:
    done = run(sys.executable, "bench/gpu_layer.py", *arguments, cwd=ROOT, check=True)
    return done.stdout


def test_the_page_in_the_docs_is_that_of_the_record():
    assert (ROOT / "docs/results/cuda_h100.md").read_text() == layer("--draw", str(H100))


def test_the_page_shows_the_figures_of_the_record():
    record = json.loads(H100.read_text())
    lines = layer("--draw", str(H100)).splitlines()
    row = next(
        row
        for row in record["rows"]
        if row["call"] == "cos_forward"
        and (row["dtype"], row["timesteps"], row["elements"]) == ("f16", 8, 2**26)
        and (row["rho"], row["iterations"], row["inplace"]) == (8, None, False)
        and (row["layout"], row["static"]) == ("flat", False)
    )
    cells = next(line for line in lines if line.startswith("| f16, T = 8 |")).split(" | ")
    assert cells[-1].split(" / ")[0] == f"{row['percent_of_copy']:.0f}"
    assert lines.count("Not measured.") == 2  # what learns was not there yet
    assert "* For want of time: 12 x torch.compile" in lines


@pytest.mark.slow
def test_what_is_left_of_a_run_that_was_ended(tmp_path):
    path = tmp_path / "record.json"
    arguments = ("--device", "cpu", "--quick", "--json", str(path))
    command = (sys.executable, "bench/gpu_layer.py", *arguments)
    process = subprocess.Popen(
        command, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    printed = process.communicate()[0].decode()
    record = json.loads(path.read_text())
    assert process.returncode == 1 and record["rows"] and record["left_out"]
    assert any("ended by signal" in error for error in record["errors"])
    assert printed == layer("--draw", str(path)) and "ended by signal" in printed
    assert str(tmp_path) not in path.read_text()  # where files lie is nobody's business


def test_the_plan_says_what_will_be_done():
    done = run("bash", "bench/gpu_run.sh", "--plan", sys.executable, cwd=ROOT, check=True)
    phases, measured = done.stdout.split("\n\n")
    limits = [int(line.split()[0]) for line in phases.splitlines()[1:]]
    assert len(limits) == 6 and all(5 <= limit <= 510 for limit in limits)
    assert measured.splitlines()[1:] == layer("--plan").splitlines()
    order = [line.split(" x ")[1].split(":")[0] for line in measured.splitlines() if " x " in line]
    assert order[:5] == ["kernels", "small layer", "peers", "learning", "QCFS"]
    asked = {line.split(":")[0] for line in measured.splitlines()[1:] if " x " not in line}
    assert asked == set(order)  # every job says what it asks
