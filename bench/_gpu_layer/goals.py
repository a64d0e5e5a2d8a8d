"""What the kernels are to reach, and whether the rows of a run say that they do.

The figures are goals for a GPU: on a CPU they say nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .cases import (
    BACK,
    CALIBRATION,
    COMPILED,
    COMPILED_CALIBRATION,
    LARGE,
    LEARN_OLD,
    LEARN_SJ,
    MIB,
    NAMES,
    QUANTISE,
    QUANTISE_BACK,
    SJ_NODE,
    Row,
)
from .rows import case_of, described, find, ratios

Values = list[tuple[float, str]]  # a figure, and the row it comes from


def targets(rows: list[Row], small: list[Row]) -> list[Row]:
    """Every goal with its worst figure: of large layers, of peers, of small layers."""
    return [*_large_layers(rows), *_learning(rows), *_peers(rows), *_small_layers(small)]


def _line(
    name: str, goal: str, values: Values, reached: Callable[[float], bool], worst: Any
) -> Row:
    if not values:
        return {"target": name, "goal": goal, "state": "not measured"}
    value, where = worst(values, key=lambda pair: pair[0])
    failing = sum(not reached(v) for v, _ in values)
    return {
        "target": name,
        "goal": goal,
        "state": "missed" if failing else "reached",
        "worst": value,
        "where": where,
        "rows": len(values),
        "rows_missed": failing,
    }


def at_least(name: str, limit: float, values: Values, unit: str) -> Row:
    return _line(name, f">= {limit:g}{unit}", values, lambda v: v >= limit, min)


def under(name: str, limit: float, values: Values, unit: str) -> Row:
    return _line(name, f"<= {limit:g}{unit}", values, lambda v: v <= limit, max)


def _large_layers(rows: list[Row]) -> list[Row]:
    large = [
        row
        for row in rows
        if row["mib"] * MIB >= LARGE and "median_us" in row and not row["static"]
    ]

    def copies(call: str, dtype: str) -> Values:
        return [
            (row["percent_of_copy"], described(row))
            for row in large
            if row["call"] == call
            and row["dtype"] == dtype
            and row.get("iterations") is None
            and "percent_of_copy" in row
        ]

    over_if = []
    for row in large:
        if row["call"] == "cos_forward":
            base = find(rows, call="if_forward", inplace=row["inplace"], **case_of(row))
            if base:
                more = 100 * (row["median_us"] / base["median_us"] - 1)
                over_if.append((more, described(row)))
    names = {"if_forward": "if_forward", "cos_forward": "cos_forward exact"}
    return [
        *(
            at_least(f"{name}, {dtype}, of copy", 92, copies(call, dtype), "%")
            for call, name in names.items()
            for dtype in NAMES.values()
        ),
        under("cos_forward over if_forward", 5, over_if, "%"),
    ]


def _learning(rows: list[Row]) -> list[Row]:
    def copies(call: str, steps: int) -> Values:
        return [
            (row["percent_of_copy"], described(row))
            for row in rows
            if row["call"] == call
            and row["timesteps"] <= steps
            and row["mib"] * MIB >= LARGE
            and "percent_of_copy" in row
        ]

    # Beyond eight steps x is read twice (csrc/cuda/learning.cuh).
    names = {BACK: "if_backward, T <= 8", QUANTISE: QUANTISE, QUANTISE_BACK: QUANTISE_BACK}
    return [at_least(f"{names[call]}, of copy", 92, copies(call, 8), "%") for call in names]


def _peers(rows: list[Row]) -> list[Row]:
    def times(*calls: str, **options: Any) -> Values:
        return [(ratio, described(row)) for ratio, row in ratios(rows, *calls, **options)]

    half = times(SJ_NODE, dtypes=("f16", "bf16"))
    return [
        at_least("SpikingJelly 2 IFNode, f32", 1.4, times(SJ_NODE, dtypes=("f32",)), "x"),
        at_least("SpikingJelly 2 IFNode, f16 and bf16", 4, half, "x"),
        at_least("SpikingJelly, both ways", 1, times(LEARN_SJ, LEARN_OLD), "x"),
        at_least("torch.compile's best", 1, times(COMPILED, COMPILED_CALIBRATION), "x"),
        at_least("calibration in plain torch", 40, times(CALIBRATION), "x"),
    ]


def _small_layers(small: list[Row]) -> list[Row]:
    ours = [row for row in small if not row["call"].startswith("torch") and "error" not in row]
    launches = [
        (float(len(row["graph_nodes"])), described(row)) for row in ours if "graph_nodes" in row
    ]
    hosts = [(row["host_us"], described(row)) for row in ours if "host_us" in row]
    eager = []
    for row in (row for row in ours if row["call"] == "if_forward"):
        peers = [
            other
            for other in small
            if other["call"].startswith("torch.compile")
            and case_of(other) == case_of(row)
            and "device_us" in other
            and "host_us" in other
        ]
        if peers:
            # Outside a graph a call costs what the slower of host and device takes.
            theirs = min(max(other["device_us"], other["host_us"]) for other in peers)
            eager.append((theirs / max(row["device_us"], row["host_us"]), described(row)))
    return [
        under("small layers: launches a call", 1, launches, ""),
        under("small layers: host time a call", 15, hosts, " us"),
        at_least("small layers: torch.compile, eager", 1, eager, "x"),
    ]
