"""What this build is, and which devices it serves. What the operators do is in _ops.py."""

from __future__ import annotations

import functools
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from . import _images, _ops


def own_version() -> str:
    """The version of cos_ext that is installed; its local part says what was built: cpu, cu130."""
    try:
        return version("cos_ext")
    except PackageNotFoundError:
        return "0+unknown"  # built in place


def unserved(device: torch.device) -> str | None:
    """Why tensors of a CUDA device cannot be served, or None."""
    reason = _ops.cuda_unavailable()
    if reason is not None or torch.compiler.is_compiling():
        return reason
    return _refusal(torch.cuda.current_device() if device.index is None else device.index)


@functools.cache
def _refusal(index: int) -> str | None:
    if not torch.cuda.is_available():  # a tensor without memory
        return None
    device = f"cuda:{index} ({torch.cuda.get_device_name(index)})"
    capability = torch.cuda.get_device_capability(index)
    return _images.refusal(_ops.core_facts()["cuda_archs"], device, capability)


def build_info() -> dict[str, Any]:
    """Versions and build facts, as a dict of plain values.

    Asks for the devices where there are CUDA kernels, which initialises CUDA. Importing does not.

    Returns:
        A dict with the keys

        * ``cos_ext``, ``torch``: the versions;
        * ``compiler``, ``built_with_torch``, ``built_with_cuda``, ``cuda_archs``: of the build;
        * ``cpu_capability``: the instruction set chosen here: avx512, avx2 or baseline;
        * ``cuda``: whether CUDA tensors are served, by one device at least where there are any;
        * ``cuda_off``: why not, or None;
        * ``cuda_devices``: by device, which image of the build it runs, or why it runs none.
    """
    facts, off = _ops.core_facts(), _ops.cuda_unavailable()
    facts.pop("cuda_off")
    count = torch.cuda.device_count() if off is None and torch.cuda.is_available() else 0
    refusals = [_refusal(index) for index in range(count)]
    devices = {
        f"cuda:{index}": refusal
        or _images.serving(facts["cuda_archs"], torch.cuda.get_device_capability(index))
        for index, refusal in enumerate(refusals)
    }
    if refusals and all(refusals):
        off = refusals[0]
    return {
        "cos_ext": own_version(),
        "torch": torch.__version__,
        **facts,
        "cuda": off is None,
        "cuda_off": off,
        "cuda_devices": devices,
    }
