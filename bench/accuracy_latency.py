"""Accuracy against latency of the shipped network, as a record and as the README's picture.

    python bench/accuracy_latency.py                    measures all 10,000 test images, then draws
    python bench/accuracy_latency.py --from FILE        draws a record again, without measuring

Measures accuracy and never time. Every point is the running sum of one network's outputs at step t,
drawn at the latency rho + t. Tables of all methods are in bench/reproduce.py.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from _shared import checkpoints, records

from cos_ext import build_info, convert, data, evaluate

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs" / "_static" / "accuracy-latency.svg"
ROWS: dict[str, dict[str, Any]] = {
    "none": {"timesteps": 16, "rho": 0},
    "COS, rho = 2": {"timesteps": 8, "rho": 2},
    "COS, rho = 4": {"timesteps": 8, "rho": 4},
    "COS, rho = 8": {"timesteps": 8, "rho": 8},
    "even, rho = 2": {"timesteps": 8, "rho": 2, "emission": "even"},
    "even, rho = 4": {"timesteps": 8, "rho": 4, "emission": "even"},
    "even, rho = 8": {"timesteps": 8, "rho": 8, "emission": "even"},
}
STYLES = {
    "none": ("0.45", "s-"),
    "COS, rho = 2": ("tab:green", "o-"),
    "COS, rho = 4": ("tab:blue", "o-"),
    "COS, rho = 8": ("tab:purple", "o-"),
    "even, rho = 2": ("tab:green", "^--"),
    "even, rho = 4": ("tab:blue", "^--"),
    "even, rho = 8": ("tab:purple", "^--"),
}
LOWEST = 78  # percent; what lies below is written out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, help="the first so many test images (default: all)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to keep the record")
    parser.add_argument("--from", dest="record", type=Path, metavar="FILE", help="draw this record")
    parser.add_argument("--plot", type=Path, metavar="FILE", default=PICTURE)
    options = parser.parse_args()
    if options.record is not None:
        record = json.loads(options.record.read_text())
    else:
        record = measure(options.samples)
    if options.json is not None:
        records.write(options.json, record)
    draw(record, options.plot)


def measure(samples: int | None) -> dict[str, Any]:
    """The accuracy of the ANN, and by row the accuracies at every step with their latencies."""
    model, _ = checkpoints.load()
    images = data.fashion_mnist().first(samples)
    with torch.inference_mode():
        right = sum(int((model(x).argmax(1) == y).sum()) for x, y in images.batches(50))
    rows = {}
    for name, settings in ROWS.items():
        network = convert(model, **settings)
        result = evaluate(network, images.batches(50), progress=False)
        rows[name] = {"latency": result.latency, "accuracy": result.accuracy}
        print(
            name, " ".join(f"{100 * a:.2f} ({n})" for n, a in zip(*rows[name].values())), flush=True
        )
    return {
        "command": "python bench/accuracy_latency.py",
        "images": len(images),
        "ann_accuracy": right / len(images),
        "rows": rows,
        "build": build_info(),
    }


def draw(record: dict[str, Any], path: Path) -> None:
    """One line per row; colour and label say which. No date in the file, so that it is the same."""
    try:
        import matplotlib
    except ImportError as error:
        raise SystemExit("the picture needs matplotlib: pip install '.[plots]'") from error
    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "cos_ext"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.2), layout="constrained")
    ann = 100 * record["ann_accuracy"]
    axes.axhline(ann, color="black", linestyle=":", linewidth=1.5)
    axes.text(1, ann + 0.15, f"ANN {ann:.2f}%", va="bottom")
    for name, (colour, style) in STYLES.items():
        row = record["rows"][name]
        accuracy = [100 * value for value in row["accuracy"]]
        axes.plot(row["latency"], accuracy, style, color=colour, markersize=5, label=name)
    axes.set(xlim=(0.6, 16.4), ylim=(LOWEST, 95), xticks=range(1, 17))
    axes.set_xlabel("latency in time-steps: the steps watched (rho), then t")
    axes.set_ylabel("accuracy (%)")
    below = [
        f"{100 * a:.0f}% at {n}"
        for n, a in zip(*record["rows"]["none"].values())
        if 100 * a < LOWEST
    ]
    axes.text(3.3, LOWEST + 0.4, "none: " + ", ".join(below), color=STYLES["none"][0])
    axes.grid(color="0.92")
    axes.legend(loc="lower right")
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=150)


if __name__ == "__main__":
    main()
