"""Which GPUs the CUDA kernels of a build run on: its list of architectures against a device's
compute capability. Pure functions, without torch and without a GPU.
"""

from __future__ import annotations

import re
from typing import NamedTuple


class _Image(NamedTuple):
    name: str
    capability: tuple[int, int]
    suffix: str  # "a": this capability alone; "f": its family alone
    ptx: bool

    def serves(self, device: tuple[int, int]) -> bool:
        if self.suffix == "a":
            return device == self.capability
        if self.suffix == "f" or not self.ptx:
            return device[0] == self.capability[0] and device >= self.capability
        return device >= self.capability


def _images(archs: str) -> list[_Image]:
    found = []
    for name, major, minor, suffix, ptx in re.findall(r"((\d+)\.(\d+)([af]?))(\+PTX)?", archs):
        capability = int(major), int(minor)
        found.append(_Image(name, capability, suffix, False))
        if ptx:
            found.append(_Image(name, capability, suffix, True))
    return found


def serving(archs: str, capability: tuple[int, int]) -> str | None:
    """How a build serves a device.

    Args:
        archs: the architectures of the build, as TORCH_CUDA_ARCH_LIST has them: "8.0;9.0+PTX".
        capability: of the device: (9, 0).

    Returns:
        The image that the driver takes, in words, or None where there is none.
    """
    fitting = [image for image in _images(archs) if image.serves(capability)]
    # Machine code before PTX, and of several the nearest.
    best = max(fitting, key=lambda image: (not image.ptx, image.capability), default=None)
    if best is None:
        return None
    if best.ptx:
        return f"PTX of {best.name}, which the driver compiles at the first use"
    return f"machine code for {best.name}"


def refusal(archs: str, device: str, capability: tuple[int, int]) -> str | None:
    """Why a build does not serve a device, and what to do, or None where it does.

    Args:
        archs, capability: as for :func:`serving`.
        device: the device in words.
    """
    if not archs or serving(archs, capability) is not None:  # no list: nothing is known
        return None
    own = ".".join(map(str, capability))
    return (
        f"{device} has compute capability {own}; the CUDA kernels were built for {archs}, which "
        f"does not run there. Install cos_ext again with TORCH_CUDA_ARCH_LIST={own}"
    )
