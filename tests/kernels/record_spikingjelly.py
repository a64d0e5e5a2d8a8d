"""Records what SpikingJelly's integrate-and-fire neuron does, as golden/spikingjelly_if.npz
for test_spikingjelly.py.

Run by hand where spikingjelly is installed (the tests do not need it):
``python tests/kernels/record_spikingjelly.py``. The file in the repository was written by
spikingjelly 2.0.0 with torch 2.13.0 on a CPU; versions are kept in it.

Arrays in the file; n counts cases, i counts inputs, none is pickled:
    spikingjelly, torch       versions, strings
    v_threshold, v_reset      float64 [n]; NaN is v_reset=None (soft reset)
    input                     int64 [n]: the case's i
    x_i                       float32 [T, *neurons]
    spikes_n                  uint8 [T, *neurons], 0 or 1
    v_n                       float32 [*neurons], after the last step
"""

import importlib.metadata
import itertools
import math
from pathlib import Path

import numpy as np
import torch
from spikingjelly.activation_based import neuron

FILE = Path(__file__).parents[1] / "golden" / "spikingjelly_if.npz"
THRESHOLDS = (0.5, 1.0, 2.3)  # 2.3 is no float32: its rounding must happen before the comparison
RESETS = (None, 0.0)
STEPS = (1, 4, 9)
NEURONS = ((129,), (2, 3, 4, 5))


def currents(shape: tuple[int, ...], threshold: float, generator: torch.Generator) -> torch.Tensor:
    """Normal currents, strong enough to leave residuals over the threshold, and every third neuron
    on or next to it.
    """
    theta = torch.tensor(threshold)
    x = theta * (0.4 + 0.8 * torch.randn(shape, generator=generator))
    # Products with powers of two are exact, so that sums of these land on the threshold itself, and
    # one ulp beside it.
    below, above = (
        torch.nextafter(theta, torch.tensor(0.0)),
        torch.nextafter(theta, torch.tensor(math.inf)),
    )
    edges = torch.stack([-theta, 0 * theta, theta / 2, theta, 2 * theta, below, above])
    on_edge = edges[torch.randint(len(edges), shape, generator=generator)]
    every_third = (torch.arange(math.prod(shape[1:])) % 3 == 0).reshape(shape[1:])
    return torch.where(every_third, on_edge, x)


def main() -> None:
    generator = torch.Generator().manual_seed(0)
    versions = {
        name: np.array(importlib.metadata.version(name)) for name in ("spikingjelly", "torch")
    }
    arrays: dict[str, np.ndarray] = {}
    cases: list[tuple[float, float, int]] = []
    for i, (threshold, steps, neurons) in enumerate(itertools.product(THRESHOLDS, STEPS, NEURONS)):
        x = currents((steps, *neurons), threshold, generator)
        arrays[f"x_{i}"] = x.numpy()
        for v_reset in RESETS:
            node = neuron.IFNode(v_threshold=threshold, v_reset=v_reset, step_mode="m")
            with torch.no_grad():
                spikes = node(x)
            arrays[f"spikes_{len(cases)}"] = spikes.numpy().astype(np.uint8)
            arrays[f"v_{len(cases)}"] = node.v.numpy()
            cases.append((threshold, math.nan if v_reset is None else v_reset, i))
    thresholds, resets, inputs = (np.array(column) for column in zip(*cases))
    FILE.parent.mkdir(exist_ok=True)
    np.savez_compressed(
        FILE, v_threshold=thresholds, v_reset=resets, input=inputs, **versions, **arrays
    )
    names = ", ".join(f"{name} {version}" for name, version in versions.items())
    print(f"{FILE.name}: {len(cases)} cases, {FILE.stat().st_size} bytes; {names}")


if __name__ == "__main__":
    main()
