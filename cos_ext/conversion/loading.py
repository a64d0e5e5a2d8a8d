"""Reading a saved spiking network: the file's header says how to convert the model again."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .._files import read_tensors
from ..network.convolution import CHOICES as CONVOLUTIONS
from ..network.layout import NAMES, named
from ..network.network import SpikingNetwork
from ..network.settings import OWN, check_settings
from ..network.storage import FORMAT, neuron_from
from .finite import check_finite
from .pipeline import convert


def load_network(
    path: str | Path,
    model: nn.Module,
    example_input: Tensor | Sequence[Tensor | None] | Mapping[str, Tensor] | None = None,
) -> SpikingNetwork:
    """A network that :meth:`SpikingNetwork.save` wrote, beside the ANN it was made from.

    Args:
        path: the file.
        model: the ANN's architecture; its weights do not matter, and it is not modified. It may be
            on the meta device, which takes no memory.
        example_input: as for :func:`cos_ext.convert`; needed where that was given one.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, is no such file, or does not fit the model.
        ConversionError: the model does not convert with the options in the file.
    """
    try:
        header, tensors = read_tensors(path)
    except ValueError as error:
        raise ValueError(f"{path} is not a saved spiking network: {error}") from error
    if header.get("format") != FORMAT:
        raise ValueError(
            f"{path} has the format {header.get('format')!r}, this cos_ext reads {FORMAT!r}"
        )
    wrong = _damage(header, {tuple(tensor.shape) for tensor in tensors.values()})
    if wrong:
        raise ValueError(f"{path} is damaged: its header's {wrong}")
    thresholds = {
        site: torch.ones(value) if isinstance(value, list) else value
        for site, value in header["thresholds"].items()
    }
    trainable = header.get("trainable", False)  # older files have none
    network = convert(
        _skeleton(model),
        timesteps=header["timesteps"],
        rho=0,
        iterations=header["iterations"],
        emission=header["emission"],
        calibration=header.get("calibration", "cos"),  # files from before the rivals have none
        thresholds=thresholds,
        spikes=header.get("spikes", "rectifiers"),  # likewise
        nonlinear=header.get("nonlinear", "error"),  # older files have none
        max_pool=header["max_pool"],
        fold_batchnorm=header["fold_batchnorm"],
        trainable=trainable,
        fuse=header.get("fuse", False),  # older files have none
        readout=header.get("readout", "error"),  # likewise
        memory_format=named(header.get("memory_format", "auto")),  # likewise
        example_input=example_input,
    )
    network.neuron = neuron_from(header.get("neuron"))  # older files have none
    network.rho = header["rho"]  # which a network that learns may have later
    nodes = network.nodes()
    if not header["layers"].keys() <= nodes.keys():
        raise ValueError(
            f"{path} does not fit {type(model).__name__}: it has settings for "
            f"{sorted(header['layers'].keys() - nodes.keys())}, where it has no neurons"
        )
    for site, layer in header["layers"].items():
        network.set_layer(site, **own_settings(layer))
    for site, shape in header.get("biases", {}).items():
        if site not in nodes:
            raise ValueError(
                f"{path} does not fit {type(model).__name__}: it has a bias for {site!r}, where it "
                "has no neurons"
            )
        nodes[site].bias = nodes[site].v_threshold.new_zeros(shape)
    network.options["static"] = header.get("static")  # older files have none
    network.options["method"] = header.get("method")  # likewise
    if network.options["static"] is not None and network.watch_steps:
        raise ValueError(f"{path} is damaged: it has the potentials of fit_v_init, and a rho > 0")
    try:
        network.load_state_dict(tensors)
        network.take_neurons()
    except RuntimeError as error:
        raise ValueError(
            f"{path} does not fit {type(model).__name__} (a network converted with an "
            "example_input may need one here "
            f"too): {error}"
        ) from error
    _check_complete(path, model)
    check_finite(network)
    _set_convolutions(network, header, path)
    network.execution = header.get("execution", "steps")  # last: it needs the layers' settings
    return network


def _set_convolutions(network: SpikingNetwork, header: dict[str, Any], path: Any) -> None:
    network.convolution = header.get("convolution", "auto")  # older files have none
    for site, way in header.get("convolutions", {}).items():  # likewise
        try:
            network.set_layer(site, convolution=way)
        except ValueError as error:
            raise ValueError(f"{path} does not fit the model: {error}") from error


@torch.no_grad()
def _skeleton(model: nn.Module) -> nn.Module:
    """The architecture with numbers that convert: a model on the meta device has none, and one that
    was never initialised has any.
    """
    odd = [
        x
        for name, x in (*model.named_parameters(), *model.named_buffers())
        if x.is_meta
        or (x.is_floating_point() and _unfit(name, x))
        or (name.endswith("running_var") and not (x > 0).all())
    ]
    if not odd:
        return model
    ones = {id(x): torch.ones(x.shape, dtype=x.dtype) for x in odd}
    made = {
        key: nn.Parameter(ones[key]) if isinstance(x, nn.Parameter) else ones[key]
        for key, x in ((id(x), x) for x in odd)
    }
    return copy.deepcopy(model, made)


def _unfit(name: str, x: Tensor) -> bool:
    """Whether convert() would refuse it; a mask that is a buffer may have infinity."""
    masks = not isinstance(x, nn.Parameter) and not name.endswith(("running_mean", "running_var"))
    return bool((x.isnan() if masks else x.isfinite().logical_not()).any())


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


def _damage(header: dict[str, Any], shapes: set[tuple[int, ...]]) -> str | None:
    """What of a header cannot be of :meth:`SpikingNetwork.save`, where the tensors of the file have
    these shapes; None: nothing.
    """
    older = {"calibration": "cos", "fuse": False, "biases": {}, "static": None}
    header = {
        **older,
        "execution": "steps",
        "readout": "error",
        "memory_format": "auto",
        "convolution": "auto",
        "convolutions": {},
        "trainable": False,
        "neuron": None,
        "method": None,
        "nonlinear": "error",
        "spikes": "rectifiers",
        **header,
    }
    for name, allowed in _TYPES.items():
        if name not in header or not isinstance(header[name], allowed):
            return f"{name} is {header.get(name, 'missing')!r}"
    if header["execution"] not in ("steps", "counts"):
        return f"execution is {header['execution']!r}"
    for way in (header["convolution"], *header["convolutions"].values()):
        if way not in CONVOLUTIONS:
            return f"convolution is {way!r}"
    if header["fold_batchnorm"] not in (True, False, "frozen"):
        return f"fold_batchnorm is {header['fold_batchnorm']!r}"
    if header["memory_format"] not in NAMES.values():
        return f"memory_format is {header['memory_format']!r}"
    own = {name: header[name] for name in OWN}
    for site, layer in {"": {}, **header["layers"]}.items():
        if not isinstance(layer, dict) or not layer.keys() <= own.keys():
            return f"settings of {site!r} are {layer!r}"
        described = {**own, **layer}["neuron"] or {}
        claimed = described.get("shapes") if isinstance(described, dict) else None
        sizes = claimed.values() if isinstance(claimed, dict) else ()
        if not all(_fits(shape, shapes) for shape in sizes):
            return f"neuron of {site!r} is {described!r}"
        try:
            check_settings(header["timesteps"], **own_settings({**own, **layer}))
        except (TypeError, ValueError) as error:
            return f"settings do not hold: {error}"
    for name in ("thresholds", "biases"):
        for site, shape in header[name].items():
            number = name == "thresholds" and type(shape) is float
            if not number and not _fits(shape, shapes):
                return f"{name} of {site!r} are {shape!r}"
    return None


def own_settings(layer: dict[str, Any]) -> dict[str, Any]:
    """Settings as set_layer() takes them, of those that a file has."""
    return {**layer, "neuron": neuron_from(layer["neuron"])} if "neuron" in layer else layer


def _fits(shape: Any, shapes: set[tuple[int, ...]]) -> bool:
    """Whether the file has such a tensor: of a claim beyond its tensors no memory is taken."""
    sizes = isinstance(shape, list) and all(type(size) is int for size in shape)
    return sizes and tuple(shape) in shapes


_TYPES: dict[str, tuple[type, ...]] = {
    "timesteps": (int,),
    "rho": (int,),
    "iterations": (int, type(None)),
    "emission": (str,),
    "calibration": (str,),
    "thresholds": (dict,),
    "layers": (dict,),
    "neuron": (dict, type(None)),
    "method": (str, type(None)),
    "biases": (dict,),
    "static": (dict, type(None)),
    "fold_batchnorm": (bool, str),
    "trainable": (bool,),
    "fuse": (bool, str),
    "readout": (str,),
    "nonlinear": (str,),
    "spikes": (str,),
    "max_pool": (str,),
    "execution": (str,),
    "memory_format": (str,),
    "convolution": (str,),
    "convolutions": (dict,),
}
