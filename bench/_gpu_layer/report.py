"""The table of a run, at most 110 lines. Nothing is computed here that the rows do not say."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from .cases import (
    CALIBRATION,
    COMPILED,
    COMPILED_CALIBRATION,
    LARGE,
    LOOP,
    MIB,
    NAMES,
    SJ_NODE,
    SJ_OLD,
    SJ_STATE,
    Grid,
    Row,
)
from .learning import BACK, LEARN, LEARN_LOOP
from .rows import case_of, described, find, ours_for, ratios
from .run import Run

OURS = [
    ("if_forward", {}),
    *(("cos_forward", {"rho": rho, "iterations": i}) for rho in (4, 8) for i in (1, None)),
]
# By call and rho, the heads of the columns.
THEIRS = {
    (LOOP, None): "loop",
    (COMPILED, None): "compile",
    (SJ_NODE, None): "SJ2",
    (SJ_STATE, None): "SJ2f32",
    (f"{SJ_OLD} jit", None): "SJ0jit",
    (f"{SJ_OLD} cupy", None): "SJ0cupy",
    (CALIBRATION, 4): "cal4",
    (CALIBRATION, 8): "cal8",
    (COMPILED_CALIBRATION, 4): "ccal4",
    (COMPILED_CALIBRATION, 8): "ccal8",
}


def table(run: Run) -> list[str]:
    rows, g = run.rows, run.grid
    return [
        *_bandwidth(rows, g),
        *_peers(rows, g),
        *_learning(rows, g),
        *_sizes(rows, g),
        *_layouts(rows, g),
        *_small_layers(run.small, g),
        *_lost(rows),
        *_not_measured(run),
        *_targets(run),
    ]


def _cell(row: Row | None, key: str, form: str, width: int = 7) -> str:
    if row is None:
        return f"{'-':>{width}}"
    return f"{row[key]:{width}{form}}" if key in row else f"{'error':>{width}}"


def _flat(dtype: str, steps: int, log2: int) -> Row:
    return {
        "dtype": dtype,
        "timesteps": steps,
        "elements": 2**log2,
        "layout": "flat",
        "v_threshold": "scalar",
        "static": False,
    }


def _cases(g: Grid) -> Iterator[Row]:
    for steps in sorted(g.steps):
        for dtype in g.dtypes:
            yield _flat(NAMES[dtype], steps, g.base)


def _named(case: Row) -> str:
    return f"{case['dtype']:5}T={case['timesteps']:<2}"


def _bandwidth(rows: list[Row], g: Grid) -> Iterator[str]:
    yield f"% of copy bandwidth, 2^{g.base} elements, out of place | in place"
    head = "".join(f"{name:>7}" for name in ("if", "rho4", "exact", "rho8", "exact"))
    yield f"{'':8}{'copy GB/s':>10}{head} |{head}"
    for case in _cases(g):
        sides = []
        for inplace in (False, True):
            found = (find(rows, call=call, inplace=inplace, **case, **o) for call, o in OURS)
            sides.append("".join(_cell(row, "percent_of_copy", ".1f") for row in found))
        copy = _cell(find(rows, call="copy", **case), "gb_per_s", ".0f", 10)
        yield f"{_named(case)}{copy[1:]}{sides[0]} |{sides[1]}"


def _peers(rows: list[Row], g: Grid) -> Iterator[str]:
    yield f"ratio: their time / ours, 2^{g.base} elements, out of place (below 1: we lose)"
    yield f"{'':9}" + "".join(f"{name:>9}" for name in THEIRS.values())
    for case in _cases(g):
        found = [_ratio(rows, case, call, rho) for call, rho in THEIRS]
        if any(ratio is not None for ratio in found):
            cells = (f"{'-':>9}" if ratio is None else f"{ratio:9.2f}" for ratio in found)
            yield _named(case) + "".join(cells)


def _ratio(rows: list[Row], case: Row, call: str, rho: int | None) -> float | None:
    """Of the fastest form of a peer."""
    found = [
        row
        for row in rows
        if row["call"] == call
        and row.get("rho") == rho
        and "median_us" in row
        and case_of(row) == case
    ]
    best = min(found, key=lambda row: row["median_us"], default=None)
    ours = ours_for(rows, best) if best else None
    return best["median_us"] / ours["median_us"] if best and ours else None


def _learning(rows: list[Row], g: Grid) -> Iterator[str]:
    yield f"learning, 2^{g.base}: the gradient's kernel, us (% of copy); both ways; in torch"
    yield " " * 5 + "".join(f"{NAMES[dtype]:>38}" for dtype in g.dtypes)
    for steps in sorted(g.steps):
        cells = ""
        for dtype in g.dtypes:
            case = _flat(NAMES[dtype], steps, g.base)
            back, *both = (find(rows, call=call, **case) for call in (BACK, LEARN, LEARN_LOOP))
            times = "".join(_cell(row, "median_us", ".1f", 10) for row in both)
            share = _cell(back, "percent_of_copy", ".0f", 3)
            cells += f"{_cell(back, 'median_us', '.1f', 12)} ({share}){times}"
        yield f"T={steps:<3}" + cells


def _sizes(rows: list[Row], g: Grid) -> Iterator[str]:
    yield f"sizes, T = {g.steps[0]}: us (% of copy), out of place"
    dtypes = [NAMES[dtype] for dtype in g.dtypes]
    heads = (f"{dtype + call:>15}" for dtype in dtypes for call in (" if", " rho4 exact"))
    yield " " * 5 + "".join(heads)
    for log2 in sorted({*g.sizes, g.base}):
        cells = []
        for dtype in dtypes:
            case = _flat(dtype, g.steps[0], log2)
            for call, options in (OURS[0], OURS[2]):
                row = find(rows, call=call, inplace=False, **case, **options)
                share = _cell(row, "percent_of_copy", ".0f", 3)
                cells.append(f"{_cell(row, 'median_us', '.1f', 8)} ({share})")
        yield f"2^{log2:<3}" + "".join(f"{text:>15}" for text in cells)


def _layouts(rows: list[Row], g: Grid) -> Iterator[str]:
    yield (
        f"layouts, T = {g.steps[0]}, 2^{g.base}: % of copy of if, rho4, exact, rho8, exact; out of "
        "place"
    )
    for layout, threshold, static in (
        ("nchw", "per channel", False),
        ("channels_last", "per channel", False),
        ("channels_last", "scalar", False),
        ("flat", "scalar", True),
        ("nchw", "per channel", True),
    ):
        form = {"layout": layout, "v_threshold": threshold, "static": static}
        cells = []
        for dtype in g.dtypes:
            case = _flat(NAMES[dtype], g.steps[0], g.base) | form
            found = (find(rows, call=call, inplace=False, **case, **o) for call, o in OURS)
            cells.append("".join(_cell(row, "percent_of_copy", ".0f", 4) for row in found))
        yield f"{layout + ' ' + threshold + ' static' * static:30}" + " |".join(cells)


def _small_layers(small: list[Row], g: Grid) -> Iterator[str]:
    yield "small layers, us a call: host / device / in a graph"
    for dtype, steps, log2 in g.small:
        cells = []
        for row in small:
            if case_of(row) == _flat(NAMES[dtype], steps, log2) and "error" not in row:
                keys = ("host_us", "device_us", "graph_us")
                times = (f"{row[key]:.1f}" if key in row else "-" for key in keys)
                cells.append(f"{row['call']} {'/'.join(times)}")
        text = f"{NAMES[dtype]} T={steps} 2^{log2}: " + "; ".join(cells)
        yield from textwrap.wrap(text, 110, subsequent_indent="  ")


def _lost(rows: list[Row]) -> Iterator[str]:
    everyone = {call for call, _ in THEIRS}
    lost = sorted((r for r in ratios(rows, *everyone) if r[0] < 1), key=lambda pair: pair[0])
    where = "" if lost else "nowhere that was measured"
    yield f"where we lose to a peer, from {LARGE // MIB} MiB on: {where}"
    for ratio, row in lost[:4]:
        yield f"  {ratio:.2f} of our time: {described(row)}"


def _not_measured(run: Run) -> Iterator[str]:
    for text in run.errors[:4]:
        yield f"ERROR {text}"[:118]
    if len(run.errors) > 4:
        yield f"... {len(run.errors) - 4} more errors, see the JSON"
    for name, reason in list(run.peers.skipped.items())[:3]:
        yield f"skipped {name}: {reason}"[:118]
    if run.left_out:
        yield f"left out for want of time: {len(run.left_out)} jobs, see the JSON"


def _targets(run: Run) -> Iterator[str]:
    on_gpu = run.clock.device == "cuda"
    yield "targets" + ("" if on_gpu else " (they are for a GPU: on a CPU they say nothing)")
    for target in run.targets:
        text = f"{target['state']:13}{target['target']:38}{target['goal']:>8}"
        if "worst" in target:
            count = ""
            if target["rows_missed"]:
                count = f"{target['rows_missed']} of {target['rows']} rows miss; "
            text += f"  {count}worst {target['worst']:.2f}: {target['where']}"
        yield text[:150]
