"""Which published networks does convert() take, are they exact, and why are the others refused?

    pip install '.[coverage]'
    python bench/coverage.py [--only TEXT...] [--list] [--limit-seconds N] [--json FILE]
    python bench/coverage.py --draw FILE

Random weights, float64, T = rho = 4, iterations=None. A network is exact where the mean of its
outputs is that of its twin (_coverage/twin.py) to 1e-9 of the largest. A network runs in a process
of its own, under a limit of time; one whose package is missing is skipped, and said to be.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import multiprocessing
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from _coverage import others, vision
from _coverage.measure import measure
from _coverage.networks import Network
from _coverage.summary import drawn, summary
from _shared import machine, records

LISTS: dict[str, Callable[[], list[Network]]] = {
    "torchvision": vision.torchvision,
    "timm": vision.timm,
    "others": others.others,
}
PACKAGES = ("torch", "torchvision", "timm", "transformers", "segmentation-models-pytorch")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lists", nargs="+", choices=LISTS, default=[*LISTS])
    parser.add_argument("--only", nargs="+", help="networks whose name has one of these in it")
    parser.add_argument("--list", action="store_true", help="name the networks, and run none")
    parser.add_argument("--limit-seconds", type=float, default=600.0, help="for each network")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="written after every network")
    parser.add_argument("--resume", action="store_true", help="keep the rows that FILE has")
    parser.add_argument("--draw", type=Path, metavar="FILE", help="the tables of a record")
    options = parser.parse_args()
    if options.draw:
        print(drawn(json.loads(options.draw.read_text(encoding="utf-8"))))
        return
    chosen = {name: wanted(LISTS[name](), options.only) for name in options.lists}
    if options.list:
        for name, networks in chosen.items():
            print(f"{name}: {len(networks)}", *(each.name for each in networks), sep="\n  ")
        return
    torch.set_num_threads(options.threads)
    command = machine.command_line("coverage", sys.argv[1:])
    record: dict[str, Any] = {"command": command, **machine.facts(PACKAGES)}
    record |= {"threads": torch.get_num_threads(), "lists": {}}
    if options.resume and options.json and options.json.exists():
        record["lists"] = json.loads(options.json.read_text(encoding="utf-8"))["lists"]
    for name, networks in chosen.items():
        rows = record["lists"].setdefault(name, [])
        done = {each["name"] for each in rows}
        for network in networks:
            if network.name in done:
                continue
            rows.append(row(network, options.limit_seconds))
            print(f"{name:12} {line(rows[-1])}", flush=True)
            if options.json:
                records.write(options.json, record)
    print(summary(record))


def wanted(networks: list[Network], only: list[str] | None) -> list[Network]:
    return [each for each in networks if only is None or any(text in each.name for text in only)]


def row(network: Network, limit: float) -> dict[str, Any]:
    """The record of one network, measured in a process of its own."""
    missing = [package for package in network.needs if importlib.util.find_spec(package) is None]
    if missing:
        reasons = [f"{', '.join(missing)} is not installed"]
        return {"name": network.name, "status": "skipped", "reasons": reasons}
    for package in network.needs:  # once, before the fork
        importlib.import_module(package)
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=send, args=(network, there))
    start = time.perf_counter()
    process.start()
    there.close()
    try:
        found = here.recv() if here.poll(limit) else None
    except EOFError:
        process.join()
        found = {"status": "failed", "reasons": [f"its process ended with {process.exitcode}"]}
    if found is None:
        process.kill()
        found = {"status": "failed", "reasons": [f"took longer than {limit:.0f} s"]}
    process.join()
    return {"name": network.name, **found, "wall_seconds": time.perf_counter() - start}


def send(network: Network, connection: Connection) -> None:
    connection.send(measure(network))


def line(row: dict[str, Any]) -> str:
    error = f"{row['error']:8.1e}" if "error" in row else " " * 8
    seconds = f"{row['seconds']:6.1f} s" if "seconds" in row else " " * 8
    reasons = "; ".join(row.get("reasons", ()))
    return f"{row['name']:32} {row['status']:8} {error} {seconds}  {reasons[:150]}"


if __name__ == "__main__":
    main()
