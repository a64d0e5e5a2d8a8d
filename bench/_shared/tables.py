"""Markdown tables, as the documents paste them. What is in the cells is the scripts' business."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

SHOWN = (1, 2, 4, 8)  # the steps in most tables


def row(cells: Iterable[object]) -> str:
    return "|" + "".join(f" {cell} |" if str(cell) else " |" for cell in cells)


def head(names: Sequence[str], text: Collection[int] = (0,)) -> str:
    """Both lines of a head. text: the columns that hold words; all others hold numbers."""
    lines = ("---" if column in text else "---:" for column in range(len(names)))
    return f"{row(names)}\n{row(lines)}"


def steps(times: Iterable[int], letter: str = "t") -> list[str]:
    return [f"{letter} = {t}" for t in times]


def percents(accuracy: Sequence[float], times: Iterable[int] = SHOWN, digits: int = 2) -> list[str]:
    """The accuracies at these steps, in percent; empty after the last one."""
    return [f"{100 * accuracy[t - 1]:.{digits}f}" if t <= len(accuracy) else "" for t in times]
