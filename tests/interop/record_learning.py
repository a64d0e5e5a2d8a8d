"""Records what SpikingJelly's integrate-and-fire neuron and its gradients are, as
golden/spikingjelly_learning.npz for test_interop_spikingjelly.py.

Run by hand where spikingjelly is installed (the tests do not need it):
``python tests/interop/record_learning.py``. The file in the repository was written by spikingjelly
2.0.0 with torch 2.13.0 on a CPU; versions are kept in it.

A node in step mode "m" is called twice without a reset between the calls, and the loss is a
weighted sum of all spikes and of the last potential. Arrays in the file; n counts cases, none is
pickled:
    spikingjelly, torch       versions, strings
    x                         float32 [5 + 3, *neurons], the currents of both calls
    of_spikes, of_v           float32, the weights
    surrogate                 strings [n], their names; default alphas
    v_threshold, v_reset      float64 [n]; NaN is v_reset=None (soft reset)
    detach_reset              bool [n]
    spikes                    uint8 [n, 5 + 3, *neurons], 0 or 1
    v_seq                     float32 [n, 5 + 3, *neurons]
    grad                      float32 [n, 5 + 3, *neurons], of x
"""

import importlib.metadata
import itertools
import math
from pathlib import Path

import numpy as np
import torch
from spikingjelly.activation_based import neuron, surrogate

FILE = Path(__file__).parents[1] / "golden" / "spikingjelly_learning.npz"
SURROGATES = ("ATan", "Sigmoid", "PiecewiseQuadratic", "Rect")
FIRST = 5  # steps of the first call


def main() -> None:
    generator = torch.Generator().manual_seed(0)
    x = 0.3 + 0.8 * torch.randn(8, 3, 7, generator=generator)
    x[:, 0, 0] = 0.25  # on the thresholds
    of_spikes, of_v = (torch.randn(shape, generator=generator) for shape in (x.shape, x.shape[1:]))
    cases, found = [], {name: [] for name in ("spikes", "v_seq", "grad")}
    for case in itertools.product(SURROGATES, (1.0, 0.75), (None, 0.0, -0.2), (False, True)):
        name, threshold, v_reset, detach_reset = case
        node = neuron.IFNode(
            threshold,
            v_reset,
            getattr(surrogate, name)(),
            detach_reset,
            step_mode="m",
            store_v_seq=True,
        )
        leaf, sent, potentials = x.clone().requires_grad_(), [], []
        for part in (leaf[:FIRST], leaf[FIRST:]):
            sent.append(node(part))
            potentials.append(node.v_seq)
        spikes = torch.cat(sent)
        ((of_spikes * spikes).sum() + (of_v * node.v).sum()).backward()
        cases.append((name, threshold, math.nan if v_reset is None else v_reset, detach_reset))
        found["spikes"].append(spikes.detach().numpy().astype(np.uint8))
        found["v_seq"].append(torch.cat(potentials).detach().numpy())
        found["grad"].append(leaf.grad.numpy())
    names, thresholds, resets, detached = (np.array(column) for column in zip(*cases))
    versions = {
        name: np.array(importlib.metadata.version(name)) for name in ("spikingjelly", "torch")
    }
    np.savez_compressed(
        FILE,
        x=x.numpy(),
        of_spikes=of_spikes.numpy(),
        of_v=of_v.numpy(),
        surrogate=names,
        v_threshold=thresholds,
        v_reset=resets,
        detach_reset=detached,
        **versions,
        **{name: np.stack(rows) for name, rows in found.items()},
    )
    print(f"{FILE.name}: {len(cases)} cases, {FILE.stat().st_size} bytes; {versions}")


if __name__ == "__main__":
    main()
