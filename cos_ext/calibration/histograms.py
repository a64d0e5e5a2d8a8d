"""Histograms of a site's activations, streamed, and the thresholds that are read from them: a
percentile, the least squared error of rounding to levels, and the least absolute one of one step.

No activation is kept, no model is run, and nothing waits for the device before the end.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .activation_statistics import Rule, Statistics

_LOG2_BINS = 12
BINS = 1 << _LOG2_BINS  # of a histogram, at least half of them below the largest activation
GRID = 1024  # thresholds that "mse" tries
_LOWEST = -100  # exponent of a range where nothing fired yet; 2^(12 + 100) is still a float32
_CHUNK = 1 << 22  # elements binned at a time, so that a large batch needs no large temporaries


class Histogram(Statistics):
    """Counts of activations in ``BINS`` equal bins of (0, 2^e], for each channel; 2^e is the least
    power of two above them.

    Column i > 0 counts those in (i-1, i] w, w = 2^e/BINS; column 0 the zeros. When larger ones
    come, e grows and bins are merged in pairs. Since ceil(ceil(a/w)/2) = ceil(a/2w), the counts are
    those of binning all data at the end.
    """

    def __init__(self, site: str, x: Tensor, clip: float | None, per_channel: bool) -> None:
        super().__init__(site, x, clip, per_channel)
        size = self.high.numel()
        self.counts = torch.zeros(size, BINS + 1, dtype=torch.int64, device=x.device)
        self.exponent = torch.full((size,), _LOWEST, dtype=torch.int64, device=x.device)

    def _see(self, x: Tensor, dims: list[int], inplace: bool) -> None:
        largest = self.largest()
        exponent = torch.where(largest > 0, torch.frexp(largest).exponent.long(), _LOWEST)
        # What frexp says of infinity varies.
        exponent = torch.maximum(exponent, self.exponent).clamp(max=1024)
        shift = exponent - self.exponent
        if shift.is_cuda or shift.any():  # asking a GPU would wait for it
            self.counts = merged(self.counts, shift)
        self.exponent = exponent
        scale = _power_of_two(_LOG2_BINS - exponent).reshape(self.shape).to(self.dtype)
        first = torch.arange(self.exponent.numel(), device=x.device) * (BINS + 1)
        first = first.reshape(self.shape)
        one = torch.ones((), dtype=torch.int64, device=x.device)
        per_sample = max(x.numel() // x.shape[0], 1) if x.dim() else 1
        for part in x.split(max(_CHUNK // per_sample, 1)) if x.dim() else (x,):
            columns = part.to(self.dtype).clamp(0, self.clip).mul_(scale).ceil_().long()
            # NaN, which is reported at the end, has no column.
            columns = columns.clamp_(0, BINS).add_(first).flatten()
            self.counts.view(-1).index_add_(0, columns, one.expand(columns.numel()))

    def _rule(self, rule: Rule) -> tuple[Tensor, Tensor]:
        highest = self.exponent.amax()
        pooled = merged(self.counts, highest - self.exponent).sum(0, keepdim=True)
        found = []
        for counts, exponent, largest in (
            (self.counts, self.exponent, self.largest()),
            (pooled, highest.reshape(1), self.largest().amax().reshape(1)),
        ):
            width = _power_of_two(exponent - _LOG2_BINS)
            if rule.method == "percentile":
                found.append(_percentile(counts, width, largest, float(rule.percentile)))
            elif rule.method == "ddti":
                found.append(_one_step(counts, width, largest))
            else:
                found.append(_least_squares(counts, width, largest, rule.levels))
        return found[0], found[1][0]


def merged(counts: Tensor, shift: Tensor) -> Tensor:
    """Histograms [C, BINS + 1] over ranges 2^shift times as wide, shift [C] >= 0."""
    shift = shift.clamp(max=_LOG2_BINS + 1)[:, None]  # beyond that, all is in the first bin
    column = torch.arange(BINS + 1, device=counts.device)
    return torch.zeros_like(counts).scatter_add_(1, (column + (1 << shift) - 1) >> shift, counts)


def _power_of_two(exponent: Tensor) -> Tensor:
    """2^exponent in float64, exactly (pow() of a GPU need not be)."""
    return ((exponent.long() + 1023) << 52).view(torch.float64)


def _percentile(counts: Tensor, width: Tensor, largest: Tensor, percentile: float) -> Tensor:
    """Percentiles [C] of histograms [C, BINS + 1] with bins ``width`` [C]: NumPy's "linear" of the
    data, to one bin.
    """
    cumulative = counts.cumsum(1)
    last = cumulative[:, -1] - 1
    rank = last.double() * (percentile / 100)

    def value(rank: Tensor) -> Tensor:
        column = torch.searchsorted(cumulative, rank[:, None], right=True)
        count = counts.gather(1, column)[:, 0]
        before = cumulative.gather(1, column)[:, 0] - count
        # As if the values of a bin were evenly spread.
        inside = ((rank - before).double() + 0.5) / count
        guess = torch.minimum((column[:, 0] - 1 + inside) * width, largest)
        return torch.where(column[:, 0] == 0, 0.0, torch.where(rank == last, largest, guess))

    # Between two ranks may lie a gap of many bins, so each is looked up.
    below = rank.floor().long().clamp(min=0).minimum(last)
    above = (below + 1).minimum(last)
    return torch.lerp(value(below), value(above), rank - below)


def _least_squares(counts: Tensor, width: Tensor, largest: Tensor, levels: int) -> Tensor:
    """The θ [C] of a grid in (0, largest] at which rounding to levels k θ/levels errs least, from
    counts [C, BINS + 1].

    Let d = θ/levels, and N(b), S(b) the number and sum of the values from b on. At b = (k - 1/2) d
    level k takes over from k - 1, which adds (k² - (k-1)²) d² N(b) - 2 d S(b) to the squared error;
    the sum of squares is constant.
    """
    # In integers, which are exact and sum alike on every device: the values of bin i as its centre,
    # 2i + 1 half widths.
    halves = 2 * torch.arange(BINS, device=counts.device) + 1
    number, total = (
        nn.functional.pad(column.flip(1).cumsum(1).flip(1), (0, 1))
        for column in (counts[:, 1:], counts[:, 1:] * halves)
    )
    candidates = torch.arange(1, GRID + 1, device=counts.device, dtype=torch.float64)
    grid = candidates / GRID * largest[:, None]
    step = grid / levels
    width = width[:, None]
    error = torch.zeros_like(grid)
    for level in range(1, levels + 1):
        boundary = (level - 0.5) * step / width
        # The first bin whose centre is not below it.
        above = (boundary - 0.5).ceil_().clamp_(0, BINS).long()
        error += step * (
            step * (2 * level - 1) * number.gather(1, above) - width * total.gather(1, above)
        )
    return grid.gather(1, error.argmin(1, keepdim=True))[:, 0]


def _one_step(counts: Tensor, width: Tensor, largest: Tensor) -> Tensor:
    """The θ_out [C] of "ddti" from counts [C, BINS + 1], by descent from the thirds of the data.

    The values of bin k (from 0, zeros apart) are taken as its centre, 2k + 1 half widths. Given
    θ_out at the centre of bin k, those fire that are nearer to it than to 0: the bins from
    (k + 1)//2 on. Given these, the best θ_out is their median, the lower one.
    """
    cumulative = counts[:, 1:].cumsum(1)
    total = cumulative[:, -1:]
    fires = torch.searchsorted(cumulative, total // 3, right=True)
    while True:  # the error falls, and there are BINS places
        below = torch.where(fires > 0, cumulative.gather(1, (fires - 1).clamp(min=0)), 0)
        rank = below + (total - below - 1).clamp(min=0) // 2
        middle = torch.searchsorted(cumulative, rank, right=True).clamp(max=BINS - 1)
        again = (middle + 1) // 2
        if torch.equal(again, fires):
            break
        fires = again
    found = torch.minimum((2 * middle[:, 0] + 1) * width / 2, largest)
    return torch.where(total[:, 0] > 0, found, 0.0)
