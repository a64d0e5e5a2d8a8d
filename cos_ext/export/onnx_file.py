"""Spiking networks as ONNX files of standard operators. What a network computes, in torch's
operators, is in plain.py.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .._files import check_target, replacing
from ..network.network import SpikingNetwork
from .onnx_functions import Called, Kinds
from .plain import PlainNeurons, check_plain, example_for, plain

PACKAGES = ("onnx", "onnxscript")
OPSET = 20
MOST_BYTES = 2**31 - 2**24  # of one file of protobuf's, less room for the graph


def to_onnx(
    network: SpikingNetwork,
    path: str | os.PathLike[str],
    example_input: Tensor | Sequence[Tensor],
) -> None:
    """Write a network as an ONNX file of standard operators (opset 20), its steps unrolled.

    The file takes the network's inputs ``[B, ...]``, by their names, for any B, and gives
    ``outputs``, ``[T, B, ...]``, as the network does; ``outputs_0``, ``outputs_1``, ... where there
    are several. All settings go into it as they are now: neurons of every kind, calibrated or not,
    with every emission. It has float32 and, where a
    calibration divides by θ, float64.

    Neurons that are fed the same currents emit EQUAL spikes in onnxruntime. Convolutions and matrix
    products may sum in another order there, so that a current within rounding of a threshold can
    fall on its other side: outputs of whole networks are equal but for that.

    Each kind of neurons stands in the file once, as a function in the ONNX sense. It grows with the
    steps: 128 operators for timesteps = rho = 4, 208 for 8. ``iterations=None`` unrolls as many
    rounds as could be needed, at most rho: 948 operators for 8.

    Args:
        network: as :func:`cos_ext.convert` returns, on any device, float32 throughout.
        path: of the file, complete or not there.
        example_input: inputs as the network takes them; their values play no part.

    Raises:
        ImportError: onnx and onnxscript are not installed (extra ``onnx``).
        TypeError: network is none; an input is no tensor.
        ValueError: the network's model could not be traced; it is not float32; its weights do not
            fit into one file of 2 GiB; torch cannot export it, or not for any batch size.
        RuntimeError: calibration "light" without a fitted bias.
        OSError: the file cannot be written. Whatever is raised, what was there before is there.

    Example:
        >>> import tempfile, torch, cos_ext
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU())
        >>> network = cos_ext.convert(model, timesteps=4, rho=4, thresholds={"1": 1.0})
        >>> cos_ext.to_onnx(network, f"{tempfile.mkdtemp()}/net.onnx", torch.rand(2, 4))
    """
    check_plain(network)
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f"to_onnx needs {' and '.join(missing)}: pip install '.[onnx]'")
    check_target(path)
    size = sum(t.nbytes for t in network.state_dict().values())
    if size > MOST_BYTES:
        raise ValueError(
            f"network must fit into one ONNX file of {MOST_BYTES} bytes, its tensors have {size}"
        )
    inputs = example_for(network, example_input)
    count = len(network.outputs.kinds)
    results = ["outputs"] if count == 1 else [f"outputs_{number}" for number in range(count)]
    model = model_of(plain(network), inputs, network.inputs.names, results=results)
    with replacing(path) as part:
        part.write_bytes(model.SerializeToString())


def model_of(
    module: nn.Module,
    inputs: tuple[Tensor, ...],
    names: Sequence[str],
    steps: int = 1,
    results: Sequence[str] = ("outputs",),
) -> Any:
    """A module whose neurons are plain as an onnx.ModelProto, for any batch size: the first size of
    its inputs, or that by so many steps.

    Raises:
        ValueError: torch cannot export it.
    """
    from onnx import checker

    kinds = Kinds()
    for name, each in list(module.named_modules(remove_duplicate=False)):
        if isinstance(each, PlainNeurons):
            module.set_submodule(name, Called(each, kinds))
    batch = torch.export.Dim("batch")
    shapes = tuple({0: batch if steps == 1 else steps * batch} for _ in inputs)
    model = _exported(module, inputs, names, shapes, results).model_proto
    model.functions.extend(kinds.functions(_exported))
    checker.check_model(model)
    return model


def _exported(
    module: nn.Module,
    inputs: tuple[Tensor, ...],
    names: Sequence[str],
    shapes: tuple[Any, ...],
    results: Sequence[str] = ("outputs",),
) -> Any:
    """A module, of any number of inputs and results, as a program of torch.onnx."""
    try:
        with torch.no_grad(), _quiet():
            return torch.onnx.export(
                module,
                inputs,
                input_names=list(names) or None,
                output_names=list(results),
                opset_version=OPSET,
                dynamic_shapes=(shapes,),
                dynamo=True,
                verbose=False,
            )
    except Exception as error:  # torch's exporter raises nearly anything
        reason = str(error.__cause__ or error).strip().split("\n")[0]
        raise ValueError(
            f"torch cannot export the network: {reason}; what stands between its neurons must be "
            "made of operators that ONNX has, for any batch size"
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter says on its way: it names packages that nobody asked for."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
