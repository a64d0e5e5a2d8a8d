"""A float64 NumPy oracle of one neuron population, written from the paper and DESIGN's equations
alone.

It shares no code with cos_ext: it counts spikes by arithmetic on sums where it can. No tests here.
"""

import numpy as np


def simulate(x, theta, v0):
    """Spikes [T, N] (bool), potentials before reset m [T, N], after reset v [T, N]; soft reset."""
    v = np.array(v0, dtype=np.float64)
    spikes, before, after = [], [], []
    for current in x:
        m = v + current
        s = m >= theta
        v = m - theta * s
        spikes.append(s)
        before.append(m)
        after.append(v)
    return np.array(spikes), np.array(before), np.array(after)


def desired_count(x, theta, v0, rho):
    """C* = clip(floor((sum of x over rho steps + v(0)) / θ), 0, rho)."""
    return np.clip(np.floor((np.sum(x[:rho], axis=0) + v0) / theta), 0, rho).astype(int)


def qcfs_count(z, theta, levels):
    """The level 0..L that a QCFS activation takes at z."""
    return np.clip(np.floor(z * levels / theta + 0.5), 0, levels).astype(int)
