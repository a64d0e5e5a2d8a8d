"""Plain-text tables for reports. What is in them is the callers' business."""

from __future__ import annotations


def percent(share: float) -> str:
    """A share as percent with two decimals, but never 100% or 0% for what is not all or nothing."""
    if 0.9999 < share < 1:
        return ">99.99%"
    return "<0.01%" if 0 < share < 0.0001 else f"{share:.2%}"


def table(rows: list[list[str]], left: tuple[int, ...]) -> str:
    """Rows of cells as text, in columns two blanks apart.

    Columns are aligned to the right, but for those whose numbers are in ``left``.
    """
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = (
            cell.ljust(w) if c in left else cell.rjust(w)
            for c, (cell, w) in enumerate(zip(row, widths))
        )
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
