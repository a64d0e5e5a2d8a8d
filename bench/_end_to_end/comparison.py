"""How long does every row of a case take beside the others?

Chooses each row's fastest form, interleaves the rows and makes the case's record.

What a row is made of is contestants.py's business, printing is report.py's.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import time
from dataclasses import asdict
from typing import Any

import torch
from _shared.timing import Call, Quiet, interleaved, median_ratio, seconds_of

from . import memory
from .cases import ANN, COMPILED, FLOOR, NETWORKS, PEER, PLAIN, RIVALS, Case, Missing
from .contestants import Contestants


def measure(case: Case, rows: list[str], options: argparse.Namespace) -> dict[str, Any]:
    """Check, time and weigh all rows of a case; returns its record."""
    contestants = Contestants(case)
    clock = "cuda" if case.device == "cuda" else options.clock
    load = [os.getloadavg()[0]]
    contestants.check(rows)
    gc.collect()
    record: dict[str, Any] = {
        **{k: v for k, v in asdict(case).items() if k not in ("checkpoint", "data")},
        "steps": case.steps,
        "spike_rate": contestants.spike_rate(),
        "plain equals cos_ext": True,
        "clock": clock,
        "rows": {},
    }
    calls: dict[str, Call] = {}
    for row in rows:
        try:
            calls[row], facts = fastest(contestants, row, options.probes, clock)
        except Missing as error:
            facts = {"missing": str(error)}
        record["rows"][row] = facts
    quiet = Quiet(clock, options.others, options.patience)
    times = interleaved(calls, options.repeats, quiet.seconds)
    load.append(os.getloadavg()[0])
    # The load average has this process's own threads in it; others is the share of the CPUs that
    # other processes used.
    record |= {"load": load, "others_worst": quiet.worst, "runs_repeated": quiet.repeated}
    for row in times:
        record["rows"][row] |= _ratios(row, times, case.batch)
    for row in calls:
        if options.memory and (row == "cos_ext" or not options.short):
            facts = record["rows"][row]
            facts["peak_mib"] = memory.peak(case, row, facts["variant"], calls[row], options.peers)
    if options.profile:
        record["profile"] = {
            row: profile(calls[row]) for row in calls if row == FLOOR or row in NETWORKS
        }
    return record


def _ratios(row: str, times: dict[str, list[float]], images: int) -> dict[str, Any]:
    """A row's times, and what they are to the floor's, the ANN's and, for rivals, to ours."""
    own = times[row]
    bases = {"to_floor": FLOOR, "to_ann": ANN}
    if row in RIVALS:
        bases |= {f"to {name}": name for name in NETWORKS}
    return {
        "s": own,
        "images_per_s": images / statistics.median(own),
        **{key: median_ratio(own, times[base]) for key, base in bases.items() if base in times},
    }


def fastest(
    contestants: Contestants, row: str, probes: int, clock: str
) -> tuple[Call, dict[str, Any]]:
    """The fastest variant of a row, and what was seen: by the least of `probes` interleaved runs,
    after one to warm up.

    Raises Missing where no variant runs.
    """
    calls: dict[str, Call] = {}
    facts: dict[str, Any] = {}
    why = ""
    variants = contestants.variants(row)
    if row == COMPILED:
        # Compiling takes minutes: in the layout that plain torch operations like best.
        variants = [fastest(contestants, PLAIN, probes, clock)[1]["variant"]]
    for variant in variants:
        try:
            call = contestants.make(row, variant)
            start = time.perf_counter()
            call()
            if row == COMPILED:
                facts["compile_s"] = time.perf_counter() - start
            calls[variant] = call
        except Missing as error:
            why = str(error)
        except Exception as error:
            if row not in (PEER, COMPILED):
                raise
            why = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"[:300]
    if not calls:
        raise Missing(why)
    seen = interleaved(calls, probes if len(calls) > 1 else 0, lambda call: seconds_of(call, clock))
    best = min(calls, key=lambda variant: min(seen[variant], default=0.0))
    chosen = calls.pop(best)
    calls.clear()
    gc.collect()  # graphs hold themselves: at 224x224 their weights would fill the memory
    facts |= {
        "variant": best,
        "probe_ms": {variant: 1e3 * min(times) for variant, times in seen.items() if times},
    }
    return chosen, facts


def profile(call: Call, least: float = 0.005) -> dict[str, float]:
    """Own milliseconds by operator in one run, largest first; what is below a share of `least` is
    left out.
    """
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as found:
        call()
    own = {event.key: event.self_cpu_time_total / 1e3 for event in found.key_averages()}
    whole = sum(own.values())
    return dict(
        sorted(((k, v) for k, v in own.items() if v >= least * whole), key=lambda item: -item[1])
    )
