"""Thresholds for networks without: one pass over data, in which statistics of all activations are
streamed.

Which activations a model has is tracing.py's business; what is kept of one, and the rules that read
it, are in activation_statistics.py and histograms.py. Nothing here stores an activation or changes
a model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from .._batches import Inputs, ahead, check_batches, device_of
from .._loops import inputs_on, moved
from .._numbers import real, whole
from ..conversion.copying import refuse_wrappers
from ..conversion.rules.rectifiers import Signed, clip_of
from ..conversion.signed import CHOICES
from ..conversion.tracing import trace
from ..general import Neuron
from ..qcfs import QCFS
from .activation_statistics import Balance, Rule, Statistics
from .averaged_grid import AveragedGrid
from .gaussian import Moments
from .histograms import Histogram
from .threshold_files import load_thresholds, save_thresholds

__all__ = ["METHODS", "calibrate_thresholds", "load_thresholds", "save_thresholds"]

METHODS = ("max", "percentile", "mse", "balance", "ddti", "gaussian", "adafire")


@torch.no_grad()
def calibrate_thresholds(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    method: str = "max",
    percentile: float = 99.9,
    per_channel: bool = False,
    timesteps: int = 8,
    neuron: Neuron | None = None,
    iterations: int | None = None,
    qcfs: bool = False,
    spikes: str = "activations",
    device: str | torch.device | None = None,
    progress: bool = True,
) -> dict[str, Tensor]:
    r"""A threshold for every activation call site of a trained ANN, from its activations on data
    without labels.

    One pass over ``batches``, in eval mode, on a copy of the model. Let a be an activation: relu(x)
    of its input x, or min(relu(x), b) for nn.ReLU6 and nn.Hardtanh(0, b), so that no threshold
    exceeds b. The methods:

    "max"
        θ = max a, exactly (Diehl et al., "Fast-classifying, high-accuracy spiking deep networks
        through weight and threshold balancing", IJCNN 2015).
    "percentile"
        θ = the ``percentile``-th percentile of all a, zeros included, linear between ranks
        (Rueckauer et al., "Conversion of continuous-valued deep networks to efficient event-driven
        networks for image classification", Frontiers in Neuroscience 2017). Off by at most one bin
        w of a histogram of 4096 bins, w <= max a / 2048.
    "mse"
        θ = argmin E[(a - q(a; θ))²], q(a; θ) = θ clip(floor(a T/θ + 1/2)/T, 0, 1),
        T = ``timesteps``: what exactly calibrated neurons reach in T steps
        (:class:`cos_ext.QCFS`). From the same histogram, over the grid θ = max a · g/1024,
        g = 1, ..., 1024. abs(a - q(a; θ)) is the distance to the nearest level and changes no
        faster than a or θ. So the root mean square error at θ exceeds the least one over
        (0, max a] by at most w + max a / 1024; in practice by far less. The grid search is that of
        Li et al., "A free lunch from ANN: towards efficient, accurate spiking neural networks
        calibration", ICML 2021. Their code rounds down, tries 95 values for each batch and averages
        over batches.
    "balance"
        Local threshold balancing (Bu, Li, Yu, "Inference-scale complexity in ANN-SNN conversion for
        high-performance and low-power applications", CVPR 2025; arXiv 2409.03368v2, equations 13 to
        15 and 17, algorithm 1). Activations are replaced by C(x; θ) = min(max(x, 0), θ), θ starts
        at 0, and each batch is a step down the gradient of :math:`\|C(x; \theta) - a\|^2`:

        .. math:: \theta \leftarrow \theta + \eta \sum_{i} 2 (a_i - \theta) H(a_i - \theta)

        The paper leaves η open. Here η = 1/N for the N elements in the sum, and a batch goes on
        clipped at the θ that it has just updated, as in the authors' code
        (putshua/Inference-scale-ANN-SNN; algorithm 1 clips it at the θ before). Unlike there, no
        step passes the largest a seen, beyond which the gradient could not bring θ back.

        θ rises with every batch. The paper takes 1000 to 5000 batches of 100 images; fewer give
        smaller thresholds, which favour few time-steps. To pass the data n times, give
        ``itertools.chain.from_iterable(itertools.repeat(batches, n))``. ``timesteps`` plays no
        part.
    "ddti"
        Data-driven threshold and potential (Bojkovic et al., "Data driven threshold and potential
        initialization for spiking neural networks", AISTATS 2024). Neurons that fire at in and send
        out make the L1 error of one step least over all a > 0:

        .. math:: \sum_{a < in} a + \sum_{in \le a < out} (out - a) + \sum_{a \ge out} (a - out)

        θ = out, and v(0) = out - in. Given out, the best in is out/2: those fire that are nearer to
        out than to 0. So v(0) = θ/2, which :func:`cos_ext.convert` gives anyway. Given in, the best
        out is the median of those that fire. The two are improved in turn, from the thirds of the
        data, as in the authors' code (srinuvaasu/data_driven_init), and may end in a minimum that
        is not the least. Off by at most one bin of the histogram of "percentile". ``timesteps``
        plays no part. The authors fine-tune afterwards, which this does not.
    "gaussian"
        Threshold iteration (Huang et al., "Differential coding for training-free ANN-to-SNN
        conversion", ICML 2025; H-MT, AAAI 2026, equation 29). θ as for "mse", but for x
        that is normally distributed with the mean and variance of the data: nothing is searched in
        these. The least error is where k(θ) = 1, k(θ) θ being what one step of the iteration gives.
        It is found on a grid and by bisection. The published code takes 100 steps from θ = 1, which
        stop short where there are many levels: at mean 0, variance 1 and N = 128 they end at 3.21,
        and the least error is at 3.92. ``iterations=100`` does as published. They are by channel:
        ``per_channel=True``.
    "adafire"
        AdaFire (Wang et al., "Adaptive calibration: a unified conversion framework of spiking
        neural networks", AAAI 2025; arXiv 2412.16219). For each batch θ is the best of 95 values,
        max a · (1 - i/100), for E[(a - q(a; θ))²], q(a; θ) = (θ/T) floor(clip(a/θ, 0, φ) T), where
        φ is the most levels of ``neuron``. A moving average keeps 0.9 at every batch; the authors
        take about 6 (bic-L/burst-ann2snn). Per channel, and for :func:`cos_ext.fit_adafire`, whose
        neurons round down. Their light bias correction afterwards is not part of this.

    How the data are split into batches, and their order, matters to "balance" and "adafire". To the
    others it matters only as far as rounding depends on it, that of the model and, for "gaussian",
    of sums in float64.

    Memory: some numbers for each site, or channel of it; for "percentile", "mse" and "ddti" a
    histogram of 32 KiB for each.

    Args:
        model: any module. Every call of an activation is a site of its own; where the model cannot
            be traced, every activation module is one, and its calls are pooled.
        batches: an iterable, read once, of tensors [B, ...] or of tuples whose first n elements are
            the model's inputs and whose others (labels) are ignored; n counts the arguments of
            forward that have no default. Or of mappings, by the names of forward's arguments: the
            model is called with those that the first one has.
        method: "max", "percentile", "mse" or "balance".
        percentile: 0 < percentile <= 100, for "percentile".
        per_channel: a threshold for every index of dimension 1 of the activation, also after a
            Linear on [B, N, C], where that is N. A channel that never exceeds 0 gets what its whole
            layer would get (for "balance", the largest of its layer), and one whose percentile is 0
            gets its maximum.
        timesteps: T >= 1, for "mse", "gaussian" and "adafire".
        neuron: what :func:`cos_ext.convert` is to be given; None: one level a step. With m levels a
            step (``levels=(0, m)``) T steps have N = m T levels (at most n_max, where the count is
            bounded), which "mse" and "gaussian" count with, and θ, that of one level, is a part T/N
            of the range. A ladder of n rungs has N = T · 2^n, and its θ is the range. Not for
            "ddti" but with one level; not a ladder for "adafire".
        iterations: of "gaussian": None solves k(θ) = 1; 100 is as published.
        qcfs: QCFS activations get thresholds, too, in place of the ones that they learned, which
            are where a saturates.
        spikes: where neurons are to stand, as for :func:`cos_ext.convert`. Where they are signed, a
            is the absolute value of what is spiked there.
        device: where to compute; None: where the model is. Thresholds are returned where the model
            is in any case.
        progress: a progress bar on stderr.

    Returns:
        Thresholds by call site in order of execution, as ``convert(thresholds=...)`` takes them:
        float32, or float64 for float64 activations, of shape []. Per channel they have the shape
        [C] for activations [B, C], [C, 1] for [B, C, L] and [C, 1, 1] for [B, C, H, W]. QCFS sites
        are left out, which have their own, and so are modules that forward does not call.

    Raises:
        TypeError: model is no nn.Module; batches, an element of it or another argument has a wrong
            type.
        ValueError: an argument is out of range; batches has no sample, or an element with too few
            inputs; the model has no activation; naming the site: an activation is NaN or infinite
            or never exceeds 0, its percentile is 0, or, per channel, calls of one module differ in
            their channels.
        ConversionError: the model cannot be copied.
    """
    _check_arguments(batches, method, percentile, per_channel)
    rule = _rule(method, percentile, timesteps, neuron, iterations)
    if not isinstance(qcfs, bool):
        raise TypeError(f"qcfs must be a bool, got {type(qcfs).__name__}")
    refuse_wrappers(model)
    stream = iter(batches)
    first = list(islice(stream, 1))  # by its names an input with a default may be given
    if spikes not in CHOICES:
        raise ValueError(f"spikes must be one of {CHOICES}, got {spikes!r}")
    inputs, home = Inputs.of(model), device_of(model)
    examples: dict[str, Tensor] = {}
    if first:
        inputs = inputs.of_batch(model, first[0])
        examples = dict(zip(inputs.names, moved(first[0], inputs, home)))
    traced = trace(model, inputs, examples, spikes=spikes)
    if not traced.sites:
        why = (
            f", as far as can be seen without tracing ({traced.why_not})" if traced.why_not else ""
        )
        raise ValueError(f"model must have an activation, {type(model).__name__} has none{why}")
    where = torch.device(device) if device is not None else home
    module, data = traced.module.to(where), ahead(first, stream, batches)

    statistics: dict[str, Statistics] = {}
    for site, activation in traced.sites.items():
        if qcfs or not isinstance(activation, QCFS):
            _watch(site, activation, rule, per_channel, statistics)
    # Copies, since an activation that works in place may be the first to read them.
    for tensors in inputs_on(
        where, data, traced.inputs, title="calibrate", progress=progress, copy=True
    ):
        for x, shape in zip(tensors, traced.shapes):
            if tuple(x.shape[1:]) != shape:
                raise ValueError(
                    f"batches must have the shape of the first, [B, {', '.join(map(str, shape))}], "
                    f"got {tuple(x.shape)}: the model's control flow depends on shapes"
                )
        traced.inputs.call(module, tensors)
    _check_seen(statistics)
    found = {site: seen.thresholds(rule) for site, seen in statistics.items()}
    hidden = [site for site, threshold in found.items() if not (threshold > 0).all()]
    if hidden:
        raise ValueError(
            f"percentile must be higher for activations {hidden}, whose percentile {percentile} is "
            "0"
        )
    return {site: threshold.to(home) for site, threshold in found.items()}


def _check_arguments(
    batches: Iterable[Any], method: str, percentile: Any, per_channel: bool
) -> None:
    check_batches(batches)
    if method not in METHODS:
        raise ValueError(f"method must be one of {METHODS}, got {method!r}")
    if not 0 < real("percentile", percentile, nan=True) <= 100:
        raise ValueError(f"percentile must lie in (0, 100], got {percentile}")
    if not isinstance(per_channel, bool):
        raise TypeError(f"per_channel must be a bool, got {type(per_channel).__name__}")


def _rule(
    method: str, percentile: float, timesteps: int, neuron: Neuron | None, iterations: int | None
) -> Rule:
    """The rule, N and the part of the range that θ is by the neuron."""
    timesteps = whole("timesteps", timesteps, 1)
    if iterations is not None:
        iterations = whole("iterations", iterations, 1, or_=" or None")
        if method != "gaussian":
            raise ValueError(f'iterations are of method "gaussian", got {method!r}')
    if neuron is None:
        neuron = Neuron()
    elif not isinstance(neuron, Neuron):
        raise TypeError(f"neuron must be a cos_ext.Neuron or None, got {type(neuron).__name__}")
    one, most = neuron.levels[1], neuron.count[1]
    if neuron.ladder is not None:
        if method in ("ddti", "adafire"):
            raise ValueError(f"neuron must have levels, not a ladder, for method {method!r}")
        return Rule(method, percentile, timesteps, timesteps << neuron.ladder, 1.0, iterations)
    if method == "ddti" and one > 1:
        raise ValueError(f'neuron must have one level for method "ddti", got {one}')
    levels = timesteps * one if most is None else min(timesteps * one, most)
    if levels == 0:
        raise ValueError("neuron must have a count above 0, got count=(..., 0)")
    part = 1.0 if method == "adafire" else timesteps / levels
    return Rule(method, percentile, timesteps, levels, part, iterations)


def _check_seen(statistics: dict[str, Statistics]) -> None:
    """ValueError where activations allow no threshold. Waits for the device."""
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


def _clip(site: str, activation: nn.Module) -> float | None:
    """Where an activation saturates, None: nowhere."""
    if not isinstance(activation, QCFS):
        return clip_of(activation)
    if activation.threshold.numel() != 1:
        raise ValueError(
            f"qcfs must be False where a QCFS activation has several thresholds, as {site!r} has"
        )
    return float(activation.threshold)


def _watch(
    site: str,
    activation: nn.Module,
    rule: Rule,
    per_channel: bool,
    statistics: dict[str, Statistics],
) -> None:
    """Have a site's statistics take in the inputs of its activation. They are made at the first
    call, and so they are in order.
    """
    kinds: dict[str, Callable[[str, Tensor, float | None, bool], Statistics]] = {
        "max": Statistics,
        "balance": Balance,
        "gaussian": Moments,
        "adafire": partial(AveragedGrid, rule=rule),
    }
    kind, clip = kinds.get(rule.method, Histogram), _clip(site, activation)

    def hook(
        module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Tensor], dict[str, Any]] | None:
        x = args[0] if args else next(iter(kwargs.values()))
        if not x.is_floating_point():
            raise TypeError(
                f"the input of activation {site!r} must be floating-point, got {x.dtype}"
            )
        signed = isinstance(module, Signed)
        sizes = x.abs() if signed else x
        if site not in statistics:
            statistics[site] = kind(site, sizes, clip, per_channel)
        instead = statistics[site].see(sizes, inplace=bool(getattr(module, "inplace", False)))
        if instead is None:
            return None
        return (instead.copysign(x) if signed else instead,), {}

    # Before the activation: one that works in place would leave nothing of its input.
    activation.register_forward_pre_hook(hook, with_kwargs=True)
