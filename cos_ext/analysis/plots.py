"""The figures of reports, drawn with matplotlib, which is imported when one is asked for. What they
show is the reports' business: they come with numbers and words.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from .._files import write_figure


def stacked_shares(
    panels: Mapping[str, Sequence[Sequence[float]]],
    bars: Sequence[str],
    parts: Sequence[str],
    *,
    title: str,
    of: str,
    path: str | os.PathLike[str] | None,
) -> Any:
    """Draw a panel below the other, each with a bar that is stacked from parts for everything that
    is compared.

    Args:
        panels: by title, for each bar the fractions that its parts are.
        bars: names of the bars, written once below the last panel.
        parts: names of the parts, from the lowest up, for the legend; four at most.
        title: of the figure.
        of: what the fractions are of, for the axis.
        path: where to save the figure as well; its suffix is the format. None: it is only returned.

    Returns:
        The matplotlib Figure.

    Raises:
        ImportError: matplotlib is missing.
    """
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise ImportError("plot needs matplotlib: pip install '.[plots]'") from error
    figure, grid = pyplot.subplots(
        len(panels),
        1,
        sharex=True,
        sharey=True,
        squeeze=False,
        figsize=(max(6.0, 2 + 0.3 * len(bars)), 1.5 * len(panels) + 1.5),
        layout="constrained",
    )
    where = range(len(bars))
    colours = pyplot.get_cmap("viridis")([0.85, 0.6, 0.35, 0.05])
    for axes, (name, shares) in zip(grid[:, 0], panels.items()):
        below = [0.0] * len(bars)
        for part, (label, colour) in enumerate(zip(parts, colours)):
            heights = [100 * bar[part] for bar in shares]
            axes.bar(where, heights, bottom=below, color=colour, label=label)
            below = [low + more for low, more in zip(below, heights)]
        axes.set_title(name, fontsize="medium", loc="left")
        axes.set_ylabel(f"{of} (%)")
    legend = grid[0, 0].get_legend_handles_labels()
    figure.legend(*legend, loc="outside lower center", ncols=len(parts))
    grid[-1, 0].set_xticks(where, bars, rotation=90)
    grid[-1, 0].set_xlabel("layer, input first")
    grid[0, 0].margins(y=0.1)
    figure.suptitle(title)
    if path is not None:
        write_figure(path, figure)
    return figure
