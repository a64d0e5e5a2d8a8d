"""Thresholds by call site in a file, and what a threshold must be to go into one. Nothing is
calibrated here.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from torch import Tensor

from .. import functional as F
from .._files import read_tensors, write_tensors

FORMAT = "cos_ext thresholds, 1"


def save_thresholds(thresholds: Mapping[str, Tensor], path: str | os.PathLike[str]) -> None:
    """Write thresholds by call site as safetensors, with their order in the metadata. The file is
    complete or not there.

    Args:
        thresholds: as :func:`cos_ext.calibrate_thresholds` returns them.
        path: the file; one that is there is replaced.

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
    """What :func:`cos_ext.save_thresholds` wrote, in its order, on the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or holds something else.
    """
    header, thresholds = read_tensors(path)
    if header.get("format") != FORMAT:
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
