"""The page of a record, in Markdown. Nothing is computed here that the rows do not say.

It is drawn from the record alone, so that one of another day, or one cut short, has its page too.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from _shared import tables

from .cases import (
    BACK,
    CALIBRATION,
    COMPILED,
    COMPILED_CALIBRATION,
    LARGE,
    LEARN,
    LEARN_LOOP,
    LEARN_OLD,
    LEARN_SJ,
    LOOP,
    MIB,
    NAMES,
    QCFS_COMPILED,
    QCFS_LEARN,
    QCFS_PLAIN,
    QUANTISE,
    QUANTISE_BACK,
    SJ_NODE,
    SJ_OLD,
    SJ_STATE,
    Row,
)
from .rows import case_of, described, find, ours_for, ratios

# By the heads of the columns: an operator, its rho and its rounds. A rho of 4 is T where T is less.
LAYER = {
    "`if_forward`": ("if_forward", 0, 1),
    "rho 4": ("cos_forward", 4, 1),
    "rho 4, exact": ("cos_forward", 4, None),
    "rho 8": ("cos_forward", 8, 1),
    "rho 8, exact": ("cos_forward", 8, None),
}
# By call and rho, the heads of the columns.
THEIRS = {
    (LOOP, None): "loop",
    (COMPILED, None): "compiled",
    (SJ_NODE, None): "SJ 2",
    (SJ_STATE, None): "SJ 2, f32 state",
    (f"{SJ_OLD} jit", None): "SJ 0, jit",
    (f"{SJ_OLD} cupy", None): "SJ 0, cupy",
    (CALIBRATION, 4): "rho 4",
    (COMPILED_CALIBRATION, 4): "rho 4, compiled",
    (CALIBRATION, 8): "rho 8",
    (COMPILED_CALIBRATION, 8): "rho 8, compiled",
}
LEARNERS = {LEARN_LOOP: "loop", LEARN_SJ: "SJ 2", LEARN_OLD: "SJ 0, cupy"}
QUANTISERS = {QCFS_PLAIN: "plain torch", QCFS_COMPILED: "compiled"}
NONE = "Not measured."
Lines = Iterator[str]


def page(record: Row) -> Lines:
    """All that a record says, section after section."""
    rows, small = record["rows"], record["small_layers"]
    yield from _head(record)
    sections: dict[str, tuple[str, Lines]] = {
        "Goals": ("The worst row of each decides.", _goals(record)),
        "A layer beside a copy": (
            "In percent of a copy's bandwidth: out of place / in place. Below T = 4, rho is T.",
            _bandwidth(rows),
        ),
        "Beside others": (
            "Their time, out of place, in times ours. Below 1 we lose.",
            _peers(rows),
        ),
        "Neurons that learn": (
            "`if_backward` in µs and in percent of a copy; forwards and backwards in µs; others in "
            "times ours.",
            _learning(rows),
        ),
        "QCFS": (
            "Its kernels in µs and in percent of a copy; forwards and backwards in µs; others in "
            "times ours.",
            _quantisers(rows),
        ),
        "Small layers": ("µs a call, and launches.", _small(small)),
        "Sizes": ("µs, and percent of a copy.", _sizes(rows)),
        "Layouts": ("In percent of a copy, out of place.", _layouts(rows)),
        "What was not measured": (
            "Events are not: their kernels are for CPUs.",
            _not_measured(record),
        ),
    }
    for name, (about, body) in sections.items():
        yield f"\n## {name}\n\n{about}\n"
        yield from body


def _head(record: Row) -> Lines:
    versions = ", ".join(f"{name} {value}" for name, value in record["versions"].items() if value)
    yield f"# A layer on an {record['machine']}\n"
    yield (
        f"Measured on {record['date'][:10]}, commit {record['commit']}, in "
        f"{record['seconds']:.0f} s by `{record['command']}`."
    )
    yield f"Versions: {versions}."
    if record["device"] != "cuda":
        yield "This is no GPU: the figures only show that the script runs."


def _table(
    heads: Sequence[str], named: Iterator[tuple[str, list[str]]] | list[tuple[str, list[str]]]
) -> Lines:
    """Only rows that hold something, and one sentence where there is none."""
    found = [(name, cells) for name, cells in named if any(cells)]
    if not found:
        yield NONE
        return
    yield tables.head(("", *heads))
    for name, cells in found:
        yield tables.row((name, *cells))


def _number(row: Row | None, key: str, digits: int = 0) -> str:
    if row is None:
        return ""
    return f"{row[key]:.{digits}f}" if key in row else "error" if "error" in row else ""


def _layer(rows: list[Row], name: str, case: Row, inplace: bool = False) -> Row | None:
    call, rho, iterations = LAYER[name]
    if not rho:
        return find(rows, call=call, inplace=inplace, **case)
    rho = min(rho, case["timesteps"]) if rho == 4 else rho
    return find(rows, call=call, inplace=inplace, rho=rho, iterations=iterations, **case)


def _timed(row: Row | None) -> str:
    """µs (percent of a copy)."""
    share = _number(row, "percent_of_copy")
    return _number(row, "median_us", 1) + (f" ({share})" if share else "")


def _largest(rows: list[Row]) -> list[Row]:
    """Flat cases of the most elements, by time and dtype."""
    found = [row for row in rows if row["layout"] == "flat" and not row["static"]]
    most = max((row["elements"] for row in found), default=0)
    cases = {tuple(case_of(r).values()): case_of(r) for r in found if r["elements"] == most}
    order = list(NAMES.values())
    return sorted(cases.values(), key=lambda c: (c["timesteps"], order.index(c["dtype"])))


def _named(case: Row) -> str:
    return f"{case['dtype']}, T = {case['timesteps']}"


def _main(rows: list[Row]) -> list[Row]:
    """The cases that most is known of: of those of one size, the size with most time-steps."""
    steps: dict[int, set[int]] = {}
    for row in rows:
        if row["call"] == "copy" and row["layout"] == "flat":
            steps.setdefault(row["elements"], set()).add(row["timesteps"])
    if not steps:
        return []
    size = max(steps, key=lambda elements: (len(steps[elements]), elements))
    return _largest([row for row in rows if row["elements"] == size])


def _bandwidth(rows: list[Row]) -> Lines:
    def cells(case: Row) -> list[str]:
        both = []
        for name in LAYER:
            found = [_layer(rows, name, case, inplace) for inplace in (False, True)]
            shares = [_number(row, "percent_of_copy") for row in found]
            both.append(" / ".join(filter(None, shares)))
        return both

    heads = ("copy, GB/s", *LAYER)
    copies = [(case, _number(find(rows, call="copy", **case), "gb_per_s")) for case in _main(rows)]
    yield from _table(heads, [(_named(case), [copy, *cells(case)]) for case, copy in copies])


def _peers(rows: list[Row]) -> Lines:
    yield from _beside(rows, THEIRS)
    everyone = {call for call, _ in THEIRS}
    lost = sorted((r for r in ratios(rows, *everyone) if r[0] < 1), key=lambda pair: pair[0])
    where = "; ".join(f"{ratio:.2f} of our time: {described(row)}" for ratio, row in lost[:4])
    yield f"\nWhere we lose to a peer, from {LARGE // MIB} MiB on: {where or 'nowhere seen'}."


def _beside(rows: list[Row], theirs: dict[tuple[str, int | None], str]) -> Lines:
    def ratio(case: Row, call: str, rho: int | None) -> str:
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
        return f"{best['median_us'] / ours['median_us']:.2f}" if best and ours else ""

    heads = list(theirs.values())
    named = [(_named(case), [ratio(case, *key) for key in theirs]) for case in _main(rows)]
    yield from _table(heads, named)


def _trained(
    rows: list[Row], kernels: Sequence[str], both: str, others: dict[str, str]
) -> Callable[[Row], list[str]]:
    def cells(case: Row) -> list[str]:
        whole = find(rows, call=both, **case)
        found = [_timed(find(rows, call=call, **case)) for call in kernels]
        found.append(_number(whole, "median_us", 1))
        for call in others:
            row = find(rows, call=call, **case)
            found.append(f"{row['median_us'] / whole['median_us']:.2f}" if row and whole else "")
        return found

    return cells


def _learning(rows: list[Row]) -> Lines:
    cells = _trained(rows, [BACK], LEARN, LEARNERS)
    heads = ("`if_backward`", "both ways", *LEARNERS.values())
    yield from _table(heads, [(_named(case), cells(case)) for case in _main(rows)])


def _quantisers(rows: list[Row]) -> Lines:
    cells = _trained(rows, [QUANTISE, QUANTISE_BACK], QCFS_LEARN, QUANTISERS)
    heads = ("forwards", "backwards", "both ways", *QUANTISERS.values())
    own = [row for row in rows if row["call"] == QUANTISE]
    yield from _table(heads, [(case["dtype"], cells(case)) for case in _largest(own)])


def _small(small: list[Row]) -> Lines:
    def cells(row: Row) -> list[str]:
        times = [_number(row, key, 1) for key in ("host_us", "device_us", "graph_us")]
        return [*times, str(len(row["graph_nodes"])) if "graph_nodes" in row else ""]

    named = [(f"{row['call']}: {_named(row)}, {row['mib']:.4g} MiB", cells(row)) for row in small]
    yield from _table(("host", "device", "in a graph", "launches"), named)


def _sizes(rows: list[Row]) -> Lines:
    flat = [r for r in rows if r["layout"] == "flat" and not r["static"] and r["call"] == "copy"]
    steps = max((row["timesteps"] for row in _main(rows)), default=0)
    counts: dict[int, int] = {}
    for row in flat:
        counts[row["timesteps"]] = counts.get(row["timesteps"], 0) + 1
    steps = max(counts, key=lambda t: counts[t], default=0)
    calls, named = ("`if_forward`", "rho 4, exact"), []
    for size in sorted({row["elements"] for row in flat}):
        cells = []
        for call, dtype in itertools.product(calls, NAMES.values()):
            case = {
                "dtype": dtype,
                "timesteps": steps,
                "elements": size,
                "layout": "flat",
                "v_threshold": "scalar",
                "static": False,
            }
            cells.append(_timed(_layer(rows, call, case)))
        named.append((f"2^{size.bit_length() - 1}, T = {steps}", cells))
    yield from _table([f"{call}, {d}" for call in calls for d in NAMES.values()], named)


def _layouts(rows: list[Row]) -> Lines:
    cases: dict[tuple[Any, ...], Row] = {}
    for row in rows:
        special = row["layout"] != "flat" or row["static"]
        if special and row["call"] == "if_forward":
            cases.setdefault(tuple(case_of(row).values()), case_of(row))
    named = []
    for case in cases.values():
        words = [case["layout"], case["v_threshold"]] + ["static"] * case["static"]
        found = (_layer(rows, name, case) for name in LAYER)
        named.append(
            (
                f"{_named(case)}, {', '.join(words)}",
                [_number(row, "percent_of_copy") for row in found],
            )
        )
    yield from _table(list(LAYER), named)


def _goals(record: Row) -> Lines:
    def cells(goal: Row) -> list[str]:
        if "worst" not in goal:
            return [goal["goal"], goal["state"], "", "", ""]
        missed = f"{goal['rows_missed']} of {goal['rows']}"
        return [goal["goal"], goal["state"], f"{goal['worst']:.2f}", missed, goal["where"]]

    named = [(goal["target"], cells(goal)) for goal in record["targets"]]
    yield from _table(("goal", "state", "worst", "rows that miss", "the worst"), named)


def _not_measured(record: Row) -> Lines:
    for text in record["errors"]:
        yield f"* ERROR {text}"
    for name, reason in record["peers_skipped"].items():
        yield f"* Skipped {name}: {reason}"
    names: dict[str, int] = {}
    for label in record["left_out"]:
        name = label.partition(":")[0]
        names[name] = names.get(name, 0) + 1
    for name, count in names.items():
        yield f"* For want of time: {count} x {name}"
