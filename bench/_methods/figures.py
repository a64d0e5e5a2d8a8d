"""The figures of bench/methods.py: accuracy against latency, spikes and energy, a panel a family.

Nothing is measured here. Tables are in table.py.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from .table import STEPS

# A panel each, with its lines.
FAMILIES: dict[str, tuple[str, ...]] = {
    "0 or 1 in a step, nothing is watched": ("qcfs", "light", "snn-calibration", "ftbc"),
    "0 or 1, rho steps are watched": ("cos", "even", "block", "srp", "parallel", "parallel-shift"),
    "several levels in a step": (
        "group-neurons, 2 members",
        "group-neurons, 4 members",
        "group-neurons, 4, calibrated",
        "h-mt",
        "adafire",
    ),
    "negative ones too": ("signed", "signed-memory", "multi-threshold", "dcgs"),
}
COLOURS = ("tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple", "tab:brown")
MARKERS = "osD^vP"
# Of the costs in a record: the file's name, the axis, and whose value is the ANN's.
AXES = {
    "latency": ("methods-latency", "latency in time-steps: the steps watched, then t"),
    "pipeline_latency": (
        "methods-pipeline-latency",
        "latency in time-steps where all layers run at once",
    ),
    "spikes": ("methods-spikes", "levels sent by a neuron until the answer at t"),
    "microjoules": ("methods-energy", "energy of an image, µJ (arithmetic alone)"),
}
SHOWN = (20, 50, 80, 85, 90, 92, 93, 94)


def draw(rows: dict[str, dict[str, Any]], ann: dict[str, float], folder: Path) -> list[Path]:
    """All figures, as SVG; no date in them, so that they are the same.

    ``ann``: its accuracy and microjoules.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise SystemExit("figures need matplotlib: pip install '.[plots]'") from error
    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "cos_ext"
    return [_figure(rows, ann, cost, folder / f"{name}.svg") for cost, (name, _) in AXES.items()]


def _figure(rows: dict[str, dict[str, Any]], ann: dict[str, float], cost: str, path: Path) -> Path:
    from matplotlib import pyplot

    figure, grid = pyplot.subplots(
        2, 2, figsize=(10, 8), layout="constrained", sharex=True, sharey=True
    )
    lines = {name: _line(row, cost) for name, row in rows.items()}
    for axes, (family, names) in zip(grid.flat, FAMILIES.items()):
        for name in lines.keys() - set(names):  # the others, for comparison
            axes.plot(*lines[name], color="0.88", linewidth=1, zorder=1)
        for name, colour, marker in zip(names, COLOURS, MARKERS):
            if name in lines and lines[name][0]:
                axes.plot(
                    *lines[name], f"{marker}-", color=colour, markersize=5, label=name, zorder=3
                )
        axes.axhline(_height(ann["accuracy"]), color="black", linestyle=":", linewidth=1.2)
        if cost in ann:
            axes.axvline(ann[cost], color="black", linestyle=":", linewidth=1.2)
        axes.set_xscale("log")
        axes.set_yticks([_height(each / 100) for each in SHOWN], [str(each) for each in SHOWN])
        axes.minorticks_off()
        axes.set_title(family, fontsize="medium", loc="left")
        axes.grid(color="0.94", zorder=0)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(loc="best", fontsize="small")
    ticks = _ticks([x for xs, _ in lines.values() for x in xs])
    grid[0, 0].set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    grid[0, 0].minorticks_off()
    figure.supxlabel(AXES[cost][1])
    figure.supylabel("accuracy (%); the axis is the logarithm of the error")
    figure.suptitle(
        f"Points are t = {', '.join(map(str, STEPS))}. Dotted: the ANN, "
        f"{100 * ann['accuracy']:.2f}%" + (f", {ann[cost]:.0f} µJ" if cost in ann else ""),
        fontsize="medium",
    )
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
    return path


def _line(row: dict[str, Any], cost: str) -> tuple[list[float], list[float]]:
    """Costs and heights at every t; nothing where there is no such cost."""
    costs = [row["costs"][str(t)][cost] for t in STEPS]
    if None in costs:
        return [], []
    return costs, [_height(row["accuracy"][str(t)]) for t in STEPS]


def _height(accuracy: float) -> float:
    """Errors by their logarithm, the smallest highest."""
    return -math.log(1 - accuracy)


def _ticks(values: list[float]) -> list[float]:
    """1, 2 and 5 times powers of ten, from below the least to above the largest."""
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    all_of_them = [m * 10.0**e for e in range(low, high + 1) for m in (1, 2, 5)]
    return [each for each in all_of_them if min(values) * 0.7 <= each <= max(values) * 1.4]
