"""Thresholds for networks without: statistics streamed over batches of activations, and the rules
that read them.

Where the activations are is graph.py's business, neurons are convert.py's. Nothing here stores an
activation or changes a model.
"""

from __future__ import annotations

import json
import numbers
import os
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from tqdm import tqdm

from .. import functional as F
from .._batches import check_batches, device_of, model_inputs, number_of_inputs
from .._files import write_tensors
from ..conversion.rules.rectifiers import clip_of
from ..conversion.tracing import trace
from ..qcfs import QCFS

METHODS = ("max", "percentile", "mse", "balance")
FORMAT = "cos_ext thresholds, 1"
_LOG2_BINS = 12
BINS = 1 << _LOG2_BINS  # of a histogram, at least half of them below the largest activation
GRID = 1024  # thresholds that "mse" tries
_LOWEST = -100  # exponent of a range where nothing fired yet; 2^(12 + 100) is still a float32
_CHUNK = 1 << 22  # elements binned at a time, so that a large batch needs no large temporaries


@torch.no_grad()
def calibrate_thresholds(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    method: str = "max",
    percentile: float = 99.9,
    per_channel: bool = False,
    timesteps: int = 8,
    device: str | torch.device | None = None,
    progress: bool = True,
) -> dict[str, Tensor]:
    r"""A threshold for every activation call site of a trained ANN, from its activations on data
    without labels.

    One pass over `batches`, in eval mode, on a copy of the model. Let a be an activation: relu(x)
    of its input x, or min(relu(x), b) for nn.ReLU6 and nn.Hardtanh(0, b), so that no threshold
    exceeds b. The methods:

    "max"
        θ = max a, exactly (Diehl et al., "Fast-classifying, high-accuracy spiking deep networks
        through weight and threshold balancing", IJCNN 2015).
    "percentile"
        θ = the `percentile`-th percentile of all a, zeros included, linear between ranks (Rueckauer
        et al., "Conversion of continuous-valued deep networks to efficient event-driven networks
        for image classification", Frontiers in Neuroscience 2017). Off by at most one bin w of a
        histogram of 4096 bins, w <= max a / 2048.
    "mse"
        θ = argmin E[(a - q(a; θ))²], q(a; θ) = θ clip(floor(a T/θ + 1/2)/T, 0, 1), T = `timesteps`:
        what exactly calibrated neurons reach in T steps (:class:`cos_ext.QCFS`). From the same
        histogram, over the grid θ = max a · g/1024, g = 1..1024. The grid search is that of Li et
        al., "A free lunch from ANN: towards efficient, accurate spiking neural networks
        calibration", ICML 2021; their code rounds down, tries 95 values for each batch and averages
        over batches. abs(a - q(a; θ)) is the distance to the nearest level and changes no faster
        than a or θ. So the root mean square error at θ exceeds the least one over (0, max a] by at
        most w + max a / 1024; in practice by far less.
    "balance"
        Local threshold balancing (Bu, Li, Yu, "Inference-scale complexity in ANN-SNN conversion for
        high-performance and low-power applications", CVPR 2025; arXiv 2409.03368v2, equations 13 to
        15 and 17, algorithm 1). Activations are replaced by C(x; θ) = min(max(x, 0), θ), θ starts
        at 0, and each batch is a step down the gradient of ||C(x; θ) - a||²:

        .. math:: \theta \leftarrow \theta + \eta \sum_{i} 2 (a_i - \theta) H(a_i - \theta)

        The paper leaves η open. Here η = 1/N for the N elements in the sum, and a batch goes on
        clipped at the θ that it has just updated, as in the authors' code
        (putshua/Inference-scale-ANN-SNN; algorithm 1 clips it at the θ before). Unlike there, no
        step passes the largest a seen, beyond which the gradient could not bring θ back. θ rises
        with every batch: the paper takes 1000 to 5000 of 100 images; fewer give smaller thresholds,
        which favour few time-steps. To pass the data n times, give
        ``itertools.chain.from_iterable(itertools.repeat(batches, n))``. `timesteps` plays no part.

    How the data are split into batches, and their order, matters to "balance"; to the others only
    as far as the model's own rounding depends on it.

    Args:
        model: any module. Every call of an activation is a site of its own; where the model cannot
            be traced, every activation module is one, and its calls are pooled.
        batches: an iterable, read once, of tensors [B, ...] or of tuples whose first n elements are
            the model's inputs and whose others (labels) are ignored; n counts the arguments of
            forward that have no default.
        method: "max", "percentile", "mse" or "balance".
        percentile: 0 < percentile <= 100, for "percentile".
        per_channel: a threshold for every index of dimension 1 of the activation, also after a
            Linear on [B, N, C], where that is N. A channel that never exceeds 0 gets what its whole
            layer would get (for "balance", the largest of its layer), and one whose percentile is 0
            gets its maximum.
        timesteps: T >= 1, for "mse".
        device: where to compute; None: where the model is. Thresholds are returned where the model
            is in any case.
        progress: a progress bar on stderr.

    Returns:
        Thresholds by call site in order of execution, as ``convert(thresholds=...)`` takes them:
            float32, or float64
        for float64 activations, of shape []; per channel [C] for activations [B, C], [C, 1] for [B,
            C, L], [C, 1, 1]
        for [B, C, H, W]. Without QCFS sites, which have their own, and without modules that forward
            does not call.

    Memory: some numbers for each site, or channel of it; for "percentile" and "mse" a histogram of
    32 KiB for each.

    Raises:
        TypeError: model is no nn.Module; batches, an element of it or another argument has a wrong
            type.
        ValueError: an argument is out of range; batches has no sample, or an element with too few
            inputs; the model has no activation; naming the site: an activation is NaN or infinite
            or never exceeds 0, its percentile is 0, or, per channel, calls of one module differ in
            their channels.
        ConversionError: the model cannot be copied.
    """
    _check_arguments(batches, method, percentile, per_channel, timesteps)
    traced = trace(model)
    home = device_of(model)
    if not traced.sites:
        why = (
            f", as far as can be seen without tracing ({traced.why_not})" if traced.why_not else ""
        )
        raise ValueError(f"model must have an activation, {type(model).__name__} has none{why}")
    where = torch.device(device) if device is not None else home
    module, wanted = traced.module.to(where), number_of_inputs(traced.graph)

    statistics: dict[str, _Statistics] = {}
    for site, activation in traced.sites.items():
        if not isinstance(activation, QCFS):
            _watch(site, activation, method, per_channel, statistics)
    samples = 0
    for batch in tqdm(batches, desc="calibrate", disable=not progress, leave=False):
        # Copies, since an activation that works in place may be the first to read them.
        inputs = [
            tensor.to(where, non_blocking=True, copy=True) for tensor in model_inputs(batch, wanted)
        ]
        samples += inputs[0].shape[0]
        if inputs[0].shape[0]:
            module(*inputs)
    if samples == 0:
        raise ValueError("batches must yield at least one sample, it yielded none")

    for site, seen in statistics.items():  # the first in order of execution is the cause
        if not seen.finite():
            raise ValueError(
                f"the input of activation {site!r} has NaN or infinite values on these batches"
            )
    silent = [site for site, seen in statistics.items() if not seen.fires()]
    if silent:
        raise ValueError(
            f"activations {silent} never exceed 0 on these batches, so they have no threshold"
        )
    found = {
        site: seen.thresholds(method, percentile, timesteps) for site, seen in statistics.items()
    }
    hidden = [site for site, threshold in found.items() if not (threshold > 0).all()]
    if hidden:
        raise ValueError(
            f"percentile must be higher for activations {hidden}, whose percentile {percentile} is "
            "0"
        )
    return {site: threshold.to(home) for site, threshold in found.items()}


def save_thresholds(thresholds: Mapping[str, Tensor], path: str | os.PathLike[str]) -> None:
    """Write thresholds by call site as safetensors; their order is in its metadata. The file is
    complete or not there.

    Raises:
        TypeError: thresholds is not a mapping of strings to floating-point tensors.
        ValueError: a threshold is not positive and finite.
    """
    if not isinstance(thresholds, Mapping):
        raise TypeError(
            "thresholds must be a mapping of call sites to tensors, got "
            f"{type(thresholds).__name__}"
        )
    _check_thresholds(thresholds)
    write_tensors(path, thresholds, {"format": FORMAT, "sites": list(thresholds)})


def load_thresholds(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """What :func:`save_thresholds` wrote, in its order, on the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or holds something else.
    """
    try:
        with safe_open(os.fspath(path), framework="pt") as file:
            header = json.loads((file.metadata() or {}).get("cos_ext", "{}"))
            sites = file.keys()
            thresholds = {site: file.get_tensor(site) for site in sites}
    except FileNotFoundError:
        raise
    except Exception as error:  # damaged bytes raise nearly anything
        raise ValueError(f"{path} is damaged or is no safetensors file: {error}") from error
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise ValueError(f"{path} must be a file of save_thresholds ({FORMAT!r}), it is none")
    sites = header.get("sites")
    if not isinstance(sites, list) or sorted(map(str, sites)) != sorted(thresholds):
        raise ValueError(
            f"{path} is damaged: its sites {sorted(thresholds)} are not those of its header, "
            f"{sites}"
        )
    try:
        _check_thresholds(thresholds)
    except TypeError as error:
        raise ValueError(f"{path}: {error}") from error
    return {str(site): thresholds[str(site)] for site in sites}


def _check_thresholds(thresholds: Mapping[str, Tensor]) -> None:
    for site, threshold in thresholds.items():
        if not isinstance(site, str):
            raise TypeError(
                f"thresholds must have strings (call sites) for keys, got {type(site).__name__}"
            )
        if not isinstance(threshold, Tensor):
            raise TypeError(
                f"thresholds[{site!r}] must be a tensor, got {type(threshold).__name__}"
            )
        F.check_values(f"thresholds[{site!r}]", threshold)


def _check_arguments(
    batches: Iterable[Any], method: str, percentile: float, per_channel: bool, timesteps: int
) -> None:
    check_batches(batches)
    if method not in METHODS:
        raise ValueError(f"method must be one of {METHODS}, got {method!r}")
    if isinstance(percentile, bool) or not isinstance(percentile, numbers.Real):
        raise TypeError(f"percentile must be a number, got {type(percentile).__name__}")
    if not 0 < percentile <= 100:
        raise ValueError(f"percentile must lie in (0, 100], got {percentile}")
    if not isinstance(per_channel, bool):
        raise TypeError(f"per_channel must be a bool, got {type(per_channel).__name__}")
    if isinstance(timesteps, bool) or not isinstance(timesteps, int):
        raise TypeError(f"timesteps must be an int, got {type(timesteps).__name__}")
    if timesteps < 1:
        raise ValueError(f"timesteps must be >= 1, got {timesteps}")


def _watch(
    site: str,
    activation: nn.Module,
    method: str,
    per_channel: bool,
    statistics: dict[str, _Statistics],
) -> None:
    """Have a site's statistics take in the inputs of its activation; made at the first call, they
    are in order.
    """
    kind = {"max": _Statistics, "balance": _Balance}.get(method, _Histogram)

    def hook(module: nn.Module, args: tuple, kwargs: dict[str, Any]):
        x = args[0] if args else next(iter(kwargs.values()))
        if not x.is_floating_point():
            raise TypeError(
                f"the input of activation {site!r} must be floating-point, got {x.dtype}"
            )
        if site not in statistics:
            statistics[site] = kind(site, x, clip_of(module), per_channel)
        instead = statistics[site].see(x, inplace=getattr(module, "inplace", False))
        return None if instead is None else ((instead,), {})

    # Before the activation: one that works in place would leave nothing of its input.
    activation.register_forward_pre_hook(hook, with_kwargs=True)


def _power_of_two(exponent: Tensor) -> Tensor:
    """2^exponent in float64, exactly (pow() of a GPU need not be)."""
    return ((exponent.long() + 1023) << 52).view(torch.float64)


class _Statistics:
    """The largest activation of a site, [C] or [1] for the whole layer; on the data's device, never
    waited for.
    """

    def __init__(self, site: str, x: Tensor, clip: float | None, per_channel: bool) -> None:
        self.site, self.clip, self.per_channel = site, clip, per_channel
        self.shape = self._channels(
            x
        )  # that broadcasts to the neurons: [C, 1, ...], or [] for the whole layer
        self.dtype = F.state_dtype(x.dtype)
        size = self.shape[0] if self.shape else 1
        # Of the activation's input; both keep a NaN, and an infinity of their sign.
        self.low = torch.full((), torch.inf, dtype=torch.float64, device=x.device)
        self.high = torch.full((size,), -torch.inf, dtype=torch.float64, device=x.device)

    def _channels(self, x: Tensor) -> tuple[int, ...]:
        return (x.shape[1], *[1] * (x.dim() - 2)) if self.per_channel and x.dim() > 1 else ()

    def see(self, x: Tensor, inplace: bool) -> Tensor | None:
        """Take in the input [B, ...] of a call; return what the activation is to be given instead,
        or None.
        """
        if self._channels(x) != self.shape:
            raise ValueError(
                f"per_channel must be False where calls of an activation differ in their channels: "
                f"{self.site!r} is called with {self._channels(x)} after {self.shape}"
            )
        if x.numel() == 0:
            return None
        dims = [dim for dim in range(x.dim()) if dim != 1] if self.shape else list(range(x.dim()))
        self.low = torch.minimum(self.low, x.amin().double())
        self.high = torch.maximum(self.high, x.amax(dims).double().reshape(-1))
        return self._see(x, dims, inplace)

    def _see(self, x: Tensor, dims: list[int], inplace: bool) -> Tensor | None:
        return None

    def largest(self) -> Tensor:
        """The largest activation so far, [C] or [1] in float64; 0 where there is none above."""
        return self.high.clamp(0, self.clip)

    def finite(self) -> bool:
        return bool(
            (self.low > -torch.inf) & (self.high < torch.inf).all()
        )  # false for NaN, true before any value

    def fires(self) -> bool:
        return bool((self.high > 0).any())

    def thresholds(self, method: str, percentile: float, timesteps: int) -> Tensor:
        """As calibrate_thresholds returns them; 0 where the percentile of a whole layer is."""
        own, layer = self._rule(method, percentile, timesteps)
        if self.shape:
            own = torch.where(own > 0, own, self.largest())
            own = torch.where(own > 0, own, torch.where(layer > 0, layer, self.largest().amax()))
        return own.reshape(self.shape).to(self.dtype)

    def _rule(self, method: str, percentile: float, timesteps: int) -> tuple[Tensor, Tensor]:
        """The thresholds of the channels, [C] or [1], 0 where there is none; and that of the whole
        layer.
        """
        return self.largest(), self.largest().amax()


class _Balance(_Statistics):
    """Local threshold balancing: one gradient step per call."""

    def __init__(self, site: str, x: Tensor, clip: float | None, per_channel: bool) -> None:
        super().__init__(site, x, clip, per_channel)
        self.theta = torch.zeros_like(self.high)

    def _see(self, x: Tensor, dims: list[int], inplace: bool) -> Tensor:
        wide = x.to(self.dtype).clamp(max=self.clip) if self.clip is not None else x.to(self.dtype)
        excess = (wide - self.theta.reshape(self.shape).to(self.dtype)).clamp_(min=0)
        mean = excess.sum(dims, dtype=torch.float64).reshape(-1) * (self.theta.numel() / x.numel())
        self.theta = torch.minimum(self.theta + 2 * mean, self.largest())
        ceiling = self.theta.reshape(self.shape).to(x.dtype)
        # In place where the activation itself is: a forward may go on with its input.
        return x.clamp_(max=ceiling) if inplace else x.clamp(max=ceiling)

    def _rule(self, method: str, percentile: float, timesteps: int) -> tuple[Tensor, Tensor]:
        return self.theta, self.theta.amax()


class _Histogram(_Statistics):
    """Counts of activations in BINS equal bins of (0, 2^e], for each channel; 2^e is the least
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
        exponent = torch.maximum(exponent, self.exponent).clamp(
            max=1024
        )  # what frexp says of infinity varies
        shift = exponent - self.exponent
        if shift.is_cuda or shift.any():  # asking a GPU would wait for it
            self.counts = _merged(self.counts, shift)
        self.exponent = exponent
        scale = _power_of_two(_LOG2_BINS - exponent).reshape(self.shape).to(self.dtype)
        offset = (torch.arange(self.exponent.numel(), device=x.device) * (BINS + 1)).reshape(
            self.shape
        )
        one = torch.ones((), dtype=torch.int64, device=x.device)
        per_sample = max(x.numel() // x.shape[0], 1) if x.dim() else 1
        for part in x.split(max(_CHUNK // per_sample, 1)) if x.dim() else (x,):
            columns = part.to(self.dtype).clamp(0, self.clip).mul_(scale).ceil_().long()
            columns = (
                columns.clamp_(0, BINS).add_(offset).flatten()
            )  # NaN, which is reported at the end, has no column
            self.counts.view(-1).index_add_(0, columns, one.expand(columns.numel()))

    def _rule(self, method: str, percentile: float, timesteps: int) -> tuple[Tensor, Tensor]:
        highest = self.exponent.amax()
        pooled = _merged(self.counts, highest - self.exponent).sum(0, keepdim=True)
        found = []
        for counts, exponent, largest in (
            (self.counts, self.exponent, self.largest()),
            (pooled, highest.reshape(1), self.largest().amax().reshape(1)),
        ):
            width = _power_of_two(exponent - _LOG2_BINS)
            if method == "percentile":
                found.append(_percentile(counts, width, largest, float(percentile)))
            else:
                found.append(_least_squares(counts, width, largest, timesteps))
        return found[0], found[1][0]


def _merged(counts: Tensor, shift: Tensor) -> Tensor:
    """Histograms [C, BINS + 1] over ranges 2^shift times as wide, shift [C] >= 0."""
    shift = shift.clamp(max=_LOG2_BINS + 1)[:, None]  # beyond that, all is in the first bin
    column = torch.arange(BINS + 1, device=counts.device)
    return torch.zeros_like(counts).scatter_add_(1, (column + (1 << shift) - 1) >> shift, counts)


def _percentile(counts: Tensor, width: Tensor, largest: Tensor, percentile: float) -> Tensor:
    """Percentiles [C] of histograms [C, BINS + 1] with bins `width` [C]: NumPy's "linear" of the
    data, to one bin.
    """
    cumulative = counts.cumsum(1)
    last = cumulative[:, -1] - 1
    rank = last.double() * (percentile / 100)

    def value(rank: Tensor) -> Tensor:
        column = torch.searchsorted(cumulative, rank[:, None], right=True)
        count = counts.gather(1, column)[:, 0]
        before = cumulative.gather(1, column)[:, 0] - count
        inside = (
            (rank - before).double() + 0.5
        ) / count  # as if the values of a bin were evenly spread
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
    grid = (
        torch.arange(1, GRID + 1, device=counts.device, dtype=torch.float64)
        / GRID
        * largest[:, None]
    )
    step = grid / levels
    width = width[:, None]
    error = torch.zeros_like(grid)
    for level in range(1, levels + 1):
        boundary = (level - 0.5) * step / width
        above = (
            (boundary - 0.5).ceil_().clamp_(0, BINS).long()
        )  # the first bin whose centre is not below it
        error += step * (
            step * (2 * level - 1) * number.gather(1, above) - width * total.gather(1, above)
        )
    return grid.gather(1, error.argmin(1, keepdim=True))[:, 0]
