"""Records spike trains of snntorch's spikegen, as golden/snntorch_spikegen.npz for
test_interop_snntorch.py.

Run by hand where snntorch is installed (the tests do not need it):
``python tests/interop/record_spikegen.py``. The file in the repository was written by
snntorch 1.0.0 with torch 2.13.0 on a CPU; versions are kept in it.

Arrays in the file, none is pickled:
    snntorch, torch     versions, strings
    images              float32 [B, 1, 6, 6], in 0..1; what rate and latency encode
    signal              float32 [T, B, 5]; what delta encodes
    rate                int8 [T, B, 1, 6, 6], spikegen.rate after torch.manual_seed(0)
    latency             int8 [T, B, 1, 6, 6], linear, normalised
    delta               int8 [T, B, 5], with spikes of both signs
    dtypes              strings, of what spikegen returned, in this order
"""

import importlib.metadata
from pathlib import Path

import numpy as np
import torch
from snntorch import spikegen

FILE = Path(__file__).parents[1] / "golden" / "snntorch_spikegen.npz"
STEPS = 7


def main() -> None:
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(3, 1, 6, 6, generator=generator)
    signal = torch.rand(STEPS, 3, 5, generator=generator)
    torch.manual_seed(0)
    trains = {
        "rate": spikegen.rate(images, num_steps=STEPS),
        "latency": spikegen.latency(images, num_steps=STEPS, normalize=True, linear=True),
        "delta": spikegen.delta(signal, threshold=0.2, off_spike=True),
    }
    versions = {name: np.array(importlib.metadata.version(name)) for name in ("snntorch", "torch")}
    np.savez_compressed(
        FILE,
        images=images.numpy(),
        signal=signal.numpy(),
        dtypes=np.array([str(train.dtype) for train in trains.values()]),
        **versions,
        **{name: train.numpy().astype(np.int8) for name, train in trains.items()},
    )
    print(f"{FILE.name}: {FILE.stat().st_size} bytes; {versions}")


if __name__ == "__main__":
    main()
