"""Reading a saved spiking network: the file's header says how to convert the model again."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ..network.network import SpikingNetwork
from ..network.storage import FORMAT
from .pipeline import convert


def load_network(
    path: str | Path, model: nn.Module, example_input: Tensor | tuple[Tensor, ...] | None = None
) -> SpikingNetwork:
    """A network that :meth:`SpikingNetwork.save` wrote, beside the ANN it was made from.

    Args:
        path: the file.
        model: the ANN's architecture; its weights do not matter, and it is not modified. It may be
            on the meta device, which takes no memory.
        example_input: needed where the model cannot be traced.

    Raises:
        ValueError: the file is no such file, or does not fit the model.
        ConversionError: the model does not convert with the options in the file.
    """
    try:
        with safe_open(path, "pt") as file:
            header = json.loads((file.metadata() or {}).get("cos_ext", "{}"))
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118, no dict
    except (SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not a saved spiking network: {error}") from error
    if header.get("format") != FORMAT:
        raise ValueError(
            f"{path} has the format {header.get('format')!r}, this cos_ext reads {FORMAT!r}"
        )
    thresholds = {
        site: torch.ones(value) if isinstance(value, list) else value
        for site, value in header["thresholds"].items()
    }
    network = convert(
        _skeleton(model),
        timesteps=header["timesteps"],
        rho=header["rho"],
        iterations=header["iterations"],
        emission=header["emission"],
        calibration=header.get("calibration", "cos"),  # files from before the rivals have none
        thresholds=thresholds,
        max_pool=header["max_pool"],
        fold_batchnorm=header["fold_batchnorm"],
        fuse=header.get("fuse", False),  # older files have none
        readout=header.get("readout", "error"),  # likewise
        example_input=example_input,
    )
    for site, layer in header["layers"].items():
        network.set_layer(site, **layer)
    nodes = network.nodes()
    for site, shape in header.get("biases", {}).items():
        if site not in nodes:
            raise ValueError(
                f"{path} does not fit {type(model).__name__}: it has a bias for {site!r}, where it "
                "has no neurons"
            )
        nodes[site].bias = nodes[site].v_threshold.new_zeros(shape)
    network.options["static"] = header.get("static")  # older files have none
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(
            f"{path} does not fit {type(model).__name__} (a network converted with an "
            "example_input may need one here "
            f"too): {error}"
        ) from error
    _check_complete(path, model)
    network.execution = header.get("execution", "steps")  # last: it needs the layers' settings
    return network


@torch.no_grad()
def _skeleton(model: nn.Module) -> nn.Module:
    """The architecture with numbers that convert: a model on the meta device has none, and one that
    was never initialised has any.
    """
    odd = [
        x
        for x in (*model.parameters(), *model.buffers())
        if x.is_meta or (x.is_floating_point() and not x.isfinite().all())
    ]
    if not odd:
        return model
    ones = {id(x): torch.ones(x.shape, dtype=x.dtype) for x in odd}
    made = {
        key: nn.Parameter(ones[key]) if isinstance(x, nn.Parameter) else ones[key]
        for key, x in ((id(x), x) for x in odd)
    }
    return copy.deepcopy(model, made)


def _check_complete(path: Any, model: nn.Module) -> None:
    """ValueError where a buffer has numbers neither in the file nor in the model."""
    lost = [
        f"{name}.{buffer}" if name else buffer
        for name, module in model.named_modules()
        for buffer in module._non_persistent_buffers_set
        if (held := module._buffers.get(buffer)) is not None and held.is_meta
    ]
    if lost:
        raise ValueError(
            f"{path} has no numbers for the buffers {lost}, which are not persistent; make "
            f"{type(model).__name__} on a real device, where it computes them"
        )
