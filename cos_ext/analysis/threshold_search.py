"""Thresholds that are worth trying, by recorded scores [T, n] and which answers are right, bool
[T, n]. Recording them, and what is done with the thresholds, is in confidence_fit.py.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


def stops(scores: Tensor, threshold: float | tuple[float, ...]) -> Tensor:
    """Where each sample stops, int64 [n], counted from 0."""
    steps = len(scores)
    limits = threshold if isinstance(threshold, tuple) else (threshold,) * steps
    sure = scores > scores.new_tensor((*limits[: steps - 1], -math.inf))[:, None]
    sure[-1] = True  # a score that is NaN, too
    return sure.to(torch.int8).argmax(0)


def constant(scores: Tensor, _right: Tensor, points: int) -> list[float]:
    """Single ones, at the quantiles of the scores before the last step."""
    early = scores[:-1].flatten()
    known = early[early.isnan().logical_not()].double().sort().values
    if not len(known):
        return [math.inf]
    places = torch.linspace(0, len(known) - 1, points).round().long()
    return [-math.inf, *known[places].unique().tolist()]


def adafire(scores: Tensor, right: Tensor, points: int) -> list[tuple[float, ...]]:
    """β + (1 - β) exp(min E - E(t)), E(t) the mean score of what is right at t, for many β."""
    if len(scores) == 1:
        return [(math.inf,)]
    counted = right & scores.isnan().logical_not()
    sums = torch.where(counted, scores.double(), 0).sum(1)
    means = sums / counted.sum(1).clamp(min=1)
    factors = (means.min() - means).exp()[:-1]  # 1 where the mean is least
    # β so close to 1 as scores come: from 0 to 1 - 1e-6.
    betas = 1 - torch.logspace(0, -6, points, dtype=torch.float64)
    return [tuple((beta + (1 - beta) * factors).tolist()) for beta in betas]


def by_step(scores: Tensor, right: Tensor, points: int) -> list[tuple[float, ...]]:
    """For many λ those that maximise accuracy - λ · steps, one by one from the last to the first,
    three times over.
    """
    steps = len(scores)
    if steps == 1:
        return [(math.inf,)]
    ordered = [row.nan_to_num(-math.inf).sort(descending=True) for row in scores[:-1]]
    found = []
    for price in torch.logspace(-5, 0, points, dtype=torch.float64).tolist():
        worth = right.double() - price * torch.arange(steps, dtype=torch.float64)[:, None]
        limits = [math.inf] * (steps - 1)
        for _ in range(3):
            for t in reversed(range(steps - 1)):
                limits[t] = _best(scores, ordered[t], worth, limits, t)
        found.append(tuple(limits))
    return found


def _best(scores: Tensor, ordered: Any, worth: Tensor, limits: list[float], t: int) -> float:
    """The threshold at t that is worth most, the others as they are."""
    others = tuple(math.inf if step == t else limit for step, limit in enumerate(limits))
    at = stops(scores, others)
    # Who comes to t gains by stopping there; who has stopped before does not.
    gains = torch.where(at > t, worth[t] - worth.gather(0, at[None])[0], 0)
    values, order = ordered
    sums = gains[order].cumsum(0)
    # Equal scores stop together: a threshold lies behind the last of them.
    ends = torch.cat((values[1:] < values[:-1], torch.ones(1, dtype=torch.bool)))
    ends &= values > -math.inf
    sums = torch.where(ends, sums, -math.inf)
    best = int(sums.argmax())
    if not sums[best] > 0:
        return math.inf
    below = values[best + 1 : best + 2]
    return float(below) if len(below) else -math.inf
