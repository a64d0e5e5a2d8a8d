"""Writing safetensors files with a JSON header: complete, or not there.

What is in them is the callers' business.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor


def write_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], header: Mapping[str, Any]
) -> None:
    """Write a safetensors file by way of a temporary one, which then takes its place.

    Args:
        path: the file; what was there before stays until the new one is complete.
        tensors: by name, on any device; written contiguous.
        header: goes as JSON into the metadata's entry "cos_ext".
    """
    from safetensors.torch import save_file  # not before something is saved

    owned = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    unfinished = Path(f"{os.fspath(path)}.part")
    try:
        save_file(owned, unfinished, metadata={"cos_ext": json.dumps(header)})
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
