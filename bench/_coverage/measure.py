"""One network: made, calibrated, converted, and held against its twin. What the figures mean
together is coverage.py's business.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.utils._pytree import tree_leaves

import cos_ext

from .networks import Network, call
from .tags import Tags
from .twin import InputsTwin, Twin

TIMESTEPS, BATCH, SEED = 4, 2, 1
EXACT = 1e-9  # of the largest output, in float64
LEAST = 1e-4  # by which the answers to two samples differ, or they would prove nothing
REASON_LENGTH = 300


@torch.no_grad()
def measure(network: Network) -> dict[str, Any]:
    """The record of one network: status "exact", "inexact", "refused" or "failed", and why."""
    row: dict[str, Any] = {"name": network.name}
    torch.manual_seed(SEED)
    try:
        model = prepared(network)
    except Exception as error:  # the package's, not the conversion's: a family that has changed
        return row | {"status": "unmade", "reasons": [said(error)], "trace": traceback.format_exc()}
    row["parameters"] = sum(p.numel() for p in model.parameters())
    start = time.perf_counter()
    try:
        converted, thresholds = conversion(network, model)
    except cos_ext.ConversionError as error:
        reasons = [entry.reason for entry in error.report.unsupported()] or [said(error)]
        row |= {"status": "refused", "reasons": list(dict.fromkeys(map(short, reasons)))}
        return row | {"seconds": time.perf_counter() - start}
    except Exception as error:  # none is meant to come
        row |= {"status": "failed", "reasons": [said(error)], "trace": traceback.format_exc()}
        return row | {"seconds": time.perf_counter() - start}
    row["seconds"] = time.perf_counter() - start
    return row | comparison(network, model, converted, thresholds)


def conversion(network: Network, model: nn.Module) -> tuple[nn.Module, dict[str, Tensor]]:
    """The spiking network and its thresholds, by call site.

    The largest activations, made smaller by some percent: so that clips are met, and a mean of
    levels does not fall between two levels of the next site.
    """
    batches = [network.sample(BATCH, SEED + 1), network.sample(BATCH, SEED + 2)]
    try:
        found = cos_ext.calibrate_thresholds(model, batches, progress=False, spikes=network.spikes)
    except ValueError:  # there is no activation, or one is silent: convert() says what that means
        found = {}
    shrink = torch.Generator().manual_seed(SEED)
    thresholds = {
        site: theta * (1 - 0.1 * torch.rand((), generator=shrink, dtype=theta.dtype))
        for site, theta in found.items()
    }
    converted = cos_ext.convert(
        model,
        timesteps=TIMESTEPS,
        rho=TIMESTEPS,
        iterations=None,
        thresholds=thresholds,
        spikes=network.spikes,
        example_input=network.sample(BATCH, SEED + 2),
    )
    return converted, thresholds


def comparison(
    network: Network, model: nn.Module, converted: nn.Module, thresholds: dict[str, Tensor]
) -> dict[str, Any]:
    """How far the mean over time is from the twin's output, relative to the largest."""
    x = network.sample(BATCH, SEED + 3)
    try:
        tags = Tags()
        with tags:
            plain = leaves(call(model, tags.begin(clones(x))))
        twin = (
            InputsTwin([*thresholds.values()], TIMESTEPS)
            if network.spikes == "inputs"
            else Twin([*thresholds.values()], TIMESTEPS, tags.signed())
        )
        with twin:
            expected = leaves(call(model, twin.begin(clones(x))))
        got = [leaf.mean(0) for leaf in leaves(call(converted, clones(x)))]
    except Exception as error:
        reasons = {"reasons": [said(error)], "trace": traceback.format_exc()}
        return {"status": "failed", **reasons}
    row: dict[str, Any] = {"sites": len(thresholds), "calls": len(twin.calls)}
    if len(got) != len(expected) or len(twin.calls) != len(thresholds):
        why = f"{len(got)} outputs for {len(expected)}, {len(thresholds)} sites for {twin.calls}"
        return row | {"status": "inexact", "reasons": [short(why)]}
    row["error"] = max(map(apart, got, expected))
    row["quantised"] = max(map(apart, plain, expected))  # what the quantisers change
    row["status"] = "exact" if row["error"] < EXACT else "inexact"
    return row


def apart(a: Tensor, b: Tensor) -> float:
    """The largest difference, relative to the largest value of b."""
    if a.shape != b.shape:
        return float("inf")
    return float((a - b).abs().max() / b.abs().max().clamp_min(1e-300))


def leaves(output: Any) -> list[Tensor]:
    """The floating-point tensors of an output, in their order."""
    every = tree_leaves(output)
    return [x for x in every if isinstance(x, Tensor) and x.is_floating_point() and x.numel()]


def clones(inputs: Any) -> Any:
    if isinstance(inputs, dict):
        return {name: x.clone() for name, x in inputs.items()}
    return tuple(x.clone() for x in inputs) if isinstance(inputs, tuple) else inputs.clone()


@torch.no_grad()
def prepared(network: Network) -> nn.Module:
    """A network as if it had been trained: weights that do not let the signal die, statistics of
    its own data, no parameter at a constant.

    BatchNorm at its initial statistics, LayerNorm without scales and branches that begin at 0
    would hide errors.
    """
    model = network.make().double().eval()
    for module in model.modules():
        if isinstance(module, (_ConvNd, nn.Linear)):
            weight = module.weight.data  # by a weight norm it is no parameter
            least = weight[0].numel() ** -0.5
            weight.mul_((least / weight.std().clamp_min(1e-12)).clamp_min(1))
    for parameter in constants(model):
        parameter.add_(0.1 * torch.randn_like(parameter))
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    for norm in norms:
        norm.train().momentum = None  # the mean over all calls
        norm.reset_running_stats()
        if norm.affine:
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.normal_(0, 0.2)
    if norms:
        call(model, network.sample(2 * BATCH, SEED))
    for norm in norms:
        norm.eval()
        assert norm.running_mean is not None and norm.running_var is not None
        norm.running_mean.add_(0.1 * norm.running_var.sqrt() * torch.randn_like(norm.running_mean))
        norm.running_var.mul_(0.8 + 0.4 * torch.rand_like(norm.running_var))
    answers = leaves(call(model, network.sample(2, SEED)))
    if not answers or max(apart(leaf[:1], leaf[1:2]) for leaf in answers) < LEAST:
        raise ValueError("its answers to two samples are the same")
    return model.requires_grad_(False)


def constants(model: nn.Module) -> Iterator[Tensor]:
    """The parameters whose elements are all equal."""
    for parameter in model.parameters():
        if (
            parameter.is_floating_point()
            and parameter.numel()
            and parameter.min() == parameter.max()
        ):
            yield parameter


def said(error: Exception) -> str:
    return short(f"{type(error).__name__}: {error}")


def short(text: str) -> str:
    line = " ".join(str(text).split())
    return line if len(line) <= REASON_LENGTH else line[: REASON_LENGTH - 3] + "..."
