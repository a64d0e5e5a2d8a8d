"""How many images per second does a whole converted network answer, in how much memory?

    python bench/end_to_end.py [--networks N ...] [--sizes S ...] [--timesteps T ...] [--rho R ...]
        [--checkpoint FILE --data DIR]
        [--batch B] [--repeats N] [--rows ROW ...] [--device cpu|cuda] [--dtype D] [--threads N]
        [--clock wall|cpu] [--peers DIR] [--compile] [--profile] [--no-memory] [--full] [--short]
        [--note TEXT] [--json FILE]

The command's options and its record's head live here; what it does lies in _end_to_end/. No kernel
may live there or here, and no accuracy.

Rows, every one in the faster of two memory layouts, BatchNorm folded, under inference_mode, on the
same images and weights. "shipped" is the ResNet-20 that cos_ext ships, on real images; "trained" is
a checkpoint of `cos_ext train`, on its test images (fashion_split.py makes some of 32 x 32); others
have random ones, with thresholds at the 99th percentile of the activations. By events, time follows
the spikes; their rate is printed.

    ANN          one pass with ReLU in place: what the network cost before it was converted
    floor        the convolutions, linear and pooling layers of the converted network alone, on
                 max(T, rho) times the batch; what stands before the first neurons once. Neurons
                 hand their input on, residual sums their first operand.
    cos_ext      the converted network in several settings; "fused" is convert's default, "dense"
                 that with dense convolutions, "captured" the default as a CUDA graph
    plain        the same network, each layer's neurons as plain torch operations: watch rho steps,
                 shift, run all steps
    SpikingJelly its ann2snn on the same ReLU network: no calibration, T steps, the faster of its
                 step modes
    compiled     torch.compile of plain

Rows are interleaved in one process; a ratio is the median over the repeats of a row's time to the
floor's in the same repeat. A run during which other processes used the CPUs is repeated. Peak
memory is what a fresh process adds, in its first run, to what it holds once the network and its
input stand.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from _end_to_end import memory
from _end_to_end.cases import COMPILED, PAIRS, ROWS, cases
from _end_to_end.comparison import measure
from _end_to_end.report import show
from _shared import machine, records
from _shared.peers import unpack

import cos_ext

# Settings that no record has: where files lie on this machine.
UNTOLD = ("peers", "json", "peak_of", "checkpoint", "data")


def facts(options: argparse.Namespace) -> dict[str, Any]:
    """Machine, versions, commit (of the imported cos_ext; None where it lies in no checkout), date
    and command.
    """
    root = Path(cos_ext.__file__).resolve().parent.parent
    # Where files lie on this machine is nobody's business.
    places = {str(options.peers): "DIR", str(options.json): "FILE"}
    places |= {str(options.checkpoint): "CHECKPOINT", str(options.data): "DATA"}
    arguments = [places.get(argument, argument) for argument in sys.argv[1:]]
    # What decides is the library, not what else lies in the work tree.
    changed = machine.said("git", "-C", str(root), "status", "--porcelain", "--", "cos_ext", "csrc")
    return {
        **machine.facts(("torch", "spikingjelly"), root),
        "threads": torch.get_num_threads(),
        "cpus": os.cpu_count(),
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
        "sources_changed": None if changed is None else bool(changed),
        "command": machine.command_line("end_to_end", arguments),
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names, sizes = sorted({network for network, _ in PAIRS}), sorted({size for _, size in PAIRS})
    parser.add_argument("--networks", nargs="+", choices=names, default=names)
    parser.add_argument("--sizes", nargs="+", type=int, choices=sizes, default=sizes)
    parser.add_argument("--timesteps", nargs="+", type=int, default=[1, 4, 8, 32])
    parser.add_argument("--rho", nargs="+", type=int, default=[4])
    parser.add_argument(
        "--batch",
        type=int,
        help="images (default 32 for shipped, 50 for resnet20, 10 for others at 32, 1 at 224)",
    )
    parser.add_argument("--checkpoint", type=Path, metavar="FILE", help="the trained network")
    parser.add_argument("--data", type=Path, metavar="DIR", help="the folder of its data set")
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
    parser.add_argument("--rows", nargs="+", choices=ROWS, help="these rows only")
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
    return parser


def run(options: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    todo = list(cases(options))
    if not todo:
        parser.error(
            f"no case: networks come with sizes as in {list(PAIRS)}, and T = 32 at 224 with --full"
        )
    rows = options.rows or [row for row in ROWS if row != COMPILED or options.compile]
    settings = {k: v for k, v in vars(options).items() if k not in UNTOLD}
    found = facts(options)
    record: dict[str, Any] = {"facts": found, "settings": settings, "cases": []}
    print(
        f"{found['processor']}, {found['threads']} threads, torch {torch.__version__}, "
        f"spikingjelly {found['versions']['spikingjelly']}, commit {found['commit']}"
    )
    earlier = []
    if options.json is not None and options.json.exists():
        earlier = json.loads(options.json.read_text())["runs"]
    for case in todo:
        with torch.inference_mode():
            record["cases"].append(measure(case, rows, options))
        show(case, record["cases"][-1])
        sys.stdout.flush()
        if options.json is not None:
            # After every case: a long run that is ended keeps what it has.
            records.write(options.json, {"runs": [*earlier, record]})


def main() -> None:
    parser = _parser()
    options = parser.parse_args()
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    if options.clock == "cpu" and torch.get_num_threads() != 1:
        parser.error("--clock cpu needs --threads 1: threads that wait for others use CPU time too")
    if options.short:
        options.networks, options.sizes = ["resnet20"], [32]
        options.timesteps, options.rho = [2], [2]
        options.batch, options.repeats, options.probes, options.patience = 2, 1, 1, 1
    with tempfile.TemporaryDirectory() as folder:
        if options.peers is not None:
            for _, _, package in unpack(options.peers, Path(folder)):
                sys.path.insert(0, str(package))  # the newest of a package is the one found
        if options.peak_of:
            print(memory.of_this_process(options.peak_of))
        else:
            run(options, parser)


if __name__ == "__main__":
    main()
