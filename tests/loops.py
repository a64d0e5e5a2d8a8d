"""Rival calibrations as plain loops over time: nothing of cos_ext.reference or of the kernels is in
them. No tests here.
"""

import torch


def currents(*shape, dtype=torch.float32):
    """Multiples of 1/16 within (-1, 2): exact in every dtype, and so are their sums and those with
    θ, 3/4 and the like.
    """
    return torch.randint(-15, 32, shape).to(dtype) / 16


def run(x, theta, v):
    """IF with soft reset, step by step: spikes as booleans [T, ...] and the potential at the
    end.
    """
    fired = []
    for now in x:
        m = v + now
        fired.append(m >= theta)
        v = torch.where(fired[-1], m - theta, m)
    return torch.stack(fired), v


def plain_srp(x, theta, v, tau):
    _, residual = run(x[:tau].double(), theta.double(), v.double())
    fired, _ = run(x.double(), theta.double(), v.double())
    return fired & (residual > 0)


def plain_parallel(x, theta, v, rho):
    mean = x[:rho].double().mean(0)
    within = [
        (rho * mean + v.double()) / t >= theta.double() for t in range(1, rho + 1)
    ]  # the paper's, divided by t
    return torch.stack([within[t % rho] for t in range(len(x))])
