"""convert(): its arguments, and what they mean together. The passes that do the work are listed in
passes.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..general import Neuron
from ..methods import METHODS, UNAVAILABLE, Method, apply, chosen
from ..network import counts
from ..network.layout import name_of
from ..network.network import SpikingNetwork
from ..network.settings import check_settings
from .copying import refuse_wrappers
from .differences import CHOICES as NONLINEAR
from .finite import check_finite, check_loaded
from .fuse import check_fuse
from .max_pooling import CHOICES
from .passes import converted
from .readout import READOUTS
from .signed import CHOICES as SPIKES
from .state import Settings
from .trainable import check_fold


def convert(
    model: nn.Module,
    *,
    timesteps: int,
    rho: int = 0,
    iterations: int | None = 1,
    emission: str = "calibrated",
    calibration: str = "cos",
    thresholds: Mapping[str, float | Tensor] | None = None,
    spikes: str = "activations",
    nonlinear: str = "difference",
    max_pool: str = "difference",
    fold_batchnorm: bool | str = True,
    fuse: bool | str = True,
    example_input: Tensor | Sequence[Tensor | None] | Mapping[str, Tensor] | None = None,
    execution: str = "steps",
    readout: str = "error",
    memory_format: str | torch.memory_format = "auto",
    trainable: bool = False,
    neuron: Neuron | None = None,
    method: str | Method | None = None,
) -> SpikingNetwork:
    """Turn a trained ANN into a spiking network; the model itself is not modified.

    Every call site of nn.ReLU, nn.ReLU6, nn.Hardtanh(0, b), nn.Threshold(0, 0), QCFS, F.relu,
    torch.relu, x.relu(), x.relu_(), F.relu6, F.hardtanh, clamp(0, b) and clamp_min(0) becomes IF
    neurons of its own, also where one module is called at several places. What comes before the
    first neurons of a path runs once per image, whatever it is. After them, what is affine sample
    by sample stays: convolution, Linear, BatchNorm in eval mode, average pooling, interpolation,
    padding, sums, concatenation, split, mean, shapes.

    Args:
        model: whose inputs are tensors [B, ...] and whose output is tensors [B, ...], one or in
            tuples, lists, dicts and dataclasses; beside them None, numbers and tensors of no input,
            which stay as they are (:doc:`/guides/outputs`). What torch.fx cannot trace is run on
            the shapes of example_input and traced so; nothing that is called may depend on values
            or on the size of the batch. A model that does not trace even so converts module by
            module, where its activations are all modules, each called once; its layers before the
            first neurons then run at every step.
        timesteps: T >= 1.
        rho: steps to watch for calibration, 0 for none; may exceed timesteps.
        iterations: of the calibration; None is until exact.
        emission: the order of the spikes in time, as for :func:`cos_ext.functional.cos_forward`;
            the paper's by default.
        calibration: "cos", the paper's method, or a rival to compare it with on the same kernels:
            "srp" (AAAI 2023), "parallel" (ICML 2025), "light" (ICML 2021, needs
            :func:`cos_ext.fit_light` before it runs), "none"; see :class:`cos_ext.IFNode`.
        thresholds: by activation call site (:func:`cos_ext.calibrate_thresholds` finds them), a
            float or a tensor that broadcasts to its neurons. QCFS brings its own; ReLU6, Hardtanh
            and clamp take their clip unless told otherwise.
        spikes: where neurons stand. "activations": after every activation behind a layer. One that
            is no rectifier (GELU, SiLU, hardswish, LeakyReLU, ...; a sigmoid that is no gate) is
            computed as `nonlinear` says, and signed neurons spike what it gives. "rectifiers": only
            for rectifiers; other activations are `nonlinear` alone. "inputs": signed neurons before
            every convolution and Linear but the first, and before the operands of matrix products
            of two tensors, whatever comes there: for transformers, and models without activations.
            Signed neurons send -θ, 0 or θ, and need thresholds
            (:func:`cos_ext.calibrate_thresholds`, with the same `spikes`).
        nonlinear: what becomes of a function between neurons that is not affine, but treats every
            sample alone: gates, norms, softmax, GELU, products and matrix products of two tensors
            that spike. "difference": it is computed on the running means of what it reads, and
            hands on what is new at every step, y(t) = t f(X(t)/t) - (t-1) f(X(t-1)/(t-1)), X(t) the
            sum up to t. The mean over the steps is f of the mean, exactly. Real numbers leave it,
            no spikes: layers after it multiply. The report has a line for each. "error": an
            offender.
        max_pool: "difference": the maximum of the running means, likewise. "error": a max pooling
            of spikes is an offender. "avg": replace it by average pooling (another network).
            "spike": the maximum over the spikes of each step (overestimates). "before": pool before
            the neurons, where the input is theirs alone; exact with calibration, and keeps spikes,
            see :class:`cos_ext.network.pooling.MaxPoolBefore`.
        fold_batchnorm: fold each BatchNorm into the convolution or Linear before it where nothing
            else reads that, and the fold gives the same on random inputs; the report says where and
            why not. False: keep them; a trainable network trains them. "frozen": keep them, and
            train neither their parameters nor their statistics.
        fuse: let the kernel of the neurons do what stands around them: residual sums, a BatchNorm
            that was not folded, average pooling of the spikes over windows that do not overlap,
            and, on a CUDA device, where a convolution adds its bias in a pass of its own, biases;
            "bias": those on every device. Spikes stay EQUAL to those of fuse=False for residual
            sums and windows of 2 x 2; the others round in another order. The report says what was
            fused.
        example_input: a [B, ...] input, a tuple of inputs, or a mapping by the names of forward's
            arguments, on the model's device. Without it the inputs are the arguments that have no
            default (the first, where all have one). Others, and those that it leaves out, are fixed
            at their defaults. Control flow may depend on its shapes, but for the batch; the network
            takes no others then. If given, three things are checked on its first sample before a
            network is returned, in the model's dtype: that the traced graph is the model, that no
            sample depends on another, and that the network at T = rho = 2, calibrated exactly, is
            layer by layer the ANN with its activations quantised to 2 levels.
        execution: "steps", or "counts": the same outputs in one pass, where emission is "even" or
            "front" and rho > 0 (:attr:`cos_ext.SpikingNetwork.execution`).
        readout: of a Softmax, LogSoftmax, Sigmoid or Tanh at the end of a tensor of the output.
            "error": as `nonlinear` says, a difference or an offender. "drop": left out, the network
            gives logits. "mean": left out, and applied to the mean of that tensor by
            :meth:`cos_ext.SpikingNetwork.rate`. The class of the largest output is the same in all
            cases.
        memory_format: of the weights of 2-d convolutions, which their outputs and all that follows
            take over. "auto": torch.channels_last while the network is on a CPU, where it is
            faster, else the model's own. A model that cannot be traced keeps its own, too. Or
            torch.contiguous_format or torch.channels_last, on every device. Convolutions may sum in
            another order then, so that a current within rounding of a threshold may fall on the
            other side. The output has the layout that the model's has.
        trainable: all parameters, and the θ and v(0) of every layer, get surrogate gradients
            (:func:`cos_ext.functional.if_forward`, with Triangle()), and
            :meth:`SpikingNetwork.train` works; see :func:`cos_ext.fine_tune`. rho must be 0:
            calibration has no gradient. Of what `fuse` names only sums and pooling are fused.
        neuron: what the neurons do in a step, a :class:`cos_ext.Neuron`; None is one level, 0 or θ.
            θ is one level's, so that a layer's clip is θ times the most levels of a step. Where
            neurons are signed, its :attr:`cos_ext.Neuron.signed` form stands.
        method: a published method by name, or a :class:`cos_ext.methods.Method`: neurons, levels of
            θ, v(0), calibration and emission are its; see :doc:`/methods/published`. One that
            watches needs rho >= 1, others rho = 0. It cuts θ into its levels: thresholds that go
            with a method are a layer's, found with ``neuron=None``.

    Warns:
        UserWarning: less than half of the model's multiplications lie behind neurons, on
            example_input; the others stay dense.

    Raises:
        ConversionError: listing every call site that cannot be converted, and every activation
            without a threshold, at once, with the line of the source where it is known; or a check
            on example_input failed.
        TypeError, ValueError: another argument is wrong.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, got {type(model).__name__}")
    recipe = None if method is None else chosen(method, METHODS, UNAVAILABLE)
    if recipe is not None:
        _check_recipe(recipe, rho, emission, calibration, neuron)
        emission = recipe.settings.get("emission", emission)
        calibration = recipe.settings.get("calibration", calibration)
        iterations = recipe.settings.get("iterations", iterations)
    settings = Settings(
        timesteps=timesteps,
        rho=rho,
        iterations=iterations,
        emission=emission,
        calibration=calibration,
        execution=execution,
        readout=readout,
        memory_format=name_of(memory_format),
        thresholds=_thresholds(thresholds),
        spikes=spikes,
        nonlinear=nonlinear,
        max_pool=max_pool,
        fold_batchnorm=check_fold(fold_batchnorm),
        fuse=_fuse(fuse, model),
        trainable=bool(trainable),
        neuron=neuron,
    )
    _check(settings)
    refuse_wrappers(model)
    check_loaded(model)
    check_finite(model)  # by the model's own names, and what forward does not use, too
    network = converted(model, settings, example_input)
    network.neuron = neuron  # after the checks, which are those of one level
    if recipe is not None:
        apply(network, recipe)
    network.execution = execution
    return network


def _check_recipe(
    method: Method, rho: int, emission: str, calibration: str, neuron: Neuron | None
) -> None:
    """ValueError where other arguments say what a method says."""
    if (emission, calibration, neuron) != ("calibrated", "cos", None):
        raise ValueError(
            f"method {method.name!r} sets neuron, emission and calibration; leave them out"
        )
    if method.watches != bool(rho):
        wanted = "rho >= 1: its layers watch" if method.watches else "rho = 0: nothing is watched"
        raise ValueError(f"method {method.name!r} needs {wanted}, got {rho}")


def _thresholds(thresholds: Any) -> dict[str, float | Tensor]:
    if thresholds is not None and not isinstance(thresholds, Mapping):
        raise TypeError(
            "thresholds must be a mapping of call sites to thresholds, got "
            f"{type(thresholds).__name__}"
        )
    return dict(thresholds or {})


def _fuse(fuse: bool | str, model: nn.Module) -> bool | str:
    """On a CUDA device a convolution adds its bias in a pass of its own, which fusing saves."""
    on_cuda = any(parameter.is_cuda for parameter in model.parameters())
    return "bias" if check_fuse(fuse) is True and on_cuda else fuse


def _check(settings: Settings) -> None:
    """TypeError or ValueError where an argument is wrong, whatever the model."""
    if settings.readout not in READOUTS:
        raise ValueError(f"readout must be one of {READOUTS}, got {settings.readout!r}")
    if settings.spikes not in SPIKES:
        raise ValueError(f"spikes must be one of {SPIKES}, got {settings.spikes!r}")
    if settings.nonlinear not in NONLINEAR:
        raise ValueError(f"nonlinear must be one of {NONLINEAR}, got {settings.nonlinear!r}")
    if settings.max_pool not in CHOICES:
        raise ValueError(f"max_pool must be one of {tuple(CHOICES)}, got {settings.max_pool!r}")
    rho, emission, calibration = settings.rho, settings.emission, settings.calibration
    neuron = settings.neuron
    check_settings(settings.timesteps, rho, settings.iterations, emission, calibration, neuron)
    if settings.trainable and rho:
        raise ValueError(
            f"rho must be 0 with trainable=True, got {rho}: calibration has no gradient; train, "
            "then set network.rho"
        )
    if counts.check_execution(settings.execution) == "counts":
        counts.check_settings({"every layer": (rho, emission, calibration, neuron)})
