"""The records of bench/methods.py as one table of rows, and that in Markdown.

Nothing is measured or drawn here. Figures are in figures.py.
"""

from __future__ import annotations

from typing import Any

STEPS = (1, 2, 4, 8)


def joined(parts: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Rows by name, each with accuracy and costs, from whichever records have them.

    Raises:
        SystemExit: a row is there without one of them, or records are of other settings.
    """
    rows: dict[str, dict[str, Any]] = {}
    for part in parts:
        for row in part["rows"]:
            rows.setdefault(row["name"], {}).update({"rho": part["rho"], **row})
    for key in ("rho", "images", "costs_of"):
        if len(found := {part[key] for part in parts if part.get(key)}) > 1:
            raise SystemExit(f"records must agree in {key}, got {sorted(found)}")
    for name, row in rows.items():
        if missing := {"accuracy", "costs"} - row.keys():
            raise SystemExit(f"{name}: no record has its {', '.join(sorted(missing))}")
    return rows


def ann_of(parts: list[dict[str, Any]]) -> dict[str, float]:
    """The ANN's accuracy and microjoules, from whichever records have them."""
    return {key: value for part in parts for key, value in part.get("ann", {}).items()}


def page(rows: dict[str, dict[str, Any]]) -> str:
    """The tables in Markdown: accuracy, then costs."""
    steps = [f"T = {t}" for t in STEPS]
    accuracy = [
        [
            name,
            row["needs"],
            _latency(row),
            *(f"{100 * row['accuracy'][str(t)]:.2f}" for t in STEPS),
        ]
        for name, row in rows.items()
    ]
    costs = [
        [
            name,
            *(f"{row['costs'][str(t)]['spikes']:.2f}" for t in STEPS),
            *(_energy(row["costs"][str(t)]["microjoules"]) for t in STEPS),
        ]
        for name, row in rows.items()
    ]
    return "\n\n".join(
        (
            _table(["method", "needs", "latency at t", *steps], accuracy, 3),
            _table(["method", *steps, *steps], costs, 1),
        )
    )


def _latency(row: dict[str, Any]) -> str:
    """t and what is added to it at T = 1, 2, 4, 8."""
    watched = [row["costs"][str(t)]["latency"] - t for t in STEPS]
    if watched == list(STEPS):
        return "T + t"
    assert len(set(watched)) == 1, watched
    return f"{watched[0]} + t" if watched[0] else "t"


def _energy(microjoules: float | None) -> str:
    return "-" if microjoules is None else f"{microjoules:.0f}"


def _table(head: list[str], rows: list[list[str]], left: int) -> str:
    rule = ["---" if column < left else "---:" for column in range(len(head))]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *rows))
