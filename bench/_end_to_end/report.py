"""The table of a case, from its record. Nothing is computed here that the record does not hold."""

from __future__ import annotations

import statistics
from typing import Any

from _shared import tables

from .cases import NETWORKS, RIVALS, Case

COLUMNS = ("", "ms", "images/s", "to floor", "to ANN", "peak MiB", "layout")


def show(case: Case, record: dict[str, Any]) -> None:
    load, others = record["load"], record["others_worst"]
    print(
        f"\n{case}, {record['clock']} time, {case.steps} steps in the hidden layers; "
        f"spike rate {record['spike_rate']:.3f}, load {load[0]:.1f} to {load[1]:.1f}, "
        f"other processes at most {others:.0%} of the CPUs"
    )
    print(tables.head(COLUMNS, text=(0, len(COLUMNS) - 1)))
    for row, facts in record["rows"].items():
        print(tables.row(_cells(row, facts)))
    ours = [row for row in record["rows"] if row in NETWORKS]
    for row in RIVALS:
        facts = record["rows"].get(row, {})
        ratios = ", ".join(
            f"{facts[f'to {name}']:.2f} x {name}" for name in ours if f"to {name}" in facts
        )
        if ratios:
            print(f"{row} takes {ratios}")
    for row, parts in record.get("profile", {}).items():
        shares = ", ".join(f"{name} {ms:.1f}" for name, ms in parts.items())
        whole = sum(parts.values())
        print(f"profile of {row}, ms of operators' own time: {shares}; {whole:.1f} in all")


def _cells(row: str, facts: dict[str, Any]) -> list[str]:
    if "missing" in facts:
        return [row, facts["missing"], *[""] * (len(COLUMNS) - 2)]

    def cell(key: str, digits: int) -> str:
        return "" if facts.get(key) is None else f"{facts[key]:.{digits}f}"

    return [
        row,
        f"{1e3 * statistics.median(facts['s']):.1f}",
        cell("images_per_s", 2),
        cell("to_floor", 2),
        cell("to_ann", 2),
        cell("peak_mib", 0),
        facts["variant"],
    ]
