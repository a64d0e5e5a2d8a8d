"""SpikingJelly's own conversion of the same ANN, in either step mode.

It folds BatchNorm and does not calibrate. How its wheels are found is _shared/peers.py's.
"""

from __future__ import annotations

import contextlib
import copy

import torch
from _shared.peers import quietly
from _shared.timing import Call
from torch import Tensor, nn

from .cases import Case, Missing


def converted(ann: nn.Module, calibration_images: list[Tensor], case: Case, mode: str) -> nn.Module:
    """Step mode "m" takes all steps at once, "s" one by one. Raises Missing where it cannot be
    had.
    """
    try:
        from spikingjelly.activation_based import ann2snn, functional, neuron
    except ImportError as error:
        raise Missing(f"not installed ({error})") from error
    model = copy.deepcopy(ann)
    if hasattr(ann2snn, "RateCodingRecipe"):  # version 2
        converter = ann2snn.Converter(
            recipe=ann2snn.RateCodingRecipe(dataloader=calibration_images, mode="99.9%")
        )
        with quietly():
            module = converter.convert(model)
    elif mode == "m":
        raise Missing("this version's ann2snn has no multi-step mode")
    else:
        labelled = [(images, torch.zeros(len(images))) for images in calibration_images]
        with quietly():
            module = ann2snn.Converter(dataloader=labelled, mode="99.9%")(model)
    module = module.eval().to(case.device, case.torch_dtype)
    functional.set_step_mode(module, mode)
    if case.device == "cuda" and mode == "m":
        for backend in ("triton", "cupy"):
            with contextlib.suppress(Exception):
                functional.set_backend(module, backend, neuron.IFNode)
                break
    return module


def run(module: nn.Module, images: Tensor, steps: int, mode: str) -> Call:
    """A call that runs all steps from reset potentials."""
    from spikingjelly.activation_based import functional

    def call() -> Tensor:
        functional.reset_net(module)
        if mode == "m":
            return module(images.unsqueeze(0).expand(steps, *images.shape))
        return torch.stack([module(images) for _ in range(steps)])

    return call
